"""Measure how training grows with images, filters and processes; draw docs/scaling.png.

    python benchmarks/bench_scaling.py --processes 1 2      five to ten minutes on two cores; 3 GB of disk for a while

Prints the tables of docs/scaling.md. The images are random bytes: what they show does
not change what they cost. Memory is read from /proc, so only Linux has that row.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from bench_training import our_loop

from data import load_palette, palette_path
from models import create_model
from pictures.plots import new_figure, save
from sources.image_files import array_images
from training.loop import choose_precision
from utils.console import print_table
from utils.distributed import choose_device

BATCH = 100
STEPS = 60  # timed, of each measurement; fewer of larger networks
COUNTS = (500, 5_000, 50_000, 1_000_000)
FILTERS = (8, 16, 32, 64, 128)


def write_images(path, count):
    """Write an .npy file of random images, a part at a time."""
    random = np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 3, 32, 32))
    for start in range(0, count, 10_000):
        part = array[start : start + 10_000]
        part[:] = random.integers(0, 256, part.shape, np.uint8)


def stepper(images, palette, num_filters, device):
    """Return a function that trains for some steps and returns from how many images."""
    epoch = our_loop(images, palette, device, num_filters, BATCH)
    steps = max(4, int(STEPS * min(1, (32 / num_filters) ** 2)))

    def take():
        epoch(steps)
        return steps * BATCH

    return take


def images_per_second(steppers, rounds=5):
    """Return {name: (median, least, greatest)} of steppers that take turns."""
    times = {name: [] for name in steppers}
    for turn in range(rounds + 1):
        for name, take in steppers.items():
            start = time.perf_counter()
            count = take()
            if turn:  # the first was to warm up
                times[name].append(count / (time.perf_counter() - start))
    return {name: (statistics.median(each), min(each), max(each)) for name, each in times.items()}


def costs(num_filters, num_colors):
    """Return a training step's floating-point operations, and bytes kept for the backward pass, of one image."""
    net = create_model("UNet", 3, num_filters, num_colors)
    low = choose_precision("auto", torch.device("cpu")) == torch.bfloat16

    def step(count):
        kept = {}

        def pack(tensor):
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                outputs = net(torch.rand(count, 1, 32, 32))
            outputs.float().sum().backward()
        return np.array([counter.get_total_flops(), sum(kept.values())])

    return (step(10) - step(2)) / 8  # without the weights


def memory_of(process):
    """Return a process's own memory and what it has mapped of files, in MB."""
    if not Path("/proc/self/status").exists():
        return ["", ""]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return [round(int(status[name].split()[0]) / 1024) for name in ("RssAnon", "RssFile")]


def run_of(path, folder, seconds_of_training):
    """Train on a file of images for some seconds; return the seconds until it begins, and its memory in MB."""
    argv = ["colorization.py", "--data", path, "-c", palette_path(24, "horse"), "-e", 99, "--out-dir", folder]
    start = time.perf_counter()
    command = [sys.executable, *map(str, argv)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        next(line for line in process.stdout if "training and" in line)
        begun = time.perf_counter() - start
        time.sleep(seconds_of_training)
        memory = memory_of(process)
    finally:
        process.kill()
        process.communicate()
    return [round(begun, 1), *memory]


def epoch_seconds(path, folder, processes):
    """Return the median seconds of an epoch in so many processes, of one thread each."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes > 1 else []
    flags = ["--data", path, "-c", palette_path(24, "horse"), "-b", BATCH, "-e", 4, "--out-dir", folder]
    command = [sys.executable, *map(str, [*torchrun, "colorization.py", *flags])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch")]
    return statistics.median(float(line.split()[-2]) for line in lines[1:])


def draw(by_images, by_filters, by_processes):
    """Draw the three plots."""
    figure = new_figure(figsize=(11, 3.8), layout="constrained")
    epochs, widths, processes = figure.subplots(1, 3)
    epochs.loglog(list(by_images), [count / speed for count, (speed, *_) in by_images.items()], "o-")
    epochs.set(xlabel="training images (log scale)", ylabel="seconds per epoch (log scale)")
    widths.plot(list(by_filters), [1000 / speed for speed, *_ in by_filters.values()], "o-")
    widths.set(xlabel="filters of the first stage", ylabel="milliseconds per image", xticks=list(by_filters), ylim=0)
    counts, speeds = list(by_processes), list(by_processes.values())
    processes.plot(counts, speeds, "o-", label="measured")
    processes.plot([0, counts[-1]], [0, counts[-1] * speeds[0]], ":", color="gray", label="proportional")
    processes.set(xlabel="processes of one thread", ylabel="images per second", xticks=counts, ylim=0, xlim=0)
    processes.legend()
    for ax in (epochs, widths, processes):
        ax.grid(alpha=0.3)
    save(figure, PROJECT / "docs" / "scaling.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--device")
    args = parser.parse_args()
    device = choose_device(args.device)
    palette = load_palette(palette_path(24, "horse"))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")

    with tempfile.TemporaryDirectory() as folder:
        files = {count: Path(folder) / f"{count}.npy" for count in COUNTS}
        for count, path in files.items():
            write_images(path, count)
        steppers = {n: stepper(array_images(path, train=True), palette, 32, device) for n, path in files.items()}
        by_images = images_per_second(steppers)
        begun = {count: run_of(files[count], folder, seconds_of_training=40) for count in COUNTS[2:]}
        rows = [
            [f"{count:,}", *map(round, speed), f"{count / speed[0]:,.1f}", *begun.get(count, ("", "", ""))]
            for count, speed in by_images.items()
        ]
        names = ["images per second", "least", "greatest", "epoch, s", "first step after, s", "own MB", "mapped MB"]
        print_table(["images in the file", *names], rows)

        images = array_images(files[5_000], train=True)
        by_filters = images_per_second({f: stepper(images, palette, f, device) for f in FILTERS}, rounds=3)
        rows = []
        for f, (speed, *_) in by_filters.items():
            flops, kept = costs(f, len(palette))
            numbers = f"{flops / 1e6:.1f}", f"{kept / 1e6:.2f}", round(speed), f"{flops * speed / 1e9:.1f}"
            rows.append([f, *numbers])
        names = [
            "million operations per image",
            "MB kept per image",
            "images per second",
            "billion operations per second",
        ]
        print_table(["filters", *names], rows)

        seconds = {n: epoch_seconds(files[5_000], folder, n) for n in args.processes}
        by_processes = {n: round(4_500 / each) for n, each in seconds.items()}
        print_table(["processes", "images per second"], by_processes.items())
    draw(by_images, by_filters, by_processes)


if __name__ == "__main__":
    main()
