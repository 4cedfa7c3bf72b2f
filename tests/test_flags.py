"""Flags out of range, and flags without effect."""

import sys
from pathlib import Path

import pytest

import activations
import color_regression
import colorization
from utils import flags as shared_flags


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
        (["--model", "GAN"], "GAN"),
        (["--kernel", "4"], "--kernel"),
        (["--holdout", "20"], "--holdout 20: there are only 20"),
        (["--category", "zebra"], "zebra"),
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


@pytest.mark.parametrize(
    ("script", "argv"),
    [(colorization, []), (color_regression, []), (activations, ["3"])],
)
def test_every_flag_has_an_effect_in_some_mode(script, argv, monkeypatch):
    seen = []
    monkeypatch.setattr(shared_flags.Parser, "parse_args", lambda parser, words: seen.append(parser) or sys.exit())
    with pytest.raises(SystemExit):
        script.main(argv)
    names = {action.dest for action in seen[0]._actions} - {"help"}
    assert names and names <= set().union(*shared_flags.USED_FLAGS.values())


@pytest.mark.parametrize(
    ("script", "flags", "useless", "mode"),
    [
        (colorization, ["--valid", "--start-from", "u.pkl"], "--start-from", "--valid"),
        (colorization, ["--valid", "--resume"], "--resume", "--valid"),
        (colorization, ["--valid", "-e", "3"], "--epochs", "--valid"),
        (colorization, ["--valid", "--working-size", "32"], "--working-size", "--data cifar10"),
        (colorization, ["--valid", "--seed", "3"], "--seed", "--valid without --colors K"),
        (colorization, ["--saturation", "2"], "--saturation", "training"),
        (colorization, ["--colorize", "a.png", "--category", "cat"], "--category", "--colorize without --colors K"),
        (colorization, ["--colorize", "a.png", "--data", "x"], "--data", "--colorize without --colors K"),
        (colorization, ["--colorize", "a.png", "--valid"], "--valid", "--colorize"),
        (colorization, ["--colorize", "a.png", "-b", "10"], "--batch-size", "--colorize"),
        (color_regression, ["--start-from", "r.pkl"], "--start-from", "validation (training needs --epochs)"),
        (activations, ["a.png", "--category", "cat"], "--category", "an image file"),
        (color_regression, ["--seed", "3"], "--seed", "validation (training needs --epochs)"),
        (color_regression, ["--resume"], "--resume", "validation (training needs --epochs)"),
        (color_regression, ["--valid", "--seed", "3"], "--seed", "validation (training needs --epochs)"),
        (color_regression, ["--valid", "-e", "3"], "--epochs", "--valid"),
        (colorization, ["--data", "sample", "--holdout", "9"], "--holdout", "--data sample"),
        (colorization, ["--data", "sample", "--category", "cat"], "--category", "--data sample"),
    ],
)
def test_flags_without_effect_are_refused(cifar, fails, script, flags, useless, mode):
    assert f"{useless} has no effect with {mode}; remove it" in fails(script.main, *flags)
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    "flag",
    [
        "-e=10001",
        "-b=100001",
        "-l=10.1",
        "-s=4294967296",
        "-f=1025",
        "--holdout=1000001",
        "--temperature=0.009",
        "--working-size=3",
        "--working-size=513",
        "--picture-weight=-0.1",
    ],
)
def test_numbers_just_out_of_range(fails, flag):
    assert "is not a number from" in fails(colorization.main, *flag.split("="))


def test_bounds_and_flags_with_effect_are_accepted():
    args = colorization.parse(
        [
            "-e",
            "10000",
            "-b",
            "2",
            "-l",
            "10",
            "-s",
            "4294967295",
            "-f",
            "1024",
            "--holdout",
            "0",
            "--temperature",
            "0.01",
            "--working-size",
            "4",
            "--picture-weight",
            "0",
        ]
    )
    assert (args.epochs, args.batch_size, args.learning_rate, args.num_filters) == (10_000, 2, 10, 1024)
    assert (args.seed, args.temperature, args.working_size) == (2**32 - 1, 0.01, 4)
    for words in (
        "--valid --temperature 1",
        "--valid -c 5 -s 3",
        "--colorize a.png --temperature 1 --working-size 48",
        "--colorize a.png -c 5 -s 3 --holdout 2",
    ):
        colorization.parse(words.split())


