"""The loop and the validation: exact metrics, every image once, the same numbers again."""

import copy
import gc
import math
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import colorization
from data import ImageDataset, hold_out
from models import create_model, predict
from training import loop
from training.augmentation import AUGMENTATIONS, augment
from training.evaluation import accuracy, batch_metrics, cross_entropy, evaluate
from training.log import RunLog
from training.loop import Trainer, TrainingConfig, class_weights
from training.optim import MUON_RATE, MuonAdam, WeightAverage, one_cycle, orthogonalize, split_parameters
from utils.console import UserError

CPU = torch.device("cpu")
PALETTE = np.linspace([0.1, 0, 0.2], [0.9, 0.8, 1], 5)
BLACK_AND_WHITE = np.array([[0.0, 0, 0], [1, 1, 1]])


def random_images(count, size=8, seed=0):
    """Random images, uint8 (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def random_dataset(count, palette=PALETTE, device=CPU, **settings):
    return ImageDataset(random_images(count, **settings), palette, device)


class Fixed(nn.Module):
    """Gives the same logits for every pixel of every image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])


def test_loss_and_accuracy_by_hand():
    # Two colors with probabilities 3/4 and 1/4: ln(4/3) where the first is right, ln(4) where the second is.
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0], dtype=torch.uint8).view(2, 2, 2)
    logits = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1).expand(2, 2, 2, 2)
    loss = (6 * math.log(4 / 3) + 2 * math.log(4)) / 8
    assert cross_entropy(logits, labels).item() == pytest.approx(loss, abs=1e-6)
    assert accuracy(logits, labels).item() == 6 / 8
    assert batch_metrics(logits, labels).tolist() == pytest.approx([loss, 6 / 8], abs=1e-6)
    weighted = (6 * 1 * math.log(4 / 3) + 2 * 5 * math.log(4)) / 8
    assert cross_entropy(logits, labels, torch.tensor([1.0, 5])).item() == pytest.approx(weighted, abs=1e-6)


