"""One run of training: its log, its files, and how it goes on after it was stopped."""

import csv
import hashlib
import platform
import shlex
import sys
import time

import numpy as np
import torch

import distributed
from checkpoint import describe, file_name, load_checkpoint, read_torch_file, save_checkpoint, write_torch_file
from cli import UserError, atomic_write, check_writable, write_json
from data import load_other_classes, subsample
from plots import save_curve
from speed import choose_precision
from training import (
    device_of,
    format_metrics,
    make_dataset,
    plain_loss_fn,
    train,
    training_examples,
    validation_examples,
)

STATE_FORMAT = "colorization training state 1"
FINE_TUNING_RATE = 0.3  # of the peak learning rate, for the category's own epochs after --pretrain


def run_training(args, checkpoint, learning, draw, make_loss_fn=lambda examples, device: plain_loss_fn):
    """Train the checkpoint's network as the flags say, and write all that comes of it.

    learning(images) returns their targets_of; save_samples(path, title, net, valid) the pictures;
    make_loss_fn(examples, device) returns what the network learns from, for Trainer.
    After every epoch: its figures to the screen and a CSV file, the checkpoint, the
    best one so far, and the state that --resume goes on from. At the end: the curve
    and the pictures. Returns the validation examples.
    """
    start = time.perf_counter()
    net, device = checkpoint.net, device_of(checkpoint.net)
    path = args.checkpoint or args.out_dir / file_name(checkpoint.model, checkpoint.kernel, checkpoint.num_filters)
    best_path = path.with_name(f"{path.stem}_best.pkl")
    state_path, csv_path, record_path, curve, pictures = (
        args.out_dir / f"{path.stem}{end}" for end in (".state", ".csv", ".json", "_curve.png", "_images.png")
    )
    for target in (path, best_path, state_path, csv_path, record_path, curve, pictures):
        check_writable(target)
    examples = training_examples(args, learning, device)
    valid = validation_examples(args, learning, device)
    if args.batch_size > len(examples.images):
        raise UserError(f"--batch-size {args.batch_size}: there are only {len(examples.images):,} training images")
    if args.batch_size < distributed.world_size():
        raise UserError(
            f"--batch-size {args.batch_size}: fewer images a step than the {distributed.world_size()} processes"
        )
    last_epoch = args.pretrain + args.epochs
    settings = settings_of(args, checkpoint)
    history, resumed = load_state(state_path, settings, last_epoch) if args.resume else ([], None)
    several = f" in {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    counts = f"{len(examples.images):,} training and {len(valid.images):,} validation images"
    print(f"{describe(checkpoint)}\n{counts} of {checkpoint.data}, on {device}{several}", flush=True)

    record = run_metadata(args, checkpoint, examples, device)

    def log(row, state):
        rows = [*history, row]
        if distributed.rank():
            history.append(row)
            return
        checkpoint.epoch, checkpoint.figures = row["epoch"], row
        is_best = row["valid_loss"] == min(earlier["valid_loss"] for earlier in rows)
        if is_best:
            save_checkpoint(best_path, checkpoint)
        if is_best or args.keep == "last":
            save_checkpoint(path, checkpoint)
        write_history(csv_path, rows)
        write_json(record_path, record | {"epochs": row["epoch"], "seconds": time.perf_counter() - start})
        write_torch_file(state_path, {"format": STATE_FORMAT, "settings": settings, "history": rows, "trainer": state})
        history.append(row)  # only now is the epoch complete
        figures = format_metrics(row["valid_loss"], row["valid_accuracy"])
        line = f"epoch {row['epoch']:3}/{last_epoch}   training loss {row['train_loss']:.5f}   {figures}"
        print(f"{line}   {row['seconds']:.1f} s", flush=True)
        if args.plot:
            title = f"{checkpoint.model} after epoch {row['epoch']}: {figures}"
            draw(args.out_dir / f"{path.stem}_epoch{row['epoch']:03}.png", title, net, valid)

    try:
        train_in_stages(args, net, learning, examples, valid, make_loss_fn(examples, device), resumed, log)
    except KeyboardInterrupt:
        if not history:
            raise KeyboardInterrupt("stopped before the first epoch was complete: nothing is saved") from None
        raise KeyboardInterrupt(
            f"stopped; epoch {len(history)} of {last_epoch} is saved, and the same command with --resume goes on"
        ) from None

    if distributed.rank():
        return valid
    if args.keep == "best":
        checkpoint = load_checkpoint(path)
        checkpoint.net.to(device)
    title = f"{checkpoint.model}, {checkpoint.data}, {checkpoint.epoch} epochs"
    figures = format_metrics(checkpoint.figures["valid_loss"], checkpoint.figures["valid_accuracy"])
    save_curve(curve, title, history)
    draw(pictures, f"{title}: {figures}", checkpoint.net, valid)
    print(f"saved {path}, {best_path}, {csv_path}, {curve}, {pictures}")
    return valid


