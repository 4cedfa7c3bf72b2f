"""The training loop and the validation that both scripts share."""

import contextlib
import copy
import ctypes
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import processes
from cli import UserError
from data import load_images, network_input, sample_of

AUGMENTATIONS = ("mirror", "upside-down", "shift-x", "shift-y")


class Examples(NamedTuple):
    """Images to learn from or to measure by, and what a network should make of some of them."""

    images: torch.Tensor  # (N, 3, H, W) uint8
    targets_of: Callable  # of images (M, 3, H, W): labels (M, H, W) uint8, or for regression themselves


def training_examples(args, learning, device):
    """Return the examples to train on, less those that --holdout keeps for validation.

    learning(images) returns their targets_of.
    """
    images = load_images(args, train=True)
    return examples_on(device, hold_out(images, args.holdout)[0] if args.holdout else images, learning)


def validation_examples(args, learning, device):
    """Return the test examples, or with --holdout those that it keeps of the training images."""
    if args.holdout:
        return examples_on(device, hold_out(load_images(args, train=True), args.holdout)[1], learning)
    return examples_on(device, load_images(args, train=False), learning)


def examples_on(device, images, learning):
    """Put images on the device, and what finds their targets."""
    images = images.to(device)
    return Examples(images, learning(images))


def hold_out(images, count):
    """Split off `count` images, the same ones for every seed of training: (the others, those)."""
    if count >= len(images):
        raise UserError(f"--holdout {count}: there are only {len(images):,} training images")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[count:].sort().values], images[order[:count].sort().values]


def class_weights(examples, num_colors, uniform=0.5):
    """Return a weight for every color, (K,), greater for rarer ones: 1 on average over the examples' pixels.

    One over the color's share of the pixels mixed with the same share for all (Zhang et
    al. 2016, equation 4, λ = `uniform`; a palette's colors need no smoothing over bins).
    """
    parts = sample_of(examples.images).split(1000)
    counts = sum(torch.bincount(examples.targets_of(part).flatten(), minlength=num_colors) for part in parts)
    shares = counts / counts.sum()
    weights = 1 / ((1 - uniform) * shares + uniform / num_colors)
    return weights / (shares * weights).sum()


def loss_and_accuracy(outputs, targets, weights=None):
    """Return the mean loss and the share of right pixels, as tensors on the device.

    Logits (N, K, H, W) with labels (N, H, W), uint8: cross-entropy in nats per pixel,
    a mean that `weights` (K,) of the colors weigh where they are given.
    Colors (N, 3, H, W) with images (N, 3, H, W), uint8: mean squared error over RGB
    in [0, 1), and not-a-number for the accuracy, since regression has none.
    """
    if targets.dim() == 4:
        return F.mse_loss(outputs, targets.float() / 256), outputs.new_full((), math.nan)
    flat = outputs.permute(0, 2, 3, 1).flatten(0, 2)  # (N·H·W, K), without a copy for channels-last
    labels = targets.flatten().long()
    return F.cross_entropy(flat, labels, weights), (flat.detach().argmax(1) == labels).float().mean()


@torch.no_grad()
def predict(net, images, batch_size=100):
    """Return the network's outputs in evaluation mode for uint8 images (N, 3, H, W), on their device."""
    was_training = net.training
    net.eval()
    outputs = torch.cat([net(network_input(part)) for part in images.split(batch_size)])
    net.train(was_training)
    return outputs


