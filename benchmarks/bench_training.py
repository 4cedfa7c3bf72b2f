"""Measure this package's training against the plain loop of the course, on one machine in one run.

    python benchmarks/bench_training.py                             throughput, start-up, validation: 2 to 4 minutes
    python benchmarks/bench_training.py --to-loss PALETTE           also seconds to the handout's loss on its palette
    python benchmarks/bench_training.py --run                       also a run of 25 epochs: its time and peak memory

The plain loop: contiguous NCHW float32, upsampling before batch norm, cross-entropy
on the logits, Adam at a constant 0.001, batches of 100, one .item() per step.
"""

import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from data import ImageDataset, ImageSource, load_palette, palette_path, to_gray
from models import UNet, create_model
from training.evaluation import evaluate
from training.loop import Trainer, TrainingConfig, choose_precision
from utils.console import UserError, run_script
from utils.distributed import choose_device
from utils.flags import Parser

OPERATIONS = 112_000_000  # of a UNet's convolutions for one image, forward and backward
OTHER_SECONDS = 50  # of all that is not throughput
SHORT_RUN = ("-b", 20, "-l", 0.12)  # for one epoch; chosen on held-out horses
TIMED_IMAGES = 1500  # in one timed pass of a loop
HANDOUT_LOSS = 1.3787  # of the handout's UNet, on its palette


class PlainUNet(UNet):
    """The same network as the circulating solutions run it: upsampling before batch norm."""

    def __init__(self, kernel, num_filters, num_colors):
        super().__init__(kernel, num_filters, num_colors)
        for name in ("upconv1", "upconv2"):
            conv, norm, relu, upsample = getattr(self, name)
            setattr(self, name, nn.Sequential(conv, upsample, norm, relu))


def plain_epoch(net, optimizer, gray, labels, batch_size=100):
    """One epoch of the plain loop: gray float32 (N, 1, H, W), labels int64 (N, H, W) in memory."""
    net.train()
    order = torch.randperm(len(gray))
    for chosen in order.split(batch_size):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(gray[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        loss.item()


def plain_loop(images, palette, device):
    """Return a function that trains the plain loop's network for one epoch and returns it."""
    net = PlainUNet(3, 32, len(palette)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    gray, labels = to_gray(images).to(device), ImageDataset(images, palette, device).targets(images).to(device).long()

    def epoch():
        plain_epoch(net, optimizer, gray, labels)
        return net

    return epoch


def our_loop(images, palette, device, num_filters=32, batch_size=100, precision="auto"):
    """Return a function that trains this package's UNet for one epoch, or for so many steps with random images."""
    net, dataset = create_model("UNet", 3, num_filters, len(palette)).to(device), ImageDataset(images, palette, device)
    trainer = Trainer(net, dataset, TrainingConfig(batch_size=batch_size, precision=precision))
    trainer.model.train()

    def epoch(steps=None):
        order = torch.randint(len(dataset), (steps * batch_size,)) if steps else torch.randperm(len(dataset))
        for batch in order.to(dataset.images.device).split(batch_size):
            loss = trainer.step(dataset.images[batch].to(device), 0.001)
        return loss.item()  # waits for the device

    return epoch


def serve(connection, make_loop, *settings):
    """Make a loop, and at each request run an epoch of it and send its seconds; in a process of its own."""
    epoch = make_loop(*settings)
    while connection.recv():
        start = time.perf_counter()
        epoch()  # all loops wait for the device
        connection.send(time.perf_counter() - start)


def throughput(images, palette, device, rounds):
    """Return images per second of each loop, alternating: {name: median}, and ratios: {name: (median, least, most)}.

    Each loop has a process of its own, so that what one leaves in memory does not change the other's speed.
    """
    loops = {"plain, batches of 100": (plain_loop,)}
    precisions = ("fp32", "bf16") if has_bf16(device) else ("fp32",)  # without it in hardware, ten times slower
    for batch_size, precision in itertools.product((100, 25), precisions):
        loops[f"{precision}, batches of {batch_size}"] = our_loop, 32, batch_size, precision
    context, connections = multiprocessing.get_context("spawn"), {}
    for name, (make_loop, *settings) in loops.items():
        connections[name], there = context.Pipe()
        arguments = there, make_loop, images, palette, device, *settings
        context.Process(target=serve, args=arguments, daemon=True).start()
        there.close()  # so that a process that dies is an EOFError here
    seconds = {name: [] for name in loops}
    for number in (progress := tqdm(range(rounds + 1), desc="rounds", unit="round", file=sys.stdout)):
        for name, connection in connections.items():
            connection.send(True)
            seconds[name].append(connection.recv())
        if number == 0:
            minutes = (rounds * sum(values[0] for values in seconds.values()) + OTHER_SECONDS) / 60
            progress.write(f"this will take about {minutes:.0f} minutes, more with --to-loss or --run")
    for connection in connections.values():
        connection.send(False)
    seconds = {name: values[1:] for name, values in seconds.items()}  # the first was to warm up

    def ratio(slow, fast):
        ratios = [one / other for one, other in zip(seconds[slow], seconds[fast])]
        return tuple(round(value, 2) for value in (statistics.median(ratios), min(ratios), max(ratios)))

    rates = {name: round(len(images) / statistics.median(values)) for name, values in seconds.items()}
    ratios = {f"{name} to plain": ratio("plain, batches of 100", name) for name in list(loops)[1:]}
    if "bf16" in precisions:
        ratios["bf16 to fp32, batches of 25"] = ratio("fp32, batches of 25", "bf16, batches of 25")
    return rates, ratios


def has_bf16(device):
    """Return whether a device has bfloat16 in hardware."""
    return choose_precision("auto", device) == torch.bfloat16


def bounds(device, rounds=20):
    """Return the images per second at which a UNet's convolutions alone would take all the time, by precision.

    That is the rate of a large convolution, divided by the operations of a training step per image. (Products of
    matrices go through another library, which is slower in float32 on some processors.)
    """
    result = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))[: 1 + has_bf16(device)]:
        choose_precision(name, device)  # on a GPU, of float32's convolutions
        settings = {"device": device, "dtype": dtype}
        x, weight = torch.randn(16, 256, 32, 32, **settings), torch.randn(256, 256, 3, 3, **settings)
        x, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (x, weight))
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)[0, 0, 0, 0].item()  # waits for the device
            seconds.append(time.perf_counter() - start)
        result[name] = round(2 * x.numel() * weight[0].numel() / min(seconds) / OPERATIONS)
    return result