def train_in_stages(args, net, learning, examples, valid, loss_fn, resumed, log):
    """Train on all classes where --pretrain asks for it, then on the category's own images."""
    done = resumed[0] if resumed else 0
    settings = {
        "batch_size": args.batch_size,
        "augment": args.augment,
        "loss_fn": loss_fn,
        "precision": choose_precision(args.precision, device_of(net)),
        "compile": args.compile,
        "log": log,
    }
    learning_rate = args.learning_rate
    if args.pretrain:
        if done <= args.pretrain:
            others = load_other_classes(args)
            print(f"first {args.pretrain} epochs on these and {len(others):,} images of other classes", flush=True)
            everything = make_dataset(device_of(net), torch.cat([others, examples.images.cpu()]), learning)
            train(
                net, everything, valid, epochs=args.pretrain, learning_rate=learning_rate, resumed=resumed, **settings
            )
            resumed = None
        learning_rate *= FINE_TUNING_RATE
    first = args.pretrain + 1
    train(
        net,
        examples,
        valid,
        epochs=args.epochs,
        learning_rate=learning_rate,
        first_epoch=first,
        resumed=resumed,
        **settings,
    )


def settings_of(args, checkpoint):
    """Return what a resumed run must have in common with the stopped one, by the names of the flags."""
    names = ["epochs", "pretrain", "batch_size", "learning_rate", "augment", "seed", "holdout", "keep", "precision"]
    if checkpoint.palette is not None:
        names += ["rebalance", "picture_weight"] + ["temperature"] * bool(args.picture_weight)
    network = {"model": checkpoint.model, "kernel": checkpoint.kernel, "num_filters": checkpoint.num_filters}
    palette = None if checkpoint.palette is None else checkpoint.palette.tolist()
    flags = {name: getattr(args, name) for name in names} | {"start_from": args.start_from and str(args.start_from)}
    return network | flags | {"data": checkpoint.data, "colors": palette}


def load_state(path, settings, last_epoch):
    """Return a stopped run's (history, (its last epoch, its trainer's state)).

    Raises UserError where there is none, where it is finished, or of other settings.
    """
    content = read_torch_file(path, "training state")
    parts = {"format", "settings", "history", "trainer"}
    if not isinstance(content, dict) or content.keys() != parts or content["format"] != STATE_FORMAT:
        raise UserError(f"{path}: not a training state of this package; train without --resume")
    for name, value in settings.items():
        if content["settings"].get(name) != value:
            flag, was = "--" + name.replace("_", "-").replace("learning", "learn"), content["settings"].get(name)
            differ = "is another palette" if name == "colors" else f"was {was}, not {value}"
            raise UserError(f"{path}: cannot resume with other settings: {flag} {differ}")
    history = content["history"]
    if len(history) >= last_epoch:
        raise UserError(f"{path}: this run is finished, all {last_epoch} epochs; train without --resume to start anew")
    return history, (len(history), content["trainer"])


def write_history(path, history):
    """Write the figures of all epochs so far to a CSV file, which is whole at any moment."""
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def run_metadata(args, checkpoint, examples, device):
    """Return what it takes to repeat a run."""
    return {
        "command": shlex.join(sys.argv),
        "flags": {name: str(value) for name, value in vars(args).items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "seed": args.seed,
        "data": checkpoint.data,
        "data_sha256": hashlib.sha256(subsample(examples.images).cpu().contiguous().numpy()).hexdigest(),
        "palette": None if checkpoint.palette is None else checkpoint.palette.tolist(),
    }
