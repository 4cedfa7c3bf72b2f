"""activations.py from its command line."""

from pathlib import Path

import pytest
import torch
from helpers import SMALL, THREE_COLORS, is_picture, save_image

import activations
import color_regression
import colorization
from models import create_model, stage_outputs
from utils.checkpoint import new_network, save_checkpoint


def test_activations_of_a_picture_file(photo_folder, capsys):
    save_checkpoint("small.pkl", new_network(THREE_COLORS, model="UNet", kernel=3, num_filters=2)[1])
    activations.main([str(photo_folder / "0.png"), "--checkpoint", "small.pkl"])
    assert "activations_unet_0" in capsys.readouterr().out


def test_an_image_file_is_not_replaced_and_an_index_is_no_file(cifar, fails):
    save_checkpoint("small.pkl", new_network(THREE_COLORS, model="UNet", kernel=3, num_filters=2)[1])
    folder = Path("outputs/activations_unet_0_image")
    folder.mkdir(parents=True)
    save_image(folder / "0_image.png")
    assert "would replace" in fails(activations.main, folder / "0_image.png", "--checkpoint", "small.pkl")
    Path("outputs/activations_unet_0").mkdir()
    save_image("outputs/activations_unet_0/0_image.png")
    Path("0").symlink_to("outputs/activations_unet_0/0_image.png")  # not what index 0 means
    activations.main(["0", "--checkpoint", "small.pkl"])


def test_the_flags_of_a_palette_to_fit_belong_to_a_file_too(cifar):
    net, _ = new_network(THREE_COLORS, model="UNet", kernel=3, num_filters=2)
    torch.save(net.state_dict(), "bare.pkl")
    save_image("a.png")
    activations.main(["a.png", "--checkpoint", "bare.pkl", "--model", "UNet", "--colors", "3", "--category", "cat"])
    assert Path("outputs/activations_unet_a/6_finalconv.png").exists()


def test_a_regression_has_no_colors(cifar, fails):
    said = fails(activations.main, "0", "--model", "RegressionCNN", "--colors", "24")
    assert "a RegressionCNN predicts RGB, not palette colors; leave --colors out" in said


def test_activations_of_a_file_that_is_no_picture(photo_folder, fails):
    assert "broken.jpg" in fails(activations.main, photo_folder / "broken.jpg")


STAGES = ("downconv1", "downconv2", "rfconv", "upconv1", "upconv2", "finalconv")


def test_activations(cifar, small_palette, capsys):
    colorization.main([*SMALL, "-c", str(small_palette), "--checkpoint", "u.pkl"])
    activations.main(["3", "--checkpoint", "u.pkl", "--out-dir", "maps"])
    color_regression.main([*SMALL, "--checkpoint", "r.pkl"])
    activations.main(["0", "--checkpoint", "r.pkl", "--model", "RegressionCNN", "--out-dir", "maps"])
    for folder in ("activations_unet_3", "activations_regression_cnn_0"):
        pictures = sorted(Path("maps", folder).iterdir())
        assert [path.stem for path in pictures] == [
            "0_image",
            *(f"{i}_{s}" for i, s in enumerate(STAGES, 1)),
        ]
        assert all(is_picture(path) for path in pictures)


def test_feature_maps_are_the_stages_outputs():
    net = create_model("UNet", 3, 4, 5)
    gray = torch.rand(1, 1, 16, 16)
    maps = {name: output[0] for name, output in stage_outputs(net, gray).items()}
    net.eval()
    assert {name: tuple(values.shape) for name, values in maps.items()} == {
        "downconv1": (4, 8, 8),
        "downconv2": (8, 4, 4),
        "rfconv": (8, 4, 4),
        "upconv1": (4, 8, 8),
        "upconv2": (5, 16, 16),
        "finalconv": (5, 16, 16),
    }
    assert torch.equal(maps["finalconv"], net(gray)[0])
    assert torch.equal(maps["downconv1"], net.downconv1(gray)[0])
    assert not net.downconv1._forward_hooks


@pytest.mark.parametrize("number", ["-1", "4", "1000000"])
def test_no_such_image(trained, fails, number):
    assert f"no test image {number}: indices run from 0 to 3" in fails(
        activations.main, number, "--checkpoint", trained
    )
