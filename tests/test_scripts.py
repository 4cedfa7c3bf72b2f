"""Every script from its command line, on small data: what it writes, and what it says when it can't."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Payload
from PIL import Image

import activations
import color_regression
import colorization
import data
from models import create_model, stage_outputs
from utils.checkpoint import (
    FORMAT,
    OLD_FORMAT,
    load_checkpoint,
    load_network,
    new_network,
    pretrained_path,
    save_checkpoint,
)
from utils.console import UserError
from utils.files import PROJECT, atomic_write

SMALL = ["-f", "4", "-e", "2", "-b", "8"]
STAGES = ("downconv1", "downconv2", "rfconv", "upconv1", "upconv2", "finalconv")


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def is_picture(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return pixels.shape[0] > 100 and pixels.std() > 10  # neither tiny nor blank


@pytest.mark.parametrize("model", ["CNN", "UNet", "DUNet"])
def test_train_then_validate(cifar, small_palette, capsys, model):
    name = f"{model.lower()}_k3_f4"
    colorization.main([*SMALL, "--model", model, "-c", str(small_palette), "--plot"])
    trained = capsys.readouterr().out
    assert "20 training and 4 validation images of CIFAR-10 horse" in trained
    outputs = Path("outputs")
    for picture in ("images", "curve", "epoch001", "epoch002"):
        assert is_picture(outputs / f"{name}_{picture}.png")
    rows = rows_of(outputs / f"{name}.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]

    content = torch.load(outputs / f"{name}.pkl", weights_only=True)
    assert {key: content[key] for key in ("format", "model", "kernel", "num_filters", "data", "epoch")} == {
        "format": FORMAT,
        "model": model,
        "kernel": 3,
        "num_filters": 4,
        "data": "CIFAR-10 horse",
        "epoch": 2,
    }
    assert np.array_equal(content["palette"].numpy(), np.load(small_palette))
    assert content["metrics"]["valid_loss"] == float(rows[-1]["valid_loss"])

    colorization.main(["--valid", "--checkpoint", str(outputs / f"{name}.pkl")])  # says itself what it is
    validated = capsys.readouterr().out
    figures = f"validation loss {float(rows[-1]['valid_loss']):.5f}, accuracy {float(rows[-1]['valid_accuracy']):.2%}"
    assert figures in trained
    assert figures in validated
    assert is_picture(outputs / f"{model.lower()}_valid.png")


def test_two_runs_of_one_command_give_the_same_figures(cifar, small_palette):
    for folder in ("one", "two", "other"):
        seed = "5" if folder == "other" else "4"
        colorization.main([*SMALL, "-c", str(small_palette), "--out-dir", folder, "--seed", seed])
    one, two, other = (
        [dict(row, seconds="") for row in rows_of(f"{d}/unet_k3_f4.csv")] for d in ("one", "two", "other")
    )
    assert one == two != other
    states = [load_checkpoint(f"{folder}/unet_k3_f4.pkl").state_dict for folder in ("one", "two")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_checkpoint_is_saved_where_it_is_asked_for(cifar, small_palette):
    colorization.main([*SMALL, "-c", str(small_palette), "--checkpoint", "mine.pkl"])
    assert load_checkpoint("mine.pkl").model == "UNet"
    assert sorted(path.name for path in Path("outputs").iterdir()) == [
        "mine.csv",
        "mine.json",
        "mine.state",
        "mine_curve.png",
        "mine_images.png",
    ]


def test_held_out_training_images_validate(cifar, small_palette, capsys):
    colorization.main([*SMALL, "-c", str(small_palette), "--holdout", "6"])
    assert "14 training and 6 validation images" in capsys.readouterr().out
    colorization.main(["--valid", "--checkpoint", "outputs/unet_k3_f4.pkl", "--holdout", "6"])
    assert f"{float(rows_of('outputs/unet_k3_f4.csv')[-1]['valid_loss']):.5f}" in capsys.readouterr().out


def test_training_on_all_classes_then_on_one_holds_out_the_same_images(cifar, small_palette, capsys):
    flags = ["-c", str(small_palette), "-b", "8", "--holdout", "6"]
    colorization.main([*SMALL, *flags, "--category", "all", "--out-dir", "first"])
    assert "140 training and 60 validation images of CIFAR-10 all" in capsys.readouterr().out
    colorization.main([*flags, "-e", "1", "-l", "1e-8", "--start-from", "first/unet_k3_f4.pkl"])
    assert "14 training and 6 validation images of CIFAR-10 horse" in capsys.readouterr().out
    content = load_checkpoint("outputs/unet_k3_f4.pkl")
    assert content.data == "CIFAR-10 horse" and content.epoch == 1
    every, horses = (data.ImageSource(category=name, holdout=6).validation_images() for name in ("all", "horse"))
    held = {image.numpy().tobytes() for image in horses}
    assert len(held) == 6 and held < {image.numpy().tobytes() for image in every}
    learned = data.ImageSource(category="all", holdout=6).training_images()
    assert not held & {image.numpy().tobytes() for image in learned}


def test_regression(cifar, capsys):
    color_regression.main([*SMALL, "--checkpoint", "r.pkl"])
    trained = capsys.readouterr().out
    assert is_picture("outputs/r_curve.png")
    assert is_picture("outputs/r_images.png")
    color_regression.main(["--checkpoint", "r.pkl"])
    validated = capsys.readouterr().out
    line = re.search(r"images of CIFAR-10 horse: (validation mean squared error (\d.\d+))", validated)
    assert line[1] in trained
    assert float(line[2]) == pytest.approx(float(rows_of("outputs/r.csv")[-1]["valid_loss"]), abs=1e-6)
    copied = re.search(r"copying the gray input to R, G and B: (\d.\d+)", validated)
    assert copied[0] in trained
    images = data.ImageSource().validation_images().numpy() / 256
    assert float(copied[1]) == pytest.approx(((images - images.mean(1, keepdims=True)) ** 2).mean(), abs=1e-6)
    assert is_picture("outputs/regressioncnn_valid.png")


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


def test_fitting_a_palette(cifar, capsys):
    data.main(["--colors", "6", "--output", "p.npy"])
    assert re.search(r"palette color: 0\.\d{5} ", capsys.readouterr().out)
    first = Path("p.npy").read_bytes()
    assert data.load_palette("p.npy").shape == (6, 3)
    data.main(["--colors", "6", "--output", "p.npy"])
    assert Path("p.npy").read_bytes() == first


def test_the_seed_of_k_means_has_its_range(cifar, fails):
    assert "--seed: '-1' is not a number from 0" in fails(data.main, "--seed", "-1")


def test_a_category_without_a_shipped_palette_gets_its_own(cifar, capsys):
    colorization.main([*SMALL, "--category", "cat", "-c", "3"])
    out = capsys.readouterr().out
    assert "fitting a palette of 3 colors" in out
    assert "CIFAR-10 cat" in out
    assert load_checkpoint("outputs/unet_k3_f4.pkl").palette.shape == (3, 3)


def test_the_sample_photographs_need_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "MIN_CROPS", 60)
    monkeypatch.setenv("COLORIZATION_DATA", "nowhere")
    colorization.main([*SMALL, "--data", "sample", "-e", "1", "-c", "4"])
    assert "sample photographs" in capsys.readouterr().out
    assert is_picture("outputs/unet_k3_f4_images.png")


def test_bare_weights_take_their_description_from_the_flags(cifar, small_palette, fails, capsys):
    torch.save(create_model("DUNet", 3, 4, 5).state_dict(), "bare.pkl", _use_new_zipfile_serialization=False)
    flags = ["--valid", "--checkpoint", "bare.pkl", "-c", str(small_palette)]
    colorization.main([*flags, "--model", "DUNet", "-f", "4"])
    assert "DUNet, kernel 3, 4 filters, 5 colors" in capsys.readouterr().out
    assert "name the network with --model" in fails(colorization.main, *flags)
    bare = [*flags[:3], "--model", "DUNet", "-f", "4"]
    assert "bare.pkl: a DUNet needs its palette; give it with --colors" in fails(colorization.main, *bare)
    assert "bare.pkl: not a file of weights of DUNet" in fails(colorization.main, *flags, "--model", "DUNet")
    assert "bare.pkl: not a file of weights of CNN" in fails(colorization.main, *flags, "--model", "CNN", "-f", "4")


@pytest.fixture
def trained(cifar, small_palette):
    """A UNet's checkpoint."""
    colorization.main(["-f", "4", "-e", "1", "-b", "8", "-c", str(small_palette), "--checkpoint", "u.pkl"])
    return Path("u.pkl")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "CNN"], "u.pkl: its model is UNet, not CNN"),
        (["-f", "8"], "its number of filters is 4, not 8"),
        (["-k", "5"], "its kernel is 3, not 5"),
        (["-c", "24"], "not made with the palette of --colors"),
        (["-c", "gone.npy"], "gone.npy: cannot read the palette"),
        (["-c", "1"], "--colors 1: 2 to 256"),
        (["--category", "zebra"], "invalid choice: 'zebra'"),
        (["--device", "abacus"], "--device abacus: no such device"),
        (["--device", "cuda:99"], "--device cuda:99: no such GPU"),
        (["--device", "mps"], "--device mps: no such device; use cpu, cuda or cuda:N"),
        (["--kernel", "4"], "--kernel: invalid choice: 4 (choose from 1, 3, 5,"),
        (["--holdout", "20"], "--holdout 20: there are only 20"),
    ],
)
def test_flags_that_do_not_fit(trained, fails, flags, said):
    assert said in fails(colorization.main, "--valid", "--checkpoint", trained, *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-e", "0"], "-e/--epochs"),
        (["-b", "1"], "-b/--batch-size"),
        (["-b", "21"], "--batch-size 21: there are only 20"),
        (["-l", "0"], "-l/--learn-rate"),
        (["-l", "nan"], "-l/--learn-rate"),
        (["-f", "many"], "-f/--num-filters"),
        (["--seed", "-1"], "-s/--seed"),
        (["--model", "GAN"], "invalid choice: 'GAN'"),
        (["--kernel", "4"], "--kernel: invalid choice: 4 (choose from 1, 3, 5,"),
        (["--holdout", "20"], "--holdout 20: there are only 20"),
        (["--category", "zebra"], "invalid choice: 'zebra'"),
    ],
)
def test_flags_out_of_range(cifar, fails, flags, said):
    assert said in fails(colorization.main, *flags)
    assert not Path("outputs").exists()


