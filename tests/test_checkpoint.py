"""Checkpoints and bare weights: what loads, and what is refused."""

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Payload
from helpers import PALETTE, SMALL, checkpoint_bytes

import color_regression
import colorization
from models import create_model
from training import log
from utils import checkpoint
from utils.checkpoint import (
    OLD_FORMAT,
    Checkpoint,
    check_sizes,
    check_values,
    load_checkpoint,
    load_network,
    new_network,
    pretrained_path,
    save_checkpoint,
)
from utils.console import UserError


@pytest.mark.parametrize(("name", "value"), [("downconv1.0.weight", 1e300), ("downconv1.2.running_var", -1.0)])
def test_weights_that_give_no_finite_output(tmp_path, name, value):
    _, small = new_network(PALETTE, model="CNN", kernel=3, num_filters=2)
    small.state_dict[name] = torch.full_like(small.state_dict[name], value, dtype=torch.float64)
    save_checkpoint(tmp_path / "u.pkl", small)
    with pytest.raises(UserError, match=f"{name} is not finite"):
        checkpoint.load_network(tmp_path / "u.pkl")


def test_a_checkpoint_of_this_package_is_stored_uncompressed(tmp_path):
    save_checkpoint(tmp_path / "u.pkl", new_network(PALETTE, model="CNN", kernel=3, num_filters=2)[1])
    assert load_checkpoint(tmp_path / "u.pkl").num_filters == 2


def test_whole_pickled_modules_and_plain_pickles_are_no_checkpoints(tmp_path):
    path = tmp_path / "module.pkl"
    torch.save(create_model("CNN", 3, 2, 5), path)
    with pytest.raises(UserError, match=r"module\.pkl: not a checkpoint"):
        checkpoint.load_checkpoint(path)
    path.write_bytes(pickle.dumps({"a": np.zeros(3)}))
    with pytest.raises(UserError, match=r"module\.pkl: not a checkpoint"):
        checkpoint.load_checkpoint(path)


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path):
    whole, path = checkpoint_bytes(), tmp_path / "cut.pkl"
    for end in range(0, len(whole), math.ceil(len(whole) / 200)):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"cut\.pkl: not a checkpoint"):
            checkpoint.load_checkpoint(path)


def test_bare_weights_take_their_description_from_the_flags(cifar, small_palette, fails, capsys):
    torch.save(create_model("DUNet", 3, 4, 5).state_dict(), "bare.pkl", _use_new_zipfile_serialization=False)
    flags = ["--valid", "--checkpoint", "bare.pkl", "-c", str(small_palette)]
    colorization.main([*flags, "--model", "DUNet", "-f", "4"])
    assert "DUNet, kernel 3, 4 filters, 5 colors" in capsys.readouterr().out
    assert "name the network with --model" in fails(colorization.main, *flags)
    bare = [*flags[:3], "--model", "DUNet", "-f", "4"]
    assert "bare.pkl: a DUNet needs its palette; give it with --colors" in fails(colorization.main, *bare)
    colorization.main([*flags, "--model", "dunet"])  # the shapes tell the rest
    assert "DUNet, kernel 3, 4 filters, 5 colors" in capsys.readouterr().out
    assert "bare.pkl: a network for 5 colors, but --colors has 24" in fails(
        colorization.main, *flags[:3], "-c", "24", "--model", "DUNet"
    )
    wider = fails(colorization.main, *flags, "--model", "DilatedUNet", "-f", "8")
    assert "bare.pkl: not a file of weights of DUNet, kernel 3, 8 filters" in wider
    assert "bare.pkl: not a file of weights of CNN" in fails(colorization.main, *flags, "--model", "CNN", "-f", "4")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "CNN"], "u.pkl: its model is UNet, not CNN"),
        (["-f", "8"], "its number of filters is 4, not 8"),
        (["-k", "5"], "its kernel is 3, not 5"),
        (["-c", "24"], "it has 5 colors, not the 24 of --colors; leave --colors out"),
        (["-c", "gone.npy"], "gone.npy: cannot read the palette"),
        (["-c", "1"], "--colors 1: 2 to 256"),
        (["--category", "zebra"], "zebra"),
        (["--device", "abacus"], "--device abacus: no such device"),
        (["--device", "cuda:99"], "--device cuda:99: no such GPU"),
        (["--device", "mps"], "--device mps: no such GPU on this machine"),
        (["--kernel", "4"], "--kernel"),
        (["--holdout", "20"], "--holdout 20: there are only 20"),
    ],
)
def test_flags_that_do_not_fit(trained, fails, flags, said):
    assert said in fails(colorization.main, "--valid", "--checkpoint", trained, *flags)


def test_no_shipped_weights(cifar, fails):
    said = fails(colorization.main, "--valid", "-f", "5")
    assert "no such weights are shipped" in said and "photograph_deep_unet_k3_f32.pkl, " in said


