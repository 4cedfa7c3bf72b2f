"""The files of a run: stopped, killed, resumed, out of space."""

import contextlib
import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROWS, smooth_images
from helpers import PALETTE, SMALL, THREE_COLORS, TINY

import color_regression
import colorization
import data
from data import ImageDataset, ImageSource
from sources import cifar10
from training import log, loop
from training.log import RunLog, run_settings
from utils import checkpoint, distributed, torch_files
from utils.checkpoint import load_checkpoint, load_network, new_network, pretrained_path
from utils.console import UserError
from utils.files import PROJECT

LOSSES = {"train_loss": 1.0, "valid_loss": 2.0, "valid_accuracy": 0.5}
METRICS = {"epoch": 1} | LOSSES | {"learning_rate": 0.1, "seconds": 3.0}  # of an epoch


def small_log(out_dir, path=None):
    """A network, and the log of its run of two epochs."""
    net, content = new_network(PALETTE, model="CNN", num_filters=2)
    return net, RunLog(content, {"epochs": 2, "learning_rate": 0.01}, out_dir, path, ())


def interrupt(*_):
    """Ctrl-C in the middle of a call."""
    raise KeyboardInterrupt


def test_every_process_resumes_from_the_state_that_it_reads(tmp_path, monkeypatch):
    """Also one that writes nothing."""
    net, log = small_log(tmp_path)
    log.write(METRICS, net.state_dict(), {"a": {}})
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    loaded: list[dict] = []
    _, other = small_log(tmp_path)
    other.resume(loaded.append)
    assert other.history == log.history and loaded == [{"a": {}}]
    other.write(METRICS | {"epoch": 2}, net.state_dict(), {"a": {}})
    assert len(torch.load(tmp_path / "cnn_k3_f2.state", weights_only=True)["history"]) == 1
    (tmp_path / "cnn_k3_f2.state").unlink()
    with pytest.raises(UserError, match=r"cnn_k3_f2\.state: cannot read the training state"):
        other.resume(loaded.append)


