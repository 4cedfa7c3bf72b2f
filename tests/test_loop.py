"""The training loop: every image once, the same numbers again."""

import copy
import gc
import math
import re
import tempfile
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import BLACK_AND_WHITE, CPU, PALETTE, THREE_COLORS, Fixed, random_dataset, random_images

import colorization
from data import ImageDataset, to_gray
from models import create_model
from pictures.decoding import chroma_error
from training import loop
from training.augmentation import AUGMENTATIONS
from training.evaluation import cross_entropy, evaluate
from training.log import RunLog
from training.loop import Trainer, TrainingConfig, choose_precision
from training.optim import MuonAdam, WeightAverage, one_cycle, split_parameters
from utils import distributed
from utils.console import UserError


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
        self.folder = tempfile.TemporaryDirectory()  # for as long as this log
        self.out_dir, self.settings = Path(self.folder.name), {"epochs": 2, "learning_rate": 0.01}
        self.path, self.best_path = self.out_dir / "it.pkl", self.out_dir / "it_best.pkl"

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
    for got, expected in zip(trainer.model.finalconv.parameters(), reference.finalconv.parameters()):
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
        self.pairs[-3][1].fill_(math.inf)  # the last batch norm's running variance
        update(self)

    monkeypatch.setattr(WeightAverage, "update", breaking)
    with pytest.raises(UserError, match="weights are no longer finite after epoch 1"):
        history_of_training(create_model("CNN", 3, 4, 5), random_images(8))


def test_a_validation_loss_that_is_not_finite_stops_the_run(monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": math.inf, "accuracy": 0.5})
    with pytest.raises(UserError, match="no longer finite after epoch 1"):
        history_of_training(create_model("CNN", 3, 4, 5), random_images(8))


def test_parts_learn_as_the_whole_batch(monkeypatch):
    """Two processes' gradients, averaged, are those of one process; with parts of different colors."""
    dataset, config = random_dataset(6), TrainingConfig(batch_size=6, augment=())
    gradients = []

    def keep_gradient(optimizer, learning_rate):
        gradients.append(optimizer.adam_parameters[0].grad.clone())

    monkeypatch.setattr(MuonAdam, "step", keep_gradient)
    for images in (dataset.images, dataset.images[:3], dataset.images[3:]):
        Trainer(Fixed([0.1, 0.5, -0.3, 0.2, 0.0]), dataset, config).step(images, 0.01)
    whole, first, second = gradients
    torch.testing.assert_close((first + second) / 2, whole)
    assert not torch.allclose(first, second)


FAST = ["-e", "2", "-f", "2", "-b", "8"]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained_network(device=CPU, precision="fp32"):
    """Train a small network for three epochs of four batches, the last one smaller; return it and the metrics."""
    torch.manual_seed(0)
    net = create_model("UNet", 3, 4, 5).to(device)
    return net, history_of_training(net, random_images(15), epochs=3, precision=precision)


def test_precision_is_chosen_for_the_device():
    assert choose_precision("fp32", CPU) == torch.float32
    assert choose_precision("bf16", CPU) == torch.bfloat16


def test_bfloat16_learns_alike_and_keeps_weights_in_float32():
    (net, rows), (half, half_rows) = trained_network(), trained_network(precision="bf16")
    assert half_rows[-1]["train_loss"] == pytest.approx(rows[-1]["train_loss"], rel=0.02)
    assert half_rows[-1]["train_loss"] != rows[-1]["train_loss"]
    assert all(value.dtype == torch.float32 for value in half.parameters())
    assert {value.dtype for value in half.state_dict().values()} == {value.dtype for value in net.state_dict().values()}


def test_flags_reach_training(cifar, small_palette, capsys):
    flags = [*FAST, "-c", str(small_palette)]
    for precision in ("auto", "fp32", "bf16"):
        colorization.main([*flags, "--precision", precision, "--out-dir", precision])
    out = capsys.readouterr().out
    auto, fp32, bf16 = re.findall(r"^epoch   2/2 .*(training loss \S+)", out, re.MULTILINE)
    assert bf16 != fp32
    assert auto == (fp32 if choose_precision("auto", CPU) == torch.float32 else bf16) or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)],
)
def test_bfloat16_is_chosen_where_the_processor_has_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", CPU) == precision
    assert choose_precision("fp32", CPU) == torch.float32
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions of PyTorch
    assert choose_precision("auto", CPU) == torch.float32


