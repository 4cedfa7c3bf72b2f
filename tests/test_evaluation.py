"""Validation: exact metrics, for any batch size."""

import math
from pathlib import Path

import pytest
import torch
from helpers import BLACK_AND_WHITE, CPU, PALETTE, Fixed, random_dataset

import colorization
from data import ImageDataset, ImageSource, to_rgb
from models import create_model, predict
from training import evaluation
from training.evaluation import batch_metrics, cross_entropy, evaluate, format_metrics, run_validation
from utils.checkpoint import new_network


def test_loss_and_accuracy_by_hand():
    # Two colors with probabilities 3/4 and 1/4: ln(4/3) where the first is right, ln(4) where the second is.
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0], dtype=torch.uint8).view(2, 2, 2)
    logits = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1).expand(2, 2, 2, 2)
    loss = (6 * math.log(4 / 3) + 2 * math.log(4)) / 8
    assert cross_entropy(logits, labels).item() == pytest.approx(loss, abs=1e-6)
    assert batch_metrics(logits, labels).tolist() == pytest.approx([loss, 6 / 8], abs=1e-6)
    wrong_by_more_and_by_less = torch.eye(3)[[1, 1, 1, 1]].T.view(1, 3, 1, 4), torch.tensor([[[0, 0, 1, 2]]])
    assert batch_metrics(*wrong_by_more_and_by_less)[1] == 1 / 4


def test_squared_error_by_hand():
    images = torch.tensor([0, 64, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    targets = ImageDataset(images, None, CPU).targets(images)
    metrics = batch_metrics(torch.full((1, 3, 1, 1), 0.25), targets)
    assert metrics.tolist() == pytest.approx([(0.25**2 + 0 + 0.25**2) / 3], abs=1e-7)


def test_metrics_are_printed_to_five_decimals():
    assert format_metrics(1.234567, 0.98765) == "validation loss 1.23457, accuracy 98.77%"
    assert format_metrics(0.0012347) == "validation mean squared error 0.001235 (RGB in [0, 1))"


def test_validation_is_exact_for_any_batch_size():
    dataset = random_dataset(11, BLACK_AND_WHITE)
    net = Fixed([0.3, -0.2])
    share = (dataset.targets(dataset.images) == 0).double().mean().item()
    unlikely = math.log1p(math.exp(-0.5))
    for batch_size in (1, 2, 4, 10, 11, 100):
        metrics = evaluate(net, dataset, batch_size)
        assert metrics["loss"] == pytest.approx(share * unlikely + (1 - share) * (unlikely + 0.5), abs=1e-6)
        assert metrics["accuracy"] == pytest.approx(share, abs=1e-7)
    for model, palette in (("UNet", PALETTE), ("RegressionCNN", None)):
        net, dataset = create_model(model, 3, 4, 3 if palette is None else 5), random_dataset(11, palette)
        first = evaluate(net, dataset, 11)
        assert first.keys() == ({"loss"} if palette is None else {"loss", "accuracy"})
        for batch_size in (1, 3, 4):
            assert evaluate(net, dataset, batch_size) == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_validation_owns_its_mode(training):
    dataset = random_dataset(4)
    net = create_model("CNN", 3, 4, 5).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, dataset)
    outputs = predict(net, torch.rand(2, 1, 8, 8))
    assert not outputs.requires_grad
    assert net.training == training
    with pytest.raises(ValueError, match="multiples of 4"):
        predict(net, torch.rand(2, 1, 7, 7))
    assert net.training == training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_pictures_are_measured_against_the_truth(cifar, small_palette, capsys, monkeypatch):
    truth = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    gray = truth.mean(1, keepdim=True).expand(2, 3, 8, 8)
    panels = {"grayscale input": gray, "prediction": (gray + truth) / 2 + 0.1, "ground truth": truth}
    monkeypatch.setattr(evaluation, "evaluate_pictures", lambda *_: ({"loss": 1.0}, dict(panels)))
    net, checkpoint = new_network(None, model="RegressionCNN", num_filters=2)
    run_validation(net, checkpoint, ImageSource(), Path("outputs"))
    printed = [line[2:-2].split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    measured = {label.strip(): float(colors) for label, *_, colors in printed[1:]}
    assert measured["grayscale input"] == 0 < measured["prediction"] < measured["ground truth"]
    table = {label: value for label, value, *_ in printed}
    errors = {"grayscale input": 0.08 / 3, "prediction": 0.02 / 3 + 0.01, "prediction, with the input's gray": 0.02 / 3}
    rows = {label.strip(): value.strip() for label, value in table.items()}
    assert rows == {"": "PSNR (dB)", "ground truth": ""} | {k: f"{-10 * math.log10(v):.2f}" for k, v in errors.items()}


def test_the_first_ten_images_are_drawn_at_the_temperature(cifar, small_palette, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluation, "save_image_grid", lambda path, title, rows: drawn.append(rows))
    flags = ["-f", "4", "-c", str(small_palette), "--temperature", "5"]
    colorization.main(["-e", "1", "-b", "10", "--category", "all", *flags, "--plot"])
    colorization.main(["--valid", "--category", "all", "--checkpoint", "outputs/unet_k3_f4.pkl", "--temperature", "5"])
    for rows in drawn:
        assert torch.equal(rows["ground truth"], to_rgb(ImageSource(category="all").validation_images()[:10]))
        torch.testing.assert_close(rows["annealed-mean decoding"], drawn[0]["annealed-mean decoding"])
    colorization.main(["--valid", "--category", "all", "--checkpoint", "outputs/unet_k3_f4.pkl"])
    assert len(drawn) == 4 and not torch.allclose(
        drawn[3]["annealed-mean decoding"], drawn[0]["annealed-mean decoding"], atol=1e-4
    )