def test_images_have_no_effect_without_a_palette_to_fit(cifar, fails):
    assert "--holdout has no effect with --colorize without --colors K" in fails(
        colorization.main, "--colorize", "a.png", "--holdout", "3"
    )
    assert "--data has no effect with an image file" in fails(activations.main, "a.png", "--data", "x")


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch_size", "4", "--learn_rate", "0.01", "--out_dir", "outputs"],
        ["--batch_size=4", "--gpu"],
        ["--colours", "5", "-g"],
        ["--model", "dunet", "--num_filters", "2"],
        ["--model", "DilatedUNet"],
        ["--model", "unet"],
        ["--model", "cnn"],
    ],
)
def test_flags_of_the_original_course(flags):
    args = colorization.parse(["-e", "3", *flags])
    assert args.epochs == 3
    expected = {"dunet": "DUNet", "DilatedUNet": "DUNet", "unet": "UNet", "cnn": "CNN"}.get(flags[1])
    assert args.model == expected
    assert args.batch_size == (4 if flags[0].startswith("--batch") else 25)
    assert args.colors == ("5" if flags[0] == "--colours" else None)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-n", "32"], "-n is -f here (--num-filters); --help shows all flags"),
        (["-n32"], "-n is -f here"),
        (["--colorize", ""], "an argument is empty"),
        (["-d"], "-d is not needed: images are used at their own size; remove it"),
        (["--downsize-input"], "--downsize-input is not needed"),
        (["--downsize_input"], "--downsize-input is not needed"),
        (["--bacth-size", "3"], "--bacth-size"),
        (["-e"], "-e"),
        (["-e", "9" * 5000], "-e"),
        (["--seed", "9" * 5000], "-s/--seed"),
        (["-l", "9" * 5000], "-l"),
        (["-c", "9" * 5000], "--colors 99999999999999999999: 2 to 256 colors"),
        (["--colors", "-5"], "-5"),
        (["--checkpoint", "9" * 5000, "--valid"], "name"),
    ],
)
def test_wrong_flags_are_one_line(flags, said, fails):
    assert said in fails(colorization.main, *flags)


def test_an_index_of_many_digits(cifar, fails):
    assert "there is no test image 99999999999999999999: indices run from 0 to" in fails(activations.main, "9" * 5000)


def test_values_may_contain_underscores_and_equals_signs():
    assert colorization.parse(["--out_dir=my_runs=1"]).out_dir == Path("my_runs=1")
    assert colorization.parse(["--out-dir", "runs="]).out_dir == Path("runs=")


def test_the_largest_kernel():
    assert colorization.parse(["--kernel", "15"]).kernel == 15


def test_an_empty_value_is_refused(fails):
    for flag in ("--colors", "--out-dir"):
        assert f"{flag} is empty" in fails(colorization.main, "--valid", f"{flag}=")
        assert "an argument is empty" in fails(colorization.main, "--valid", flag, "")


def test_with_a_palette_file_a_seed_is_refused(fails):
    for mode in (["--valid"], ["--colorize", "a.png"]):
        assert "--seed has no effect with" in fails(colorization.main, *mode, "-c", "palette.npy", "--seed", "3")


@pytest.mark.parametrize("script", [colorization, color_regression])
def test_the_seed_is_that_of_the_first_weights(cifar, small_palette, monkeypatch, script):
    seeds, new_network = [], script.new_network

    def recorded(palette, seed, **architecture):
        seeds.append(seed)
        return new_network(palette, seed, **architecture)

    monkeypatch.setattr(script, "new_network", recorded)
    colors = ["-c", str(small_palette)] if script is colorization else []
    script.main(["-e", "1", "-b", "8", "-f", "2", "--seed", "3", *colors])
    assert seeds == [3]


@pytest.mark.parametrize(("script", "flags"), [(colorization, ["--colorize", "a.png"]), (color_regression, [])])
def test_torchrun_only_trains(monkeypatch, fails, script, flags):
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    assert "only training runs in several processes" in fails(script.main, *flags)