def test_squared_error_by_hand():
    images = torch.tensor([0, 64, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    targets = ImageDataset(images, None, CPU).targets(images)
    metrics = batch_metrics(torch.full((1, 3, 1, 1), 0.25), targets)
    assert metrics.tolist() == pytest.approx([(0.25**2 + 0 + 0.25**2) / 3], abs=1e-7)


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


def test_augmentation_mirrors_and_moves_all_channels_alike():
    torch.manual_seed(0)
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(500, 3, 8, 8)
    moved = augment(images, ["mirror", "shift-x", "shift-y"])
    assert torch.equal(moved[:, 1], moved[:, 0])
    seen = {tuple(image.flatten().tolist()) for image in moved[:, 0]}
    assert len(seen) == 2 * 3 * 3
    assert tuple(images[0, 0].flatten().tolist()) in seen
    assert tuple(images[0, 0].flip(1).flatten().tolist()) in seen
    down = torch.cat([images[0, 0, 1:2], images[0, 0, :-1]])  # one pixel lower, the border mirrored
    assert tuple(down.flatten().tolist()) in seen


@pytest.mark.parametrize("way, count", [("mirror", 2), ("upside-down", 2), ("shift-x", 3), ("shift-y", 3)])
def test_each_way_of_augmentation_alone(way, count):
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    images = augment(image.expand(100, 3, 8, 8), [way])
    seen = {tuple(image.flatten().tolist()) for image in images[:, 0]}
    assert len(seen) == count
    changed = {
        "mirror": image.flip(3),
        "upside-down": image.flip(2),
        "shift-x": torch.cat([image[..., 1:2], image[..., :-1]], 3),
        "shift-y": torch.cat([image[:, :, 1:2], image[:, :, :-1]], 2),
    }
    assert {tuple(image.flatten().tolist()), tuple(changed[way].flatten().tolist())} <= seen
    assert torch.equal(augment(image, []), image)


def test_each_augmentation_is_as_likely_as_promised():
    """A flip with probability 1/2; shifts by -1, 0 and 1 a third each. 6,000 images: four standard deviations."""
    torch.manual_seed(0)
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    for way in AUGMENTATIONS:
        moved = augment(image.expand(6000, 3, 8, 8), [way])[:, 0].flatten(1)
        counts = torch.unique(moved, dim=0, return_counts=True)[1]
        expected = 6000 / len(counts)
        assert (counts - expected).abs().max() < 4 * math.sqrt(expected * (1 - 1 / len(counts)))


def test_an_augmentation_is_added_in_one_place(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "quarter-turn", lambda images: images.rot90(1, (2, 3)))
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert torch.equal(augment(image, ["quarter-turn"]), image.rot90(1, (2, 3)))
    assert "quarter-turn" in colorization.parse(["--augment", "quarter-turn"]).augment


def test_adam_is_pytorchs():
    torch.manual_seed(0)
    mine, theirs = (create_model("CNN", 3, 4, 5).double() for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    ours, reference = MuonAdam([], list(mine.parameters())), torch.optim.Adam(theirs.parameters())
    for rate in (0.1, 0.03, 0.001):
        x = torch.rand(2, 1, 8, 8).double()
        reference.zero_grad()
        ours.zero_grad()
        for net in (mine, theirs):
            net(x).square().sum().backward()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        ours.step(rate)
    for got, expected in zip(mine.parameters(), theirs.parameters()):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    ours.zero_grad()
    assert all(got.grad is None for got in mine.parameters())


def test_muon_is_pytorchs():
    """torch.optim.Muon orthogonalizes in bfloat16, so within its rounding; three steps at two rates."""
    torch.manual_seed(0)
    mine = [torch.randn(4, 2, 3, 3).to(memory_format=torch.channels_last), torch.randn(6, 4, 1, 1)]
    theirs = [weight.flatten(1).clone() for weight in mine]
    mine, theirs = [[nn.Parameter(weight) for weight in weights] for weights in (mine, theirs)]
    settings = {"momentum": 0.6, "weight_decay": 0, "lr": 0, "ns_steps": 3}
    ours, reference = MuonAdam(mine, []), torch.optim.Muon(theirs, **settings)
    for rate in (0.1, 0.02, 0.1):
        for got, expected in zip(mine, theirs):
            expected.grad = torch.randn_like(expected)
            got.grad = expected.grad.view(got.shape)
        reference.param_groups[0]["lr"] = MUON_RATE * rate
        reference.step()
        ours.step(rate)
    for got, expected in zip(mine, theirs):
        torch.testing.assert_close(got.flatten(1), expected, rtol=0, atol=0.01 * MUON_RATE)
    ours.zero_grad()
    assert all(got.grad is None for got in mine)


def test_the_optimizers_state_is_restored_in_place():
    torch.manual_seed(0)
    net = create_model("CNN", 3, 4, 5)
    first = MuonAdam(*split_parameters(net))
    net(torch.rand(2, 1, 8, 8)).square().sum().backward()
    first.step(0.01)
    saved = {name: value.clone() for name, value in first.state_dict().items()}
    assert {name.split(".")[0] for name in saved} == {"momentum_buffer", "exp_avg", "exp_avg_sq", "steps"}
    assert all(value.abs().sum() > 0 for name, value in saved.items() if name.startswith(("steps", "momentum")))
    second = MuonAdam(*split_parameters(net))
    second.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in second.state_dict().items())
    assert second.steps[0] == 1 and torch.equal(second.momentum_buffer[0], first.momentum_buffer[0])
    with pytest.raises(KeyError):
        second.load_state_dict({})


def test_an_orthogonalized_matrix_keeps_its_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(5, 20).double()
    left, values, right = torch.linalg.svd(orthogonalize(matrix, steps=5), full_matrices=False)
    assert values.min() > 0.65 and values.max() < 1.25
    product = left.T @ matrix @ right.T  # diagonal if the singular vectors are those of the matrix
    torch.testing.assert_close(product, product.diagonal().diag(), rtol=0, atol=1e-6)


def test_muon_takes_the_weights_of_all_convolutions_but_the_first_and_the_last():
    net = create_model("UNet", 3, 4, 5)
    middle, others = split_parameters(net)
    stages = (net.downconv2, net.rfconv, net.upconv1, net.upconv2)
    assert [id(weight) for weight in middle] == [id(stage[0].weight) for stage in stages]
    assert len(middle) + len(others) == len(list(net.parameters()))
    assert not {id(weight) for weight in middle} & {id(parameter) for parameter in others}


def test_one_cycle_rises_and_falls_to_zero():
    rates = [one_cycle(step / 100) for step in range(101)]
    assert max(rates) == rates[30] == 1
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert rates[0] == 1 / 25
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[65] == pytest.approx(0.5)


def polynomial_decay(values, eta):
    """Shamir and Zhang's average of a list of values, from its definition."""
    average = values[0]
    for step, value in enumerate(values[1:], 2):
        average = (1 - (eta + 1) / (step + eta)) * average + (eta + 1) / (step + eta) * value
    return average


def test_averaging_weighs_later_steps_more():
    """Weights with eta = 8, statistics with eta = 16; the start does not count."""
    model, averaged = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    average = WeightAverage(averaged, model)
    for step in range(1, 11):
        model.weight.data.fill_(step)
        model.running_mean.fill_(step)
        average.update()
        steps = [float(earlier) for earlier in range(1, step + 1)]
        assert averaged.weight.item() == pytest.approx(polynomial_decay(steps, 8), rel=1e-6)
        assert averaged.running_mean.item() == pytest.approx(polynomial_decay(steps, 16), rel=1e-6)
    assert 9 < averaged.weight.item() < averaged.running_mean.item() < 10


def test_weights_and_statistics_are_averaged():
    torch.manual_seed(0)
    net = create_model("UNet", 3, 4, 5)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    trainer, states = Trainer(net, random_dataset(6), TrainingConfig(batch_size=6, augment=())), []
    for _ in range(3):
        trainer.step(trainer.dataset.images, 0.01)
        states.append({name: value.clone() for name, value in trainer.raw_model.state_dict().items()})
    for name, average in net.state_dict().items():
        if average.is_floating_point():
            expected = polynomial_decay([state[name] for state in states], 16 if "running" in name else 8)
            torch.testing.assert_close(average, expected)
            assert not torch.equal(states[0][name], start[name])


class Recorder(Fixed):
    """Keeps the gray level of every training image it is shown."""

    def __init__(self):
        super().__init__([0.0, 0.0])
        self.shown = []

    def __deepcopy__(self, memo):
        twin = Recorder()
        twin.shown = self.shown
        return twin

    def forward(self, x):
        if self.training:
            self.shown.append(x[:, 0, 0, 0].tolist())
        return super().forward(x)


class ListLog(RunLog):
    """Keeps the metrics of a run, and writes nothing."""

    def __init__(self):
        self.history, self.checkpoint = [], SimpleNamespace(model="it", data="images")
        self.path, self.out_dir, self.settings = Path("it.pkl"), Path("nowhere"), {"epochs": 2, "learning_rate": 0.01}

    def write(self, metrics, weights, trainer_state):
        self.history.append(metrics)

    def finish(self):
        pass


def history_of_training(net, images, palette=PALETTE, log=None, **changes):
    """Train on images, validate on the first three of them; return the metrics of the epochs."""
    config = TrainingConfig(**{"epochs": 2, "batch_size": 4, "learning_rate": 0.01} | changes)
    dataset, valid = ImageDataset(images, palette, net_device(net)), ImageDataset(images[:3], palette, net_device(net))
    log = log or ListLog()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_samples", lambda *_: None)
        loop.run_training(Trainer(net, dataset, config), valid, log)
    return log.history


def net_device(net):
    return next(net.parameters()).device


def test_every_epoch_shows_every_image_once_in_a_new_order():
    levels = torch.arange(11, dtype=torch.uint8)
    net = Recorder()
    history_of_training(net, levels.view(11, 1, 1, 1).expand(11, 3, 4, 4), BLACK_AND_WHITE)
    assert [len(batch) for batch in net.shown] == [4, 4, 3, 4, 4, 3]
    first, second = (list(chain(*net.shown[start : start + 3])) for start in (0, 3))
    assert sorted(first) == sorted(second) == [level / 256 for level in range(11)]
    assert first != second


def test_training_learns_and_reports_what_it_measures():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 1, 1)).expand(40, 3, 8, 8).to(torch.uint8)
    net = create_model("CNN", 3, 4, 2)
    rows = history_of_training(net, images, BLACK_AND_WHITE, epochs=20)
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    assert rows[-1]["valid_accuracy"] > 0.9
    metrics = evaluate(net, ImageDataset(images[:3], BLACK_AND_WHITE, CPU))
    assert {"loss": rows[-1]["valid_loss"], "accuracy": rows[-1]["valid_accuracy"]} == metrics
    rates = [row["learning_rate"] for row in rows]
    assert max(rates) <= 0.01
    assert rates[-1] < 0.01 * max(rates)