def evaluate(net, examples, batch_size=100, also=None):
    """Return (loss, accuracy) over all images in evaluation mode, exact for any batch size.

    Several processes share the images. `also`, where given, is called with the images,
    targets and outputs of each batch; each process then goes through all.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=examples.images.device)
    mine = examples.images if also else examples.images[processes.rank() :: processes.count()]
    for images in mine.split(batch_size) if len(mine) else ():
        outputs, targets = predict(net, images, batch_size), examples.targets_of(images)
        sums += len(images) * torch.stack(loss_and_accuracy(outputs, targets))
        if also:
            also(images, targets, outputs)
    if not also:
        sums = processes.summed(sums)
    return tuple((sums / len(examples.images)).tolist())


def evaluate_rows(net, examples, rows_of):
    """Return (loss, accuracy) as evaluate() does, and labeled rows of all pictures, on the CPU.

    rows_of(images, targets, outputs) makes the rows of one batch, each (N, 3, H, W).
    """
    batches = []
    figures = evaluate(net, examples, also=lambda *batch: batches.append(rows_of(*batch)))
    return figures, {label: torch.cat([batch[label] for batch in batches]).cpu() for label in batches[0]}


def augmented(images, ways):
    """Change images (N, 3, H, W) in the named `ways`, each at random: mirror, upside-down or not, shift by a pixel.

    Borders are mirrored.
    """
    count, height, width = len(images), *images.shape[-2:]
    device = images.device

    def taken_from(size, shift, flip):  # the row or column that each pixel is taken from, (N, size)
        by = torch.randint(-1, 2, (count, 1), device=device) if shift in ways else 0
        wanted = (torch.arange(size, device=device) + by).abs().expand(count, size)
        wanted = torch.where(wanted < size, wanted, 2 * (size - 1) - wanted)
        if flip in ways:
            wanted = torch.where(torch.rand(count, 1, device=device) < 0.5, wanted.flip(1), wanted)
        return wanted

    rows, columns = taken_from(height, "shift-y", "upside-down"), taken_from(width, "shift-x", "mirror")

    images = images.gather(2, rows.view(count, 1, height, 1).expand_as(images))
    return images.gather(3, columns.view(count, 1, 1, width).expand_as(images))


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1); torch.optim's takes 1.7 s to import, half of a short run's start."""

    def __init__(self, parameters, betas=(0.9, 0.999), epsilon=1e-8):
        self.parameters = list(parameters)
        self.betas, self.epsilon = betas, epsilon
        self.steps = 0
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, learn_rate):
        """Move the parameters by their gradients, and forget those."""
        self.steps += 1
        beta1, beta2 = self.betas
        gradients = [p.grad for p in self.parameters]
        torch._foreach_lerp_(self.means, gradients, 1 - beta1)
        torch._foreach_mul_(self.squares, beta2)
        torch._foreach_addcmul_(self.squares, gradients, gradients, 1 - beta2)
        scales = torch._foreach_sqrt(self.squares)
        torch._foreach_div_(scales, math.sqrt(1 - beta2**self.steps))
        torch._foreach_add_(scales, self.epsilon)
        torch._foreach_addcdiv_(self.parameters, self.means, scales, -learn_rate / (1 - beta1**self.steps))
        for p in self.parameters:
            p.grad = None


def one_cycle(progress, warm_up=0.3):
    """Return the share of the peak learning rate after a share `progress` of a run (Smith and Topin 2019).

    It rises in a straight line for `warm_up` of the run, then falls to zero as a cosine does.
    """
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


@torch.no_grad()
def average_in(net, trained, steps):
    """Move net's weights and statistics toward those of `trained`, after its step number `steps`, from 1.

    Polynomial-decay averaging (Shamir and Zhang 2013, section 4, η = 8): the average
    reaches over about the last ninth of all steps, however many there are.
    """
    share = 9 / (9 + steps)
    for average, latest in ((net.parameters(), trained.parameters()), (net.buffers(), trained.buffers())):
        floats = [pair for pair in zip(average, latest) if pair[0].is_floating_point()]
        if floats:
            torch._foreach_lerp_(*map(list, zip(*floats)), share)