def test_a_training_state_is_no_checkpoint(trained, fails):
    state = trained.with_suffix(".state")
    torch.save({"format": log.STATE_FORMAT, "trainer": {"model": load_checkpoint(trained).state_dict}}, state)
    said = fails(colorization.main, "--valid", "--checkpoint", state)
    assert "the training state of a run, for --resume; name its checkpoint, a .pkl file" in said


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


def optimizer_state():
    layers = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    return torch.optim.Adam([{"params": layer.parameters()} for layer in layers]).state_dict()


WRAPPED = {
    "DataParallel": lambda weights: {f"module.{name}": value for name, value in weights.items()},
    "torch.compile": lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    "both": lambda weights: {f"module._orig_mod.{name}": value for name, value in weights.items()},
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "arch": "unet"},
    "model_state_dict": lambda weights: {
        "model_state_dict": weights,
        "optimizer_state_dict": {"state": {}},
        "loss": 0.5,
    },
    "Lightning": lambda weights: {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"net.{name}": value for name, value in weights.items()},
        "callbacks": {},
        "hyper_parameters": {"lr": 0.1},
    },
    "weight average": lambda weights: {"n_averaged": torch.tensor(3)} | {f"module.{n}": v for n, v in weights.items()},
    "a larger module": lambda weights: {"loss.weight": torch.ones(3)} | {f"net.{n}": v for n, v in weights.items()},
    "another name, deeper": lambda weights: {"ema": {"params": weights}, "args": ["-e", "3"]},
    "with an optimizer": lambda weights: {"optimizer": optimizer_state(), "weights": weights},
    "gradients": lambda weights: {name: torch.nn.Parameter(v, v.is_floating_point()) for name, v in weights.items()},
    "half precision": lambda weights: {n: v.half() if v.is_floating_point() else v for n, v in weights.items()},
    "bfloat16": lambda weights: {n: v.bfloat16() if v.is_floating_point() else v for n, v in weights.items()},
    "float64": lambda weights: {n: v.double() if v.is_floating_point() else v for n, v in weights.items()},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_as_others_save_them(tmp_path, wrap):
    weights = create_model("UNet", 5, 4, 5).state_dict()
    torch.save(wrap(weights), tmp_path / "w.pt")
    net, content = load_network(tmp_path / "w.pt", PALETTE, model="UNet")
    assert (content.kernel, content.num_filters) == (5, 4)
    for name, value in net.state_dict().items():
        assert value.dtype == weights[name].dtype
        assert torch.allclose(value.float(), weights[name].float(), atol=2e-3), name


class Traced(torch.nn.Module):
    def forward(self, x):
        return x


FOREIGN = {
    "a plain pickle, not a file of torch.save": lambda path: path.write_bytes(pickle.dumps({"a": 1}, 5)),
    "asks for models.UNet, not only for weights": lambda path: torch.save(create_model("UNet", 3, 2, 5), path),
    "a traced network": lambda path: torch.jit.script(Traced()).save(str(path)),
    "it is a plain pickle|invalid|truncated|lacks": lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)),
    "opcode that such a file does not need": lambda path: torch.save({"a": 1}, path, pickle_protocol=5),
    "no file of torch.save": lambda path: path.write_bytes(bytes(100)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(("said", "save"), FOREIGN.items(), ids=FOREIGN)
def test_files_that_are_not_weights_say_how_to_save_them(tmp_path, said, save):
    save(tmp_path / "w.pt")
    with pytest.raises(UserError, match=f"{said}.*torch.save\\(net.state_dict\\(\\), FILE\\)"):
        load_network(tmp_path / "w.pt", PALETTE, model="UNet")


@pytest.mark.parametrize("shape", [(0, 1, 3, 3), (32, 1, 0, 0), (32, 1, 4, 4), (32, 1, 17, 17), (2000, 1, 3, 3)])
def test_shapes_that_no_network_has(tmp_path, shape):
    weights = create_model("UNet", 3, 2, 5).state_dict() | {"downconv1.0.weight": torch.zeros(shape)}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(UserError, match="its kernel, number of filters or working size is not supported"):
        load_network(tmp_path / "w.pt", PALETTE, model="UNet")
    torch.save({0: torch.zeros(2), "a": 1}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="neither a checkpoint of this package nor a state dict"):
        load_network(tmp_path / "w.pt", PALETTE, model="UNet")


def test_weights_must_justify_the_memory_that_they_ask_for(tmp_path):
    for model, kernel, filters in (("UNet", 15, 1024), ("UNet", 3, 64), ("DeepUNet", 3, 256)):
        content = Checkpoint(model, kernel, filters, PALETTE, create_model(model, 3, 32, 5).state_dict())
        save_checkpoint(tmp_path / "u.pkl", content)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="size mismatch"):
            patch.setattr(torch.nn.init, "uniform_", lambda weight, *_: weight.is_meta or pytest.fail("takes memory"))
            load_network(tmp_path / "u.pkl")
    shared = torch.zeros(1000)
    for weights in ({"a": torch.zeros(1).expand(1000)}, {str(number): shared for number in range(2)}):
        with pytest.raises(ValueError, match="its tensors claim to be larger than they are"):
            check_values(weights)
    check_values({"a": shared[:10], "b": shared[10:]})