def test_a_regression_has_no_accuracy():
    net = create_model("RegressionCNN", 3, 4)
    rows = history_of_training(net, random_images(12), palette=None)
    assert rows[0].keys() == {"epoch", "train_loss", "valid_loss", "learning_rate", "seconds"}
    assert rows[1]["train_loss"] < rows[0]["train_loss"]


def test_a_step_is_the_one_of_plain_pytorch():
    """Two steps at a known learning rate, against a plain loop with PyTorch's own optimizers."""
    torch.manual_seed(0)
    net, dataset = create_model("UNet", 3, 4, 5), random_dataset(6)
    reference = copy.deepcopy(net)
    middle, others = split_parameters(reference)
    optimizer = torch.optim.Adam(others, lr=0.01)
    trainer = Trainer(net, dataset, TrainingConfig(batch_size=6, augment=(), precision="fp32"))
    muon = MuonAdam(middle, [])
    for _ in range(2):
        loss_of_step = trainer.step(dataset.images, 0.01)
        logits = reference.train()(dataset.images.float().mean(1, keepdim=True) / 256)
        labels = dataset.targets(dataset.images).long()
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        muon.step(0.01)
        muon.zero_grad()
        assert loss_of_step.item() == pytest.approx(loss.item(), abs=1e-5)
    for got, expected in zip(trainer.raw_model.finalconv.parameters(), reference.finalconv.parameters()):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_the_same_seed_gives_the_same_weights():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        net = create_model("UNet", 3, 4, 5)
        history_of_training(net, random_images(12), seed=seed)
        states.append(net.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["finalconv.weight"], states[2]["finalconv.weight"])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from /proc")