NUMBERS = ["--epochs", "--batch-size", "--learn-rate", "--kernel", "--num-filters", "--seed"]


@pytest.mark.parametrize("flag", [*NUMBERS, "--holdout"])
def test_every_number_has_its_range(cifar, fails, flag):
    for value in ("-1", "1e30", "nan", "inf", "many", ""):
        assert flag in fails(colorization.main, f"{flag}={value}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(cifar, fails):
    assert "--device cuda: no such GPU on this machine; leave" in fails(colorization.main, "--device", "cuda")


@pytest.mark.parametrize("number", ["-1", "4", "1000000"])
def test_no_such_image(trained, fails, number):
    assert f"no test image {number}: indices run from 0 to 3" in fails(
        activations.main, number, "--checkpoint", trained
    )


def test_no_shipped_weights(cifar, fails):
    assert "no weights are shipped" in fails(colorization.main, "--valid", "-f", "5")


def test_files_that_are_no_checkpoints(trained, fails, tmp_path):
    whole = trained.read_bytes()
    mark = tmp_path / "mark"
    contents = {"empty": b"", "html": b"<html></html>", "short": whole[:-100], "half": whole[: len(whole) // 2]}
    for name, content in contents.items():
        Path(name).write_bytes(content)
        assert f"{name}: not a checkpoint" in fails(colorization.main, "--valid", "--checkpoint", name)
    torch.save({"weights": Payload(mark)}, "hostile")
    assert "hostile: not a checkpoint" in fails(colorization.main, "--valid", "--checkpoint", "hostile")
    assert not mark.exists()
    torch.save([1, 2], "list")
    assert "list: a PyTorch file, but neither" in fails(colorization.main, "--valid", "--checkpoint", "list")
    content = torch.load(trained, weights_only=True)
    content["state_dict"]["finalconv.bias"][0] = np.nan
    torch.save(content, "nan")
    assert (
        "nan: not a file of weights of UNet, kernel 3, 4 filters, 5 colors, or a corrupt one (finalconv.bias is"
        in fails(colorization.main, "--valid", "--checkpoint", "nan")
    )
    assert "gone: cannot read" in fails(colorization.main, "--valid", "--checkpoint", "gone")


def test_checkpoints_that_describe_themselves_wrongly(trained, fails):
    lies = [
        ("kernel", 10**9 + 1),
        ("kernel", 3.0),
        ("num_filters", "many"),
        ("num_filters", 4.0),
        ("model", "GAN"),
        ("model", ["UNet"]),
        ("model", {}),
        ("palette", None),
        ("state_dict", {"finalconv.weight": "heavy"}),
        ("state_dict", "heavy"),
    ]
    content = torch.load(trained, weights_only=True)
    for name, lie in lies:
        torch.save(content | {name: lie}, "lie.pkl")
        assert "lie.pkl: " in fails(colorization.main, "--valid", "--checkpoint", "lie.pkl")
    for name in ("kernel", "num_filters", "model", "palette", "state_dict", "metrics"):
        torch.save({key: value for key, value in content.items() if key != name}, "lie.pkl")
        assert f"lie.pkl: not a checkpoint, or a corrupt one ('{name}')" in fails(
            colorization.main, "--valid", "--checkpoint", "lie.pkl"
        )


def test_checkpoints_of_the_first_version_load(tmp_path, monkeypatch):
    """They called the metrics figures, and numbered the decoder's batch norm as the handout does."""
    monkeypatch.chdir(tmp_path)
    net, checkpoint = new_network(np.linspace([0, 0.1, 0], [0.9, 0.8, 0.99], 5), model="CNN", kernel=3, num_filters=2)
    with torch.no_grad():
        net.upconv1[1].bias.fill_(7)
    save_checkpoint("old.pkl", checkpoint)
    content = torch.load("old.pkl", weights_only=True)
    renamed = {re.sub(r"^(upconv\d)\.1\.", r"\1.2.", name): v for name, v in content["state_dict"].items()}
    assert "upconv1.2.bias" in renamed
    old = content | {"format": OLD_FORMAT, "figures": {"valid_loss": 1.5}, "state_dict": renamed}
    del old["metrics"]
    torch.save(old, "old.pkl")
    loaded, checkpoint = load_network("old.pkl")
    assert checkpoint.metrics == {"valid_loss": 1.5}
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_regression_is_no_classifier_and_the_other_way_round(trained, fails):
    color_regression.main([*SMALL, "-e", "1", "--checkpoint", "r.pkl"])
    assert "r.pkl: a RegressionCNN predicts RGB, not palette colors" in fails(
        colorization.main, "--valid", "--checkpoint", "r.pkl"
    )
    assert "its model is UNet, not RegressionCNN" in fails(color_regression.main, "--checkpoint", trained)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"), atomic_write(tmp_path / "folder") as file:
        file.write(b"new")
    with pytest.raises(UserError, match="cannot be written"), atomic_write(path / "below" / "a" / "file"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("script", "flags", "useless", "mode"),
    [
        (colorization, ["--valid", "--start-from", "u.pkl"], "--start-from", "--valid"),
        (colorization, ["--valid", "--resume"], "--resume", "--valid"),
        (colorization, ["--valid", "-e", "3"], "--epochs", "--valid"),
        (colorization, ["--valid", "--working-size", "32"], "--working-size", "--data cifar10"),
        (colorization, ["--valid", "--seed", "3"], "--seed", "--valid without --colors K"),
        (colorization, ["--json", "m.json"], "--json", "training"),
        (colorization, ["--colorize", "a.png", "--category", "cat"], "--category", "--colorize without --colors K"),
        (colorization, ["--colorize", "a.png", "--data", "x"], "--data", "--colorize without --colors K"),
        (colorization, ["--colorize", "a.png", "--valid"], "--valid", "--colorize"),
        (colorization, ["--colorize", "a.png", "-b", "10"], "--batch-size", "--colorize"),
        (color_regression, ["--start-from", "r.pkl"], "--start-from", "validation (training needs --epochs)"),
        (activations, ["a.png", "--category", "cat"], "--category", "an image file"),
        (color_regression, ["--seed", "3"], "--seed", "validation (training needs --epochs)"),
        (color_regression, ["--resume"], "--resume", "validation (training needs --epochs)"),
        (color_regression, ["--valid", "-e", "3"], "--epochs", "--valid"),
        (color_regression, ["-e", "3", "--json", "m.json"], "--json", "training"),
        (colorization, ["--data", "sample", "--category", "cat"], "--category cat", "--data sample"),
    ],
)
def test_flags_without_effect_are_refused(cifar, fails, script, flags, useless, mode):
    assert f"{useless} has no effect with {mode}; remove it" in fails(script.main, *flags)
    assert not Path("outputs").exists()


def test_a_fitted_palette_is_that_of_the_seed(cifar, fails):
    flags = ["-c", "3", "--category", "cat", "-s", "1"]
    colorization.main([*SMALL, *flags, "--checkpoint", "cat.pkl"])
    colorization.main(["--valid", *flags, "--checkpoint", "cat.pkl"])
    assert "--colors" in fails(colorization.main, "--valid", *flags, "-c", "4", "--checkpoint", "cat.pkl")


def test_a_folder_is_no_file_to_write(trained, fails):
    assert "it is a folder" in fails(colorization.main, "--valid", "--checkpoint", trained, "--json", ".")
    assert "it is a folder" in fails(data.main, "--output", ".")
    assert "it is a folder" in fails(colorization.main, *SMALL, "--checkpoint", ".")


def test_from_the_shell():
    """Exit codes and lines as a user sees them, and no work at import."""

    def shell(*argv):
        return subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=PROJECT, env=os.environ)

    failed = shell("colorization.py", "--valid", "--checkpoint", "nowhere.pkl")
    assert failed.returncode == 2
    line = "nowhere.pkl: cannot read the checkpoint (No such file or directory); name another file, or train it again"
    assert failed.stderr == f"colorization.py: {line}\n"
    helped = shell("colorization.py", "--help")
    assert helped.returncode == 0
    for flag in (
        "--model",
        "--checkpoint",
        "--valid",
        "--colors",
        "--kernel",
        "--num-filters",
        "--learn-rate",
        "--plot",
    ):
        assert flag in helped.stdout


def test_a_closed_pipe_ends_a_script_quietly():
    """As in `python data.py --colors 2 | head -1`: no traceback."""
    code = "from utils.console import run_script; run_script(lambda argv: print('a line'))"
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_training_does_not_replace_the_shipped_weights(cifar, small_palette, fails):
    before = pretrained_path().read_bytes()
    assert "training does not write to weights/" in fails(
        colorization.main, "-e", 1, "-b", 8, "-c", small_palette, "--checkpoint", pretrained_path()
    )
    assert pretrained_path().read_bytes() == before