def test_state_dicts_as_pytorch_makes_them_load_in_any_precision(tmp_path):
    """With their metadata, by which load_state_dict() could be told to keep the tensors of the file."""
    for dtype in (torch.float16, torch.float64):
        net = create_model("UNet", 3, 2, 5)
        content = vars(Checkpoint("UNet", 3, 2, torch.from_numpy(PALETTE), net.to(dtype).state_dict()))
        torch.save(content | {"format": "colorization checkpoint 2"}, tmp_path / "u.pkl")
        loaded, _ = load_network(tmp_path / "u.pkl")
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("model", [["UNet"], None, 5])
def test_a_network_without_a_name_is_refused(tmp_path, model):
    content = vars(Checkpoint(model, 3, 2, torch.from_numpy(PALETTE), {}))
    torch.save(content | {"format": "colorization checkpoint 2"}, tmp_path / "u.pkl")
    with pytest.raises(UserError, match="its network has no name"):
        load_network(tmp_path / "u.pkl")


def test_half_precision_that_overflows_says_what_did(tmp_path):
    weights = create_model("UNet", 3, 2, 5).state_dict()
    weights["rfconv.1.running_var"][0] = 1e5
    torch.save({name: value.half() for name, value in weights.items()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"rfconv.1.running_var is not finite.*half precision"):
        load_network(tmp_path / "w.pt", PALETTE, model="UNet")


@pytest.mark.parametrize(
    ("model", "said"), [("RegressionCNN", "a RegressionCNN has no palette"), ("GAN", "unknown network")]
)
def test_a_checkpoint_whose_model_was_changed(trained, tmp_path, model, said):
    torch.save(torch.load(trained, weights_only=True) | {"model": model}, tmp_path / "w.pkl")
    with pytest.raises(UserError, match=said):
        load_network(tmp_path / "w.pkl")


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
        assert f"lie.pkl: not a checkpoint, or a corrupt one (it lacks '{name}')" in fails(
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
    del old["metrics"], old["working_size"]
    torch.save(old, "old.pkl")
    loaded, checkpoint = load_network("old.pkl")
    assert checkpoint.metrics == {"valid_loss": 1.5} and checkpoint.working_size == 64
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_regression_is_no_classifier_and_the_other_way_round(trained, fails):
    color_regression.main([*SMALL, "-e", "1", "--checkpoint", "r.pkl"])
    assert "r.pkl: a RegressionCNN predicts RGB, not palette colors" in fails(
        colorization.main, "--valid", "--checkpoint", "r.pkl"
    )
    for flags in (["--checkpoint", trained], ["-e", "1", "--start-from", trained]):
        assert "its model is UNet, not RegressionCNN" in fails(color_regression.main, *flags)


@pytest.mark.parametrize(
    ("name", "least", "below", "most", "above"),
    [
        ("kernel", 1, 0, 15, 17),
        ("kernel", 3, 4, 5, 6),
        ("num_filters", 1, 0, 1024, 1025),
        ("working_size", 4, 3, 512, 513),
    ],
)
def test_supported_sizes(name, least, below, most, above):
    sizes = {"kernel": 3, "num_filters": 2, "working_size": 64}
    for size in (least, most):
        check_sizes(*(sizes | {name: size}).values())
    for size in (below, above, -least, float(least), True):
        with pytest.raises(ValueError, match="not supported"):
            check_sizes(*(sizes | {name: size}).values())


def test_a_new_network_is_that_of_its_seed():
    one, same, other = (new_network(PALETTE, seed, num_filters=2)[0].finalconv.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    net, content = new_network(PALETTE, model="CNN", num_filters=2)
    assert (
        str(content) == f"CNN, kernel 3, 2 filters, 5 colors: {sum(p.numel() for p in net.parameters()):,} parameters"
    )


def test_paths_of_shipped_weights():
    assert pretrained_path(photographs=True).name == "photograph_deep_unet_k3_f32.pkl"
    assert pretrained_path(photographs=True, model="DeepUNet", num_filters=32) == pretrained_path(photographs=True)
    assert pretrained_path(photographs=True, model="CNN").name == "cnn_k3_f32.pkl"
    assert pretrained_path().name == "unet_k3_f32.pkl"


def test_saved_weights_are_contiguous(tmp_path):
    _, content = new_network(PALETTE, model="CNN", num_filters=2)
    save_checkpoint(tmp_path / "u.pkl", content)
    assert all(
        value.is_contiguous() for value in torch.load(tmp_path / "u.pkl", weights_only=True)["state_dict"].values()
    )


def test_a_palette_that_is_almost_the_same_is_another(trained, fails):
    np.save("close.npy", np.linspace([0, 0.1, 0], [0.9, 0.8, 0.985], 5))
    assert "not made with the palette" in fails(
        colorization.main, "--valid", "--checkpoint", trained, "-c", "close.npy"
    )