def test_long_runs_do_not_leak():
    resident, log = [], ListLog()

    def write(metrics, *_):
        log.history.append(metrics)
        gc.collect()
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]))

    log.write = write
    gc.freeze()  # what the libraries hold need not be looked through thirty times
    history_of_training(create_model("UNet", 3, 4, 5), random_images(60), log=log, epochs=30, batch_size=20)
    gc.unfreeze()
    assert max(resident[5:]) < 1.05 * resident[4]


def test_a_loss_that_is_not_finite_stops_the_run():
    net = create_model("CNN", 3, 4, 5)
    with torch.no_grad():
        net.finalconv.bias.fill_(math.nan)
    with pytest.raises(UserError, match=r"loss is no longer finite in step 1 of epoch 1; .* --learn-rate below 0\.01"):
        history_of_training(net, random_images(8))


def test_weights_that_the_last_step_breaks_stop_the_run(monkeypatch):
    step, calls, log = MuonAdam.step, iter(range(1, 100)), ListLog()

    def breaking(self, learning_rate):
        step(self, learning_rate)
        if next(calls) == 4:  # the last step of the second epoch, whose loss is still finite
            self.adam_parameters[-1].data[-1] = math.inf

    monkeypatch.setattr(MuonAdam, "step", breaking)
    with pytest.raises(UserError, match="weights are no longer finite after epoch 2"):
        history_of_training(create_model("CNN", 3, 4, 5), random_images(8), log=log, epochs=3)
    assert [metrics["epoch"] for metrics in log.history] == [1]


