"""Draw the feature maps of every stage of a network for one image.

python activations.py 3                                             feature maps of test image 3
python activations.py photo.jpg                                     feature maps of a photograph's central square
python activations.py 3 --checkpoint outputs/cnn_k3_f32.pkl         feature maps of a network that you trained
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which python -I leaves out

from data import ImageDataset, ImageSource, palette_for, to_gray
from models import NETWORKS, stage_outputs
from pictures.plots import save_feature_maps
from sources.cifar10 import CLASSES
from sources.image_files import load_square
from training.evaluation import draw_samples
from utils import flags
from utils.checkpoint import file_stem, load_network, pretrained_path
from utils.console import UserError, run_script
from utils.distributed import choose_device
from utils.files import check_targets


def load_by_index(index: str, source: ImageSource) -> Tensor:
    """Return the test image of an index, uint8 (1, 3, 32, 32). Raises UserError if there is none."""
    images = source.validation_images()
    if len(index) > 9 or not 0 <= int(index) < len(images):
        raise UserError(f"there is no test image {index:.20}: indices run from 0 to {len(images) - 1}")
    return images[int(index), None]


def main(argv: list[str]) -> None:
    parser = flags.Parser(__doc__)
    parser.add_argument("image", metavar="N|FILE", help="index of a test image, counted from 0, or an image file")
    flags.add_network_flags(parser, "file to load (default: the shipped weights)", NETWORKS)
    flags.add_image_flags(parser, asdict(ImageSource()), CLASSES)
    flags.add_output_flags(parser)
    args = parser.parse_args(argv)
    file = None if args.image.removeprefix("-").isdecimal() else Path(args.image)
    if file and not (args.colors or "").isdecimal():
        flags.reject_unused_flags(parser, args, "an image file")

    device, source = choose_device(args.device), ImageSource(args.data, args.category)
    palette = palette_for(args.colors, source) if args.colors else None
    path = args.checkpoint or pretrained_path(**flags.architecture_of(args))
    net, checkpoint = load_network(path, palette, **flags.architecture_of(args))
    source = replace(source, working_size=checkpoint.working_size)
    image = load_square(file) if file else load_by_index(args.image, source)
    outputs = stage_outputs(net.to(device), to_gray(image))  # name -> (1, C, H, W)

    name = file.stem if file else args.image
    folder = args.out_dir / f"activations_{file_stem(checkpoint.model)}_{name}"
    check_targets([folder / "0_image.png"], [file, source.path])
    dataset = ImageDataset(image, checkpoint.palette, device)
    draw_samples(folder / "0_image.png", f"{checkpoint.model}, image {name}", net, dataset)
    for number, (stage, (maps,)) in enumerate(outputs.items(), 1):
        size = "{} maps of {}x{}".format(*maps.shape)
        title = f"{checkpoint.model}, {stage}: {size}, each scaled to its own range"
        title += " (above it: number, least and greatest value)"
        save_feature_maps(folder / f"{number}_{stage}.png", title, maps.cpu())
    print(f"{checkpoint}\nsaved {len(outputs) + 1} pictures in {folder}")


if __name__ == "__main__":
    run_script(main)