def test_an_interrupted_run_on_an_album_resumes_with_the_same_crops(photo_folder, monkeypatch, fails):
    palette = photo_folder.parent / "palette.npy"
    flags = ["--data", str(photo_folder), "-c", str(palette), "-f", "2", "-b", "20", "-e", "2"]
    np.save(palette, THREE_COLORS)
    colorization.main([*flags, "--out-dir", "whole"])

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        write = RunLog.write
        patch.setattr(RunLog, "write", lambda *written: (write(*written), stop()))
        with pytest.raises(KeyboardInterrupt):
            colorization.main([*flags, "--out-dir", "halves"])
    halves = "--out-dir", "halves", "--resume"
    assert "working size was 64 and is now 48" in fails(colorization.main, *flags, "--working-size", "48", *halves)
    colorization.main([*flags, "--data", f"{photo_folder}/", *halves])  # the same folder
    whole, halves = (load_network(f"{out}/unet_k3_f2.pkl")[1].state_dict for out in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


class Stopped(BaseException):
    """What a killed process would see, if it saw anything."""


def stop_in_epoch(monkeypatch, epoch, error):
    """Have training break off with an error in this epoch, once some steps are taken."""
    train_epoch = loop.Trainer.train_epoch

    def breaking(self, number):
        loss = train_epoch(self, number)
        if number == epoch:
            raise error
        return loss

    monkeypatch.setattr(loop.Trainer, "train_epoch", breaking)


def metrics_of(path):
    """Return a CSV file's text without its column of seconds."""
    return [line.rsplit(",", 1)[0] for line in Path(path).read_text().splitlines()]


def same_runs(one, two):
    """Check that two folders have the metrics and weights of the same run."""
    assert metrics_of(f"{one}/unet_k3_f2.csv") == metrics_of(f"{two}/unet_k3_f2.csv")
    for name in ("unet_k3_f2.pkl", "unet_k3_f2_best.pkl"):
        first, second = (torch.load(f"{folder}/{name}", weights_only=True) for folder in (one, two))
        assert first["epoch"] == second["epoch"]
        assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_ends_as_an_uninterrupted_one(cifar, small_palette, monkeypatch, stop):
    command = [*TINY, "-e", "4", "-c", str(small_palette)]
    colorization.main([*command, "--out-dir", "whole"])
    with monkeypatch.context() as patched:
        stop_in_epoch(patched, stop, Stopped)
        with pytest.raises(Stopped):
            colorization.main([*command, "--out-dir", "parts"])
    assert len(metrics_of("parts/unet_k3_f2.csv")) == stop  # the header and the complete epochs
    torch.rand(7)
    colorization.main([*command, "--out-dir", "parts", "--resume"])
    same_runs("whole", "parts")
    seconds = [float(line.rsplit(",", 1)[1]) for line in Path("parts/unet_k3_f2.csv").read_text().splitlines()[1:]]
    assert json.loads(Path("parts/unet_k3_f2.json").read_text())["seconds"] == pytest.approx(sum(seconds))


def test_a_run_from_a_checkpoint_is_resumed_from_its_own_state(cifar, small_palette, monkeypatch):
    colorization.main([*TINY, "-e", "1", "-c", str(small_palette), "--out-dir", "first", "--category", "all"])
    command = ["-b", "8", "-e", "3", "-l", "0.01", "--start-from", "first/unet_k3_f2.pkl"]
    colorization.main([*command, "--out-dir", "whole"])
    with monkeypatch.context() as patched:
        stop_in_epoch(patched, 2, Stopped)
        with pytest.raises(Stopped):
            colorization.main([*command, "--out-dir", "parts"])
    colorization.main([*command, "--out-dir", "parts", "--resume"])
    same_runs("whole", "parts")


def test_what_cannot_be_resumed_says_why(cifar, small_palette, fails, tmp_path):
    command = [*TINY, "-e", "1", "-c", small_palette]
    line = fails(colorization.main, *command, "--resume")
    assert "unet_k3_f2.state: cannot read the training state" in line and "train without --resume" in line
    colorization.main([str(word) for word in command])
    command[command.index("-e") + 1] = "3"
    assert "other settings: epochs was 1 and is now 3" in fails(colorization.main, *command, "--resume")
    command[command.index("-e") + 1] = "1"
    changes = {"learn-rate": "0.03", "batch-size": "5", "seed": "3", "augment": "mirror", "holdout": "2"}
    for name, value in changes.items():
        line = fails(colorization.main, *command, f"--{name}", value, "--resume")
        assert f"other settings: {name.replace('-', ' ').replace('learn', 'learning')} was" in line
    np.save("other.npy", np.linspace([0, 0.1, 0], [0.9, 0.8, 0.98], 5))
    assert "other settings: another palette" in fails(colorization.main, *command, "-c", "other.npy", "--resume")
    Path("outputs/unet_k3_f2.state").write_bytes(b"no state")
    assert "not a training state" in fails(colorization.main, *command, "--resume")
    torch.save({}, "outputs/unet_k3_f2.state")
    assert "not a training state" in fails(colorization.main, *command, "--resume")


def test_the_best_epoch_is_kept(cifar, small_palette, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": next(losses), "accuracy": 0.5})
    colorization.main([*TINY, "-e", "3", "-c", str(small_palette), "--checkpoint", "u.pkl"])
    assert checkpoint.load_checkpoint("u.pkl").epoch == 3
    assert checkpoint.load_checkpoint("u_best.pkl").epoch == 2


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(cifar, small_palette, monkeypatch, fails):
    loss, steps = loop.Trainer.loss, iter(range(1, 100))

    def broken(self, *batch):
        return loss(self, *batch) * (math.nan if next(steps) == 5 else 1)

    monkeypatch.setattr(loop.Trainer, "loss", broken)
    line = fails(colorization.main, *TINY, "-e", "3", "-c", small_palette)  # three steps an epoch
    assert "step 2 of epoch 2; outputs/unet_k3_f2.pkl has the weights of epoch 1: " in line
    assert "a --learn-rate below 0.04" in line
    assert checkpoint.load_checkpoint("outputs/unet_k3_f2.pkl").epoch == 1


def test_a_loss_that_is_not_finite_in_the_first_epoch_says_that_nothing_is_saved(
    cifar, small_palette, monkeypatch, fails
):
    monkeypatch.setattr(loop.Trainer, "loss", lambda self, outputs, *_: outputs.mean() * math.nan)
    assert "epoch 1; no checkpoint was saved: " in fails(colorization.main, *TINY, "-e", "1", "-c", small_palette)


@pytest.mark.parametrize("best", [1, 2])
def test_resuming_a_complete_run_writes_what_is_missing(cifar, small_palette, monkeypatch, capsys, best):
    command = [*TINY, "-e", "2", "-c", str(small_palette)]
    losses = iter([1.0, 2.0] if best == 1 else [2.0, 1.0])
    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", lambda *_: {"loss": next(losses), "accuracy": 0.5})
        patched.setattr("training.log.save_curve", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            colorization.main(command)
    files = {ending: Path(f"outputs/unet_k3_f2{ending}") for ending in (".pkl", "_best.pkl", ".csv", ".json")}
    before = {ending: path.read_bytes() for ending, path in files.items()}
    colorization.main([*command, "--resume"])
    assert Path("outputs/unet_k3_f2_curve.png").exists() and Path("outputs/unet_k3_f2_images.png").exists()
    assert all(path.read_bytes() == before[ending] for ending, path in files.items())
    for path in files.values():
        path.unlink()
    capsys.readouterr()
    colorization.main([*command, "--resume"])
    assert files[".csv"].read_bytes() == before[".csv"] and files[".json"].exists()
    again, weights = load_checkpoint(files[".pkl"]).state_dict, torch.load(io.BytesIO(before[".pkl"]))["state_dict"]
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert files["_best.pkl"].exists() == (best == 2)  # else its weights are gone
    said = "outputs/unet_k3_f2.pkl, outputs/unet_k3_f2_best.pkl;" if best == 2 else "outputs/unet_k3_f2.pkl;"
    assert f"saved {said}" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["training_images", "validation_images"])
def test_other_images_under_the_same_name_are_not_resumed_with(cifar, monkeypatch, small_palette, fails, which):
    command = [*TINY, "-e", "2", "-c", str(small_palette)]
    with monkeypatch.context() as patched:
        stop_in_epoch(patched, 2, Stopped)
        with pytest.raises(Stopped):
            colorization.main(command)
    images = getattr(ImageSource, which)
    monkeypatch.setattr(ImageSource, which, lambda source: images(source) ^ 1)
    assert "other settings: other images" in fails(colorization.main, *command, "--resume")


def test_only_one_run_writes_its_files(tmp_path, small_palette, monkeypatch, fails):
    """While it runs; a run that was killed is no obstacle."""
    monkeypatch.setattr(data, "MIN_CROPS", 500)
    argv = ["-f", "1", "-b", "500", "-e", "500", "-c", small_palette, "--data", "sample", "--out-dir", tmp_path / "out"]
    with shell(*argv) as process:
        while not process.stdout.readline().startswith("epoch"):
            pass
        assert "unet_k3_f1.pkl: another run is writing it" in fails(colorization.main, *argv)
        elsewhere = ["--out-dir", tmp_path / "elsewhere", "--checkpoint", tmp_path / "out" / "unet_k3_f1.pkl"]
        assert "unet_k3_f1.pkl: another run is writing it" in fails(colorization.main, *argv[:-2], *elsewhere)
        best = ["--checkpoint", tmp_path / "out" / "unet_k3_f1_best.pkl"]
        assert "another run is writing it" in fails(colorization.main, *argv[:-2], *elsewhere[:2], *best)
        process.kill()
    argv[argv.index("-e") + 1] = "1"
    (tmp_path / "out" / ".unet_k3_f1.lock").unlink()
    (tmp_path / "out" / ".unet_k3_f1.lock").mkdir()
    assert ".unet_k3_f1.lock: cannot be locked" in fails(colorization.main, *argv)
    (tmp_path / "out" / ".unet_k3_f1.lock").rmdir()
    colorization.main([str(word) for word in argv])
    assert load_checkpoint(tmp_path / "out" / "unet_k3_f1.pkl").epoch == 1


@pytest.fixture
def interrupted(cifar, small_palette, monkeypatch):
    """A run that was stopped in its second epoch: its command, its training state and what that contains."""
    command, path = [*TINY, "-e", "2", "-c", str(small_palette)], Path("outputs/unet_k3_f2.state")
    with monkeypatch.context() as patched:
        stop_in_epoch(patched, 2, Stopped)
        with pytest.raises(Stopped):
            colorization.main(command)
    return command, path, torch.load(path, weights_only=True)


def test_a_damaged_state_is_named(interrupted, fails):
    command, path, content = interrupted
    weights = content["trainer"]["averaged_model"]
    spoilt = content["trainer"] | {"averaged_model": weights | {"finalconv.bias": weights["finalconv.bias"] * math.nan}}
    damages = [spoilt]
    for key, value in (("momentum_buffer.0", math.nan), ("exp_avg_sq.1", -1.0), ("steps.0", math.nan)):
        state = content["trainer"]["optimizer"]
        damages.append(content["trainer"] | {"optimizer": state | {key: torch.full_like(state[key], value)}})
    damages += ({}, {"model": {}}, {"trainer": 3}, {"optimizer": {"steps": []}}, None)
    damages.append(content["trainer"] | {"average": {"steps": torch.tensor(-1)}})
    damaged = "unet_k3_f2.state: not a training state, or a corrupt one"
    for damage in damages:
        torch.save(content | {"trainer": damage}, path)
        assert damaged in fails(colorization.main, *command, "--resume")
    row = content["history"][0]
    broken = {name: value for name, value in row.items() if name != "valid_loss"}
    histories = [3, [1], [], [broken], [row | {"seconds": "1"}], [row | {"x": []}], [row, dict(row)]]
    histories += [[row | {"x": 1.0}], [row | {"epoch": 1.0}], [row | {"epoch": True}], [row | {"seconds": 1}]]
    histories += [[{f"{name}\r": value for name, value in row.items()}], [dict(reversed(row.items()))]]
    long = [row | {"epoch": epoch} for epoch in (1, 2, 3)]  # of a run of two epochs
    for damage in ({"settings": None}, *({"history": history} for history in (*histories, long))):
        torch.save(content | damage, path)
        assert damaged in fails(colorization.main, *command, "--resume")


def test_no_file_of_a_run_replaces_another(cifar, small_palette, fails):
    flags = [*TINY, "-e", "1", "-c", str(small_palette)]
    colorization.main(flags)
    before = Path("outputs/unet_k3_f2.pkl").read_bytes()
    Path("link.pkl").symlink_to("outputs/unet_k3_f2.pkl")
    for start in ("outputs/unet_k3_f2.pkl", "outputs/unet_k3_f2_best.pkl", "link.pkl"):
        assert f"would replace {start}" in fails(colorization.main, "-b", "8", "--start-from", start)
    assert "another file of this run" in fails(colorization.main, *flags, "--checkpoint", "outputs/u.csv")
    assert Path("outputs/unet_k3_f2.pkl").read_bytes() == before


def test_symbolic_links_are_followed(cifar, small_palette):
    Path("elsewhere").mkdir()
    Path("u.pkl").symlink_to("elsewhere/weights.pkl")
    colorization.main([*TINY, "-e", "1", "-c", str(small_palette), "--checkpoint", "u.pkl"])
    assert Path("u.pkl").is_symlink() and checkpoint.load_checkpoint("elsewhere/weights.pkl").epoch == 1


def test_a_run_writes_what_it_takes_to_repeat_it(cifar, small_palette):
    colorization.main([*TINY, "-e", "2", "-c", str(small_palette), "--seed", "9"])
    record = json.loads(Path("outputs/unet_k3_f2.json").read_text())
    horses = data.ImageSource().training_images()
    assert record["data"] == "CIFAR-10 horse"
    assert record["data_sha256"] == hashlib.sha256(horses.numpy().tobytes()).hexdigest()
    assert record["seed"] == 9
    assert record["epochs"] == record["epochs_done"] == 2
    assert record["versions"]["torch"] == torch.__version__
    assert record["palette"] == np.load(small_palette).tolist()
    assert record["device"] == "cpu"
    assert record["command"]
    assert record["seconds"] > 0


def shell(*argv, **settings):
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "colorization.py"), *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def train_small(rows, argv):
    """Run a training in this process, silently; the target of processes to be killed."""
    torch.set_num_threads(1)
    cifar10.ROWS = rows
    with contextlib.redirect_stdout(io.StringIO()):
        colorization.main(argv)


def test_ctrl_c_says_how_to_go_on(tmp_path, small_palette):
    argv = ["-f", "1", "-b", "500", "-e", "500", "-c", small_palette, "--data", "sample", "--out-dir", tmp_path / "out"]
    as_by_hand = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell ignore Ctrl-C
    with shell(*argv, preexec_fn=as_by_hand) as process:
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = error.strip().splitlines()
    assert len(lines) == 1
    assert "of 500 is saved; to continue, repeat the command with --resume" in lines[0]
    assert checkpoint.load_checkpoint(tmp_path / "out" / "unet_k3_f1.pkl").epoch >= 1


def test_a_killed_process_leaves_whole_files(cifar, small_palette, monkeypatch):
    """SIGKILL at 30 moments, half random, half in a save; each next process goes on from what the last one left."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT / "tests"))  # so that what is preloaded is found
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_log"])
    moments = random.Random(0)
    argv = [*TINY, "-e", "9999", "-c", str(small_palette), "--data", str(cifar)]
    state, weights = Path("outputs/unet_k3_f2.state"), Path("outputs/unet_k3_f2.pkl")
    epochs, killed_parts = [0], 0
    for turn in range(30):
        process = context.Process(target=train_small, args=(ROWS, [*argv, *(["--resume"] if epochs[-1] else [])]))
        process.start()
        seen = state.stat().st_mtime_ns if state.exists() else 0
        for _ in range(600):  # until it has saved once; then anywhere in an epoch or a save
            if state.exists() and state.stat().st_mtime_ns != seen:
                break
            time.sleep(0.05)
        if turn % 2:
            until = time.monotonic() + 2
            while not any(Path("outputs").glob(".*.part")) and time.monotonic() < until:
                pass  # a save lasts a few milliseconds
        else:
            time.sleep(moments.random() * 0.1)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed_parts += any(Path("outputs").glob(".*.part"))
        content = torch_files.read_torch_file(state, "training state", "advice")
        epochs.append(len(content["history"]))
        assert epochs[-1] > epochs[-2]
        assert checkpoint.load_checkpoint(weights).epoch >= epochs[-1]
    assert killed_parts > 0, "no kill came in the middle of a save"


@contextlib.contextmanager
def file_size_limit(size):
    """Files cannot grow over `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_old_checkpoint(cifar, small_palette, fails):
    command = [*TINY, "-e", "1", "-c", small_palette, "--checkpoint", "u.pkl"]
    colorization.main([str(word) for word in command])
    before = Path("u.pkl").read_bytes()
    with file_size_limit(2000):
        line = fails(colorization.main, *command, "--seed", "1")
    assert "cannot be written (File too large)" in line
    assert Path("u.pkl").read_bytes() == before
    assert not list(Path().rglob("*.part"))


@pytest.mark.parametrize("fault", ["folder", "below a file", "read-only", "out-dir is a file"])
def test_targets_that_cannot_be_written_are_found_before_training(cifar, small_palette, fails, monkeypatch, fault):
    monkeypatch.setattr(loop.Trainer, "train_epoch", lambda *_: pytest.fail("training began"))
    Path("file").touch()
    Path("folder").mkdir()
    flags = {
        "folder": ["--checkpoint", "folder"],
        "below a file": ["--checkpoint", "file/u.pkl"],
        "read-only": ["--checkpoint", "folder/u.pkl"],
        "out-dir is a file": ["--out-dir", "file"],
    }[fault]
    if fault == "read-only":
        Path("folder").chmod(0o500)
        if os.access("folder", os.W_OK):
            pytest.skip("this user may write anywhere")
    assert "cannot be written" in fails(colorization.main, *TINY, "-c", small_palette, *flags)


def test_checkpoint_is_saved_where_it_is_asked_for(cifar, small_palette):
    colorization.main([*SMALL, "-c", str(small_palette), "--checkpoint", "mine.pkl"])
    assert load_checkpoint("mine.pkl").model == "UNet"
    assert sorted(path.name for path in Path("outputs").iterdir()) == [
        ".mine.lock",
        "mine.csv",
        "mine.json",
        "mine.state",
        "mine_curve.png",
        "mine_images.png",
    ]


def test_training_does_not_replace_the_shipped_weights(cifar, small_palette, fails):
    before = pretrained_path().read_bytes()
    assert "training does not write to weights/" in fails(
        colorization.main, "-e", 1, "-b", 8, "-c", small_palette, "--checkpoint", pretrained_path()
    )
    assert pretrained_path().read_bytes() == before


def test_shipped_weights_are_not_replaced_by_another_name(tmp_path, monkeypatch):
    (tmp_path / "link.pkl").symlink_to(pretrained_path())
    with pytest.raises(UserError, match="training does not write to weights/"):
        small_log(tmp_path, tmp_path / "link.pkl")
    (tmp_path / "weights").mkdir()
    (tmp_path / "project").symlink_to(tmp_path)
    monkeypatch.setattr(log, "PROJECT", tmp_path / "project")
    with pytest.raises(UserError, match="training does not write to weights/"):
        small_log(tmp_path, tmp_path / "weights" / "mine.pkl")


def test_what_a_run_starts_from():
    valid_set = ImageDataset(torch.from_numpy(smooth_images(2)), PALETTE, torch.device("cpu"))
    _, content = new_network(PALETTE, model="CNN", kernel=5, num_filters=2)
    settings = {"model": "CNN", "kernel": 5, "num_filters": 2, "data": "sample photographs", "holdout": 0}
    settings |= {"start_from": "u.pkl", "working_size": 48, "palette": PALETTE.tolist()}
    settings["valid_sha256"] = hashlib.sha256(smooth_images(2).tobytes()).hexdigest()
    assert run_settings(content, ImageSource("sample", working_size=48), Path("u.pkl"), valid_set) == settings
    of_cifar10 = run_settings(content, ImageSource("cifar10", holdout=3), None, valid_set)
    assert of_cifar10.keys() == settings.keys() - {"working_size"}


def test_the_record_counts_the_epochs_done(tmp_path):
    net, log = small_log(tmp_path)
    for epoch in (1, 2):
        log.write(METRICS | {"epoch": epoch}, net.state_dict(), {"a": {}})
        record = json.loads((tmp_path / "cnn_k3_f2.json").read_text())
        assert (record["epochs_done"], record["seconds"]) == (epoch, 3.0 * epoch)
    with pytest.raises(UserError, match="seed was None and is now 0"):
        RunLog(log.checkpoint, log.settings | {"seed": 0}, tmp_path, None, ()).resume(lambda _: None)


def test_a_state_whose_tensors_have_other_shapes_is_refused(interrupted, fails):
    """Also one that claims to be huge, whose values are never looked at."""
    command, path, content = interrupted
    optimizer = content["trainer"]["optimizer"]
    for value in (torch.zeros(1), torch.zeros(()).expand(1 << 40), optimizer["exp_avg.0"].to(torch.complex64)):
        damaged = content["trainer"] | {"optimizer": optimizer | {"exp_avg.0": value}}
        torch.save(content | {"trainer": damaged}, path)
        assert "exp_avg.0 has another shape or type" in fails(colorization.main, *command, "--resume")


def test_the_palette_in_use_is_not_replaced(cifar, fails):
    before = data.palette_path(24, "horse").read_bytes()
    said = fails(colorization.main, "-e", "1", "-f", "1", "-b", "8", "--checkpoint", data.palette_path(24, "horse"))
    assert "would replace" in said and data.palette_path(24, "horse").read_bytes() == before


def test_a_first_epoch_that_is_stopped_while_it_is_saved_is_not_complete(tmp_path, monkeypatch):
    net, log = small_log(tmp_path)
    monkeypatch.setattr("training.log.write_torch_file", interrupt)
    with pytest.raises(KeyboardInterrupt, match="stopped before the first epoch was complete"), log.running():
        log.write(METRICS, net.state_dict(), {"a": {}})
    assert log.history == []


def test_ctrl_c_while_a_run_is_resumed_says_what_is_saved(tmp_path):
    net, log = small_log(tmp_path)
    log.write(METRICS, net.state_dict(), {"a": {}})
    _, log = small_log(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="epoch 1 of 2 is saved"), log.running():
        log.resume(interrupt)


def test_the_shipped_weights_are_not_replaced_by_their_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    with pytest.raises(UserError, match="training does not write to weights/"):
        small_log(tmp_path, Path("weights/mine.pkl"))


def test_a_run_owns_its_files_by_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with small_log(Path("outputs"), tmp_path / "outputs" / "u.pkl")[1].running():  # one folder, by two names
        pass
    Path("link.pkl").symlink_to("real/w.pkl")
    one, two = small_log(Path("one"), Path("link.pkl"))[1], small_log(Path("two"), Path("real/w.pkl"))[1]
    with one.running(), pytest.raises(UserError, match="another run is writing it"), two.running():
        pass


def test_a_state_of_another_format_or_with_other_numbers_is_refused(tmp_path):
    net, log = small_log(tmp_path)
    log.write(METRICS, net.state_dict(), {"a": {}})
    content = torch.load(log.path_for(".state"), weights_only=True)
    for damage in ({"format": "colorization training state 4"}, {"history": [METRICS | {"valid_loss": math.nan}]}):
        torch.save(content | damage, log.path_for(".state"))
        with pytest.raises(UserError, match="not a training state"):
            log.resume(lambda _: None)


def test_a_run_records_its_command_and_its_processes(tmp_path, monkeypatch):
    net, log = small_log(tmp_path)
    monkeypatch.setattr(sys, "argv", ["colorization.py", "--out-dir", "my runs"])
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    log.write(METRICS, net.state_dict(), {"a": {}})
    record = json.loads(log.path_for(".json").read_text())
    assert shlex.split(record["command"]) == sys.argv and record["processes"] == 3


def test_the_history_of_two_epochs(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("training.log.save_curve", lambda path, title, history: titles.append(title))
    net, log = small_log(tmp_path)
    for epoch in (1, 2):
        log.write(METRICS | {"epoch": epoch}, net.state_dict(), {"a": {}})
    log.finish()
    assert titles == ["CNN, unknown, epoch 2"]
    lines = log.path_for(".csv").read_bytes().split(b"\n")
    assert lines == [",".join(METRICS).encode(), b"1,1.0,2.0,0.5,0.1,3.0", b"2,1.0,2.0,0.5,0.1,3.0", b""]


def test_a_regression_run_is_resumed_and_draws_every_epoch(cifar, monkeypatch, capsys):
    command = [*SMALL, "--checkpoint", "r.pkl", "--plot"]
    with monkeypatch.context() as patched:
        stop_in_epoch(patched, 2, Stopped)
        with pytest.raises(Stopped):
            color_regression.main(command)
    capsys.readouterr()
    color_regression.main([*command, "--resume"])
    assert re.findall(r"epoch +\d/2 ", capsys.readouterr().out) == ["epoch   2/2 "]
    assert Path("outputs/r_epoch002.png").exists()