def test_statistics_that_a_step_breaks_stop_the_run(monkeypatch):
    """With an infinite variance, the loss stays finite."""
    update = WeightAverage.update

    def breaking(self):
        self.statistics[1][1].fill_(math.inf)
        update(self)

    monkeypatch.setattr(WeightAverage, "update", breaking)
    with pytest.raises(UserError, match="weights are no longer finite after epoch 1"):
        history_of_training(create_model("CNN", 3, 4, 5), random_images(8))


def test_a_validation_loss_that_is_not_finite_stops_the_run(monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": math.inf, "accuracy": 0.5})
    with pytest.raises(UserError, match="no longer finite after epoch 1"):
        history_of_training(create_model("CNN", 3, 4, 5), random_images(8))


def test_rebalanced_parts_learn_as_the_whole_batch(monkeypatch):
    """Two processes' gradients, averaged, are those of one process; with parts of different colors."""
    dataset, config = random_dataset(6), TrainingConfig(batch_size=6, augment=(), rebalance=True)
    gradients = []

    def keep_gradient(optimizer, learning_rate):
        gradients.append(optimizer.adam_parameters[0].grad.clone())

    monkeypatch.setattr(MuonAdam, "step", keep_gradient)
    for images in (dataset.images, dataset.images[:3], dataset.images[3:]):
        Trainer(Fixed([0.1, 0.5, -0.3, 0.2, 0.0]), dataset, config).step(images, 0.01)
    whole, first, second = gradients
    torch.testing.assert_close((first + second) / 2, whole)
    assert not torch.allclose(first, second)


def test_images_of_every_class_are_held_out_the_same_ones_for_every_seed():
    images, one_class = torch.arange(20).view(20, 1, 1, 1), torch.zeros(20)
    torch.manual_seed(1)
    others, held = hold_out(images, one_class, 6)
    torch.manual_seed(2)
    assert torch.equal(held, hold_out(images, one_class, 6)[1])
    assert len(held) == 6
    assert sorted(torch.cat([others, held]).flatten().tolist()) == list(range(20))
    with pytest.raises(UserError, match="only 20"):
        hold_out(images, one_class, 20)

    labels = torch.arange(20) % 2
    others, held = hold_out(images, labels, 3)
    assert torch.equal(held[held % 2 == 0], hold_out(images[::2], torch.zeros(10), 3)[1].flatten())
    assert sorted(torch.cat([others, held]).flatten().tolist()) == list(range(20))
    with pytest.raises(UserError, match="a class has only 10"):
        hold_out(images, labels, 10)


def test_class_weights_by_hand():
    images = torch.tensor([0] * 6 + [1] * 2, dtype=torch.uint8).view(2, 1, 2, 2).expand(2, 3, 2, 2)
    # shares 3/4 and 1/4, mixed with a half: 5/8 and 3/8, so 8/5 and 8/3, over their mean 6/5 + 2/3
    expected = torch.tensor([8 / 5, 8 / 3]) / (6 / 5 + 2 / 3)
    palette = np.array([[0.0, 0, 0], [1 / 256] * 3])
    assert torch.allclose(class_weights(ImageDataset(images, palette, CPU)), expected)