def keep_freed_memory():
    """Have glibc keep what tensors free for the next ones.

    It returns large blocks to the system and gets them anew, page by page, at every
    step: at batch 100 a seventh of the time. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


class Learner:
    """A network in training: `trained` takes the optimizer's steps, `net` holds their average.

    `forward` is `trained`, which with several processes averages their gradients. Batch
    norm's statistics are then on CUDA those of the whole batch, on the CPU the first process's.
    """

    def __init__(self, net):
        self.net = net
        self.trained = self.forward = copy.deepcopy(net)
        if processes.count() > 1:
            if next(net.parameters()).is_cuda:
                self.trained = nn.SyncBatchNorm.convert_sync_batchnorm(self.trained)
            self.forward = nn.parallel.DistributedDataParallel(self.trained)
        self.optimizer = Adam(self.trained.parameters())

    def step(self, loss, learn_rate):
        """Learn from the loss of one batch."""
        loss.backward()
        self.optimizer.step(learn_rate)
        average_in(self.net, self.trained, self.optimizer.steps)

    def state(self):
        """Return all that changes in training, random numbers too, as plain containers of tensors."""
        return {
            "net": self.net.state_dict(),
            "trained": self.trained.state_dict(),
            "optimizer": {name: vars(self.optimizer)[name] for name in ("steps", "means", "squares")},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def restore(self, state):
        """Take up a state where it was left."""
        self.net.load_state_dict(state["net"])
        self.trained.load_state_dict(state["trained"])
        self.optimizer.steps = state["optimizer"]["steps"]
        for name in ("means", "squares"):
            for mine, saved in zip(vars(self.optimizer)[name], state["optimizer"][name], strict=True):
                mine.copy_(saved)
        torch.set_rng_state(state["random"])
        if len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])


def plain_criterion(outputs, targets, images):
    """Return the loss to learn from, and the accuracy, as loss_and_accuracy() has them."""
    return loss_and_accuracy(outputs, targets)


def train_epoch(learner, learn_rates, examples, batch_size, ways, criterion=plain_criterion):
    """Pass once over all examples in random order; return the mean (loss, accuracy) along the way.

    `learn_rates` is an iterator over the steps' learning rates, `ways` are those of
    augmented(), and criterion(outputs, targets, images) gives a batch's loss and accuracy.
    Each process learns from its part of every batch. Raises NotFinite.
    """
    learner.forward.train()
    device = examples.images.device
    order = processes.of_first(torch.randperm(len(examples.images), device=device))
    if processes.rank():  # else all would augment alike; anew in every epoch, so that --resume need not know
        torch.manual_seed(int(order[0]) * processes.count() + processes.rank())
    figures, counts = [], []
    for batch in tqdm(order.split(batch_size), leave=False, disable=True if processes.rank() else None, unit="step"):
        chosen = batch[processes.rank() :: processes.count()]
        share = len(chosen) / len(batch)
        chosen = chosen if len(chosen) else batch[:1]  # a last batch of fewer images than processes: counts nothing
        images = augmented(examples.images[chosen], ways)
        outputs = learner.forward(network_input(images))
        loss, accuracy = criterion(outputs, examples.targets_of(images), images)
        learner.step(loss * (share * processes.count()) if processes.count() > 1 else loss, next(learn_rates))
        figures.append(torch.stack([loss.detach(), accuracy]) * share)
        counts.append(len(batch))
    figures = processes.summed(torch.stack(figures).double()).cpu()  # (steps, 2)
    if not figures[:, 0].isfinite().all():
        raise NotFinite(figures[:, 0].isfinite().int().argmin().item() + 1)
    return tuple((figures * torch.tensor(counts)[:, None]).sum(0).div(sum(counts)).tolist())


class NotFinite(Exception):
    """The loss of a step, counted from 1, is no longer a finite number."""


def train(
    net,
    examples,
    valid,
    *,
    epochs,
    batch_size,
    learn_rate,
    augment,
    log,
    criterion=plain_criterion,
    first_epoch=1,
    resumed=None,
):
    """Train with Adam under a one-cycle learning rate; the network ends with averaged weights.

    The examples are on the network's device; `augment` names ways of augmented(), and
    `criterion` is that of train_epoch(). Epochs count from `first_epoch`.
    Calls log(row, state) after each, with a dict of its figures and the learner's state.
    `resumed`, (epoch, state), goes on after that epoch. Raises UserError if the loss
    is not finite.
    """
    keep_freed_memory()
    learner = Learner(net)
    done = 0
    if resumed:
        done = resumed[0] - first_epoch + 1
        learner.restore(resumed[1])
    steps_per_epoch = math.ceil(len(examples.images) / batch_size)
    steps = epochs * steps_per_epoch
    learn_rates = (learn_rate * one_cycle(step / steps) for step in range(done * steps_per_epoch, steps))
    for epoch in range(first_epoch + done, first_epoch + epochs):
        start = time.perf_counter()
        try:
            train_loss, train_accuracy = train_epoch(learner, learn_rates, examples, batch_size, augment, criterion)
        except NotFinite as error:
            raise UserError(
                f"the loss is no longer finite in step {error} of epoch {epoch}; the checkpoint is of the epoch "
                f"before: train again with a smaller --learn-rate than {learn_rate:g}"
            ) from error
        for statistic in net.buffers():
            processes.of_first(statistic)
        valid_loss, valid_accuracy = evaluate(net, valid)
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "valid_loss": valid_loss,
            "valid_accuracy": valid_accuracy,
            "learning_rate": learn_rate * one_cycle((epoch - first_epoch + 1) / epochs),
            "seconds": time.perf_counter() - start,
        }
        log(row, learner.state())


def figures_in_words(loss, accuracy):
    """Return validation figures in words; an accuracy of not-a-number is left out."""
    return f"validation loss {loss:.5f}" + ("" if math.isnan(accuracy) else f", accuracy {accuracy:.2%}")