@needs_cuda
def test_nothing_waits_for_the_gpu_within_an_epoch():
    device = torch.device("cuda")
    dataset = ImageDataset(random_images(15), PALETTE, device)
    trainer = Trainer(create_model("UNet", 3, 4, 5).to(device), dataset, TrainingConfig(batch_size=4))
    trainer.step(dataset.images[:4], 0.01)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(dataset.images[:4], 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_images_may_stay_on_the_cpu():
    net, dataset = create_model("UNet", 3, 4, 5).cuda(), ImageDataset(random_images(15), PALETTE, torch.device("cuda"))
    dataset.images = dataset.images.cpu()
    trainer = Trainer(net, dataset, TrainingConfig(epochs=2, batch_size=4, learning_rate=0.01))
    assert trainer.train_epoch(2) < trainer.train_epoch(1)
    assert evaluate(net, dataset)["loss"] > 0


def test_losses_by_hand():
    dataset, config = random_dataset(4, THREE_COLORS), TrainingConfig(batch_size=4, picture_weight=3, temperature=0.4)
    logits = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = dataset.targets(dataset.images)
    error = chroma_error(logits, torch.tensor(THREE_COLORS).float(), dataset.images, 0.4)
    loss = Trainer(Fixed([0.0] * 3), dataset, config).loss(logits, targets, dataset.images)
    assert loss.item() == pytest.approx((F.cross_entropy(logits, targets.long()) + 3 * error).item(), rel=1e-5)


def steps_of(monkeypatch, epoch, rank=0, **settings):
    """Return the steps of an epoch: their images' gray levels, rate and random seed; the loss; start_epoch's seed."""
    images = torch.arange(11, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, 3, 4, 4)
    config = TrainingConfig(**{"epochs": 2, "batch_size": 4, "learning_rate": 0.01} | settings)
    trainer, steps, starts = Trainer(Fixed([0.0] * 5), ImageDataset(images, PALETTE, CPU), config), [], []

    def step(self, images, rate):
        steps.append((images[:, 0, 0, 0].tolist(), rate, torch.initial_seed()))
        return images.float().mean()

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        patch.setattr(ImageDataset, "start_epoch", lambda self, seed: starts.append(seed))
        patch.setattr(distributed, "rank", lambda: rank)
        loss = trainer.train_epoch(epoch)
    levels, rates, seeds = zip(*steps)
    return levels, rates, seeds[0], starts[0], loss


def test_an_epochs_rates_and_its_loss(monkeypatch):
    for epoch in (1, 2):
        _, rates, _, _, loss = steps_of(monkeypatch, epoch)
        assert rates == pytest.approx([0.01 * one_cycle((3 * (epoch - 1) + number) / 6) for number in range(3)])
        assert loss == pytest.approx(5)  # of 4, 4 and 3 images


def test_order_crops_and_augmentation_differ_by_seed_and_epoch(monkeypatch):
    runs = [steps_of(monkeypatch, epoch, seed=seed) for seed, epoch in ((0, 1), (0, 2), (1, 1))]
    for part in (0, 2, 3):  # the order, the seed of augmentation, that of crops
        assert len({str(run[part]) for run in runs}) == 3
    assert steps_of(monkeypatch, 1, rank=1)[2] != runs[0][2] and steps_of(monkeypatch, 1, rank=1)[3] == runs[0][3]


def test_only_pictures_depend_on_the_temperature():
    settings = [
        Trainer(Fixed([0.0] * 5), random_dataset(4), TrainingConfig(batch_size=4, picture_weight=weight)).settings()
        for weight in (0, 1)
    ]
    assert "temperature" not in settings[0] and settings[1]["temperature"] == 0.6


def test_processes_share_a_batch(monkeypatch):
    images = torch.arange(11, dtype=torch.uint8).view(11, 1, 1, 1).expand(11, 3, 4, 4)
    config, shown = TrainingConfig(epochs=2, batch_size=5), []
    trainers = [Trainer(Fixed([0.0] * 5), ImageDataset(images, PALETTE, CPU), config) for _ in range(2)]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: tensor)
    monkeypatch.setattr(
        Trainer, "step", lambda self, images, rate: shown.append(images[:, 0, 0, 0].tolist()) or images.float().mean()
    )
    for rank, trainer in enumerate(trainers):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        trainer.train_epoch(1)
    assert [len(part) for part in shown] == [3, 3, 2, 2]
    assert len(set(chain(*shown))) == 10


def test_a_step_takes_the_augmented_images_and_their_targets(monkeypatch):
    """A transform that is the same for all images: the loss is that of the images so transformed."""
    monkeypatch.setitem(AUGMENTATIONS, "mirror", lambda images: 255 - images)
    dataset = random_dataset(6)
    dataset.set_images(torch.cat([dataset.images, 255 - dataset.images]))
    config = TrainingConfig(batch_size=6, augment=("mirror",), precision="fp32")
    for images, other in ((dataset.images[:6], dataset.images[6:]), (dataset.images[6:], dataset.images[:6])):
        torch.manual_seed(0)
        trainer = loop.Trainer(create_model("CNN", 3, 2, len(dataset.palette)), dataset, config)
        expected = cross_entropy(trainer.model(to_gray(other)), dataset.targets(other))
        assert trainer.step(images, 0.0).item() == pytest.approx(expected.item(), abs=1e-5)


def test_an_epoch_trains_in_training_mode():
    """Also after an evaluation or a state that left the network in evaluation mode."""
    trainer = loop.Trainer(create_model("CNN", 3, 2, 5), random_dataset(8), TrainingConfig(batch_size=4, epochs=1))
    trainer.model.eval()
    before = trainer.model.downconv1[2].running_mean.clone()
    trainer.train_epoch(1)
    assert trainer.model.training and not torch.equal(trainer.model.downconv1[2].running_mean, before)