def command(*argv):
    """Run a script of the package; return ([(seconds since its start, line printed)], seconds, peak MB)."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        argv = [sys.executable, *map(str, argv), "--out-dir", folder]
        process = subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        lines = [(time.perf_counter() - start, line.rstrip()) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(argv)} failed")
    return lines, round(time.perf_counter() - start, 2), round(usage.ru_maxrss / 1024)


def training_command(*argv):
    """Train as a user does; return the start-up's seconds, [(seconds since start, loss, seconds)] by epoch, peak MB."""
    lines, _, peak = command("colorization.py", *argv)
    matches = [(at, re.match(r"epoch .*validation loss ([\d.]+).* ([\d.]+) s$", line)) for at, line in lines]
    epochs = [(round(at, 2), float(match[1]), float(match[2])) for at, match in matches if match]
    return round(epochs[0][0] - epochs[0][2], 2), epochs, peak


def seconds_to_loss(images, test_images, palette_file, device, start_up, flags):
    """Return the seconds from process start until the handout's test loss, for this package and the plain loop.

    The plain loop is given the same start-up.
    """
    result = {}
    for epochs, *more in ((1, *SHORT_RUN), (2,), (3,), (4,)):  # take the shortest run that gets there
        ran = training_command("-c", palette_file, "-e", epochs, *more, *flags)[1]
        reached = [at for at, loss, _ in ran if loss <= HANDOUT_LOSS]
        if reached:
            result = {"ours": reached[0], "ours_loss": ran[-1][1], "ours_epochs": epochs}
            break
    palette = load_palette(palette_file)
    epoch = plain_loop(images, palette, device)
    valid = ImageDataset(test_images, palette, device)
    took, passes, loss = start_up, 0, math.inf
    while loss > HANDOUT_LOSS and passes < 50:
        start = time.perf_counter()
        loss = evaluate(epoch(), valid)["loss"]
        took, passes = took + time.perf_counter() - start, passes + 1
    return result | {"plain": round(took, 1), "plain_epochs": passes, "plain_loss": round(loss, 4)}


def main(argv):
    parser = Parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed epochs of each loop (%(default)s)")
    parser.add_argument("--to-loss", metavar="PALETTE")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--data", default="cifar10", help="cifar10, or the folder that contains it (%(default)s)")
    args = parser.parse_args(argv)
    device = choose_device(args.device)
    source = ImageSource(args.data)
    if not source.cifar10_folder:
        raise UserError(f"--data {args.data}: not a folder that contains CIFAR-10")
    flags = ["--device", str(device), "--data", source.cifar10_folder.resolve()]
    palette_file = palette_path(24, "horse")
    images = source.training_images()
    print(f"{len(images):,} images of {source}; measuring throughput", flush=True)

    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} processor"
    result = {"hardware": hardware, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        names = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
        result["capabilities"] = [name for name in names if torch.cpu.get_capabilities().get(name)]
    rates, result["ratios"] = throughput(images[:TIMED_IMAGES], load_palette(palette_file), device, args.rounds)
    result["images_per_second"], result["bounds"] = rates, bounds(device)
    shares = {name: rates[name] / result["bounds"][name[:4]] for name in list(rates)[1:]}
    result["shares_of_bound"] = {name: round(share, 2) for name, share in shares.items()}
    print(*(f"{name}: {value}" for name, value in result.items()), sep="\n", flush=True)
    torch_only = [command_seconds("import torch") for _ in range(3)]
    result["import_torch"] = round(statistics.median(torch_only), 2)
    result["start_up"] = training_command("-e", 1, "-c", palette_file, *flags)[0]
    result["valid"] = statistics.median(command("colorization.py", "--valid", *flags)[1] for _ in range(3))
    print({name: result[name] for name in ("import_torch", "start_up", "valid")}, flush=True)
    if args.to_loss:
        test_images = source.validation_images()
        result["to_handout_loss"] = seconds_to_loss(
            images, test_images, Path(args.to_loss).resolve(), device, result["start_up"], flags
        )
        print(result["to_handout_loss"], flush=True)
    if args.run:
        _, epochs, peak = training_command("-e", 25, *flags)
        result["run_of_25_epochs"] = {"seconds": epochs[-1][0], "loss": epochs[-1][1], "peak_mb": peak}
    print(json.dumps(result))


def command_seconds(code):
    """Return how long a new Python takes for one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    run_script(main)
