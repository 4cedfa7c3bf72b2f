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

import distributed
from cli import UserError
from data import MAX_SCANNED_IMAGES, load_images, subsample, to_gray
from speed import GraphedStep

AUGMENTATIONS = ("mirror", "upside-down", "shift-x", "shift-y")


class ImageDataset(NamedTuple):
    """Images to learn from or to measure by, and what a network should make of some of them."""

    images: torch.Tensor  # (N, 3, H, W) uint8
    targets_of: Callable  # of images (M, 3, H, W): labels (M, H, W) uint8, or for regression themselves


def training_examples(args, learning, device):
    """Return the examples to train on, less those that --holdout keeps for validation.

    learning(images) returns their targets_of.
    """
    images = load_images(args, train=True)
    return make_dataset(device, hold_out(images, args.holdout)[0] if args.holdout else images, learning)


def validation_examples(args, learning, device):
    """Return the test examples, or with --holdout those that it keeps of the training images."""
    if args.holdout:
        return make_dataset(device, hold_out(load_images(args, train=True), args.holdout)[1], learning)
    return make_dataset(device, load_images(args, train=False), learning)


def make_dataset(device, images, learning):
    """Put images on the device, where half its free memory holds them, and find what finds their targets."""
    if device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        images = images.to(device)
    return ImageDataset(images, learning(images))


def hold_out(images, count):
    """Split off `count` images, the same ones for every seed of training: (the others, those).

    Of very many images, which need not fit into memory, the last ones.
    """
    if count >= len(images):
        raise UserError(f"--holdout {count}: there are only {len(images):,} training images")
    if len(images) > MAX_SCANNED_IMAGES:
        return images[:-count], images[-count:]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[count:].sort().values], images[order[:count].sort().values]


def class_weights(examples, num_colors, uniform=0.5):
    """Return a weight for every color, (K,), greater for rarer ones: 1 on average over the examples' pixels.

    One over the color's share of the pixels mixed with the same share for all (Zhang et
    al. 2016, equation 4, λ = `uniform`; a palette's colors need no smoothing over bins).
    """
    parts = subsample(examples.images).split(1000)
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


def device_of(net):
    """Return the device of a network."""
    return next(net.parameters()).device


@torch.no_grad()
def predict(net, images, batch_size=100):
    """Return the network's outputs in evaluation mode for uint8 images (N, 3, H, W), on its device."""
    was_training, device = net.training, device_of(net)
    net.eval()
    outputs = torch.cat([net(to_gray(part.to(device))) for part in images.split(batch_size)])
    net.train(was_training)
    return outputs


def evaluate(net, examples, batch_size=None, also=None):
    """Return (loss, accuracy) over all images in evaluation mode, exact for any batch size.

    Several processes share the images. `also`, where given, is called with the images,
    targets and outputs of each batch; each process then goes through all.
    """
    device = device_of(net)
    batch_size = batch_size or (1000 if device.type == "cuda" else 100)  # what the cache holds, or a GPU needs
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    mine = examples.images if also else examples.images[distributed.rank() :: distributed.world_size()]
    for images in mine.split(batch_size) if len(mine) else ():
        images = images.to(device)
        outputs, targets = predict(net, images, batch_size), examples.targets_of(images)
        sums += len(images) * torch.stack(loss_and_accuracy(outputs, targets))
        if also:
            also(images, targets, outputs)
    if not also:
        sums = distributed.all_reduce_sum(sums)
    return tuple((sums / len(examples.images)).tolist())


def evaluate_rows(net, examples, rows_of):
    """Return (loss, accuracy) as evaluate() does, and labeled rows of all pictures, on the CPU.

    rows_of(images, targets, outputs) makes the rows of one batch, each (N, 3, H, W).
    """
    batches = []
    figures = evaluate(net, examples, also=lambda *batch: batches.append(rows_of(*batch)))
    return figures, {label: torch.cat([batch[label] for batch in batches]).cpu() for label in batches[0]}


def augment(images, ways):
    """Change images (N, 3, H, W) in the named `ways`, each at random: mirror, upside-down or not, shift by a pixel.

    Borders are mirrored.
    """
    count, height, width = len(images), *images.shape[-2:]
    device = images.device

    def source_indices(size, shift, flip):  # the row or column that each pixel is taken from, (N, size)
        by = torch.randint(-1, 2, (count, 1), device=device) if shift in ways else 0
        wanted = (torch.arange(size, device=device) + by).abs().expand(count, size)
        wanted = torch.where(wanted < size, wanted, 2 * (size - 1) - wanted)
        if flip in ways:
            wanted = torch.where(torch.rand(count, 1, device=device) < 0.5, wanted.flip(1), wanted)
        return wanted

    rows, columns = source_indices(height, "shift-y", "upside-down"), source_indices(width, "shift-x", "mirror")

    images = images.gather(2, rows.view(count, 1, height, 1).expand_as(images))
    return images.gather(3, columns.view(count, 1, 1, width).expand_as(images))


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), by PyTorch's kernel for all parameters at once.

    torch.optim's would take 1.7 s to import, half of a short run's start.
    """

    def __init__(self, parameters, betas=(0.9, 0.999), epsilon=1e-8):
        self.parameters = list(parameters)
        self.betas, self.epsilon = betas, epsilon
        self.steps = torch.zeros((), device=self.parameters[0].device)
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate):
        """Move the parameters by their gradients, and forget those. The rate may be a tensor."""
        self.steps += 1
        torch._fused_adam_(
            self.parameters,
            [p.grad for p in self.parameters],
            self.means,
            self.squares,
            [],
            [self.steps] * len(self.parameters),
            lr=learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
        )
        for p in self.parameters:
            p.grad = None


def one_cycle(progress, warm_up=0.3):
    """Return the share of the peak learning rate after a share `progress` of a run (Smith and Topin 2019).

    It rises in a straight line for `warm_up` of the run, then falls to zero as a cosine does.
    """
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


def averaging_weight(steps):
    """Return the share of the latest weights in their average, after step number `steps`, from 1.

    Polynomial-decay averaging (Shamir and Zhang 2013, section 4, η = 8): the average
    reaches over about the last ninth of all steps, however many there are.
    """
    return 9 / (9 + steps)


@torch.no_grad()
def update_average(net, trained, share):
    """Move net's weights and statistics toward those of `trained` by this share of the way."""
    for average, latest in ((net.parameters(), trained.parameters()), (net.buffers(), trained.buffers())):
        floats = [pair for pair in zip(average, latest) if pair[0].is_floating_point()]
        if floats:
            average, latest = map(list, zip(*floats))
            way = torch._foreach_sub(latest, average)
            torch._foreach_mul_(way, share)
            torch._foreach_add_(average, way)


def tune_malloc():
    """Have glibc keep what tensors free for the next ones.

    It returns large blocks to the system and gets them anew, page by page, at every
    step: at batch 100 a seventh of the time. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def plain_loss_fn(outputs, targets, images):
    """Return the loss to learn from, and the accuracy, as loss_and_accuracy() has them."""
    return loss_and_accuracy(outputs, targets)


class Trainer:
    """A network in training: `trained` takes the optimizer's steps, `net` holds their average.

    `forward` is `trained`, which with several processes averages their gradients. Batch
    norm's statistics are then on CUDA those of the whole batch, on the CPU the first process's.
    `augment` names ways of augment(), loss_fn(outputs, targets, images) gives a
    batch's loss and accuracy, and `precision` is the arithmetic's torch.dtype.
    """

    def __init__(self, net, examples, augment=(), loss_fn=plain_loss_fn, precision=torch.float32):
        self.net, self.examples = net, examples
        self.augment, self.loss_fn, self.precision = augment, loss_fn, precision
        self.device = device_of(net)
        self.trained = copy.deepcopy(net)
        if distributed.world_size() > 1 and self.device.type == "cuda":
            self.trained = nn.SyncBatchNorm.convert_sync_batchnorm(self.trained)
        self.uncompile()
        self.optimizer = Adam(self.trained.parameters())

    def uncompile(self):
        """Have `forward` be what PyTorch's compiler has not touched."""
        self.trained._compiled_call_impl = None
        several = distributed.world_size() > 1
        self.forward = nn.parallel.DistributedDataParallel(self.trained) if several else self.trained

    def step(self, images, rates):
        """Learn from a batch of images (N, 3, H, W), uint8; return its mean (loss, accuracy), (2,).

        `rates`, (3,) float32 on the device: the learning rate, the share in the average,
        and the weight of this process's part of the batch. Nothing here waits for the device.
        """
        images = augment(images, self.augment)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            outputs = self.forward(to_gray(images))
        loss, accuracy = self.loss_fn(outputs.float(), self.examples.targets_of(images), images)
        (loss * rates[2]).backward()
        self.optimizer.step(rates[0])
        update_average(self.net, self.trained, rates[1])
        return torch.stack([loss.detach(), accuracy])

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
        """Take up a state where it was left, and forget the gradients of a step that broke off."""
        self.trained.zero_grad()
        self.net.load_state_dict(state["net"])
        self.trained.load_state_dict(state["trained"])
        self.optimizer.steps.fill_(state["optimizer"]["steps"])
        for name in ("means", "squares"):
            for mine, saved in zip(vars(self.optimizer)[name], state["optimizer"][name], strict=True):
                mine.copy_(saved)
        torch.set_rng_state(state["random"])
        if len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])


def train_epoch(trainer, step, learning_rates, batch_size):
    """Pass once over all examples in random order; return the mean (loss, accuracy) along the way.

    step(images, rates) is the trainer's or a faster one, and `learning_rates` an iterator
    over the steps' learning rates. Each process learns from its part of every batch.
    Raises NotFinite.
    """
    trainer.forward.train()
    images, rank, several = trainer.examples.images, distributed.rank(), distributed.world_size()
    order = distributed.broadcast_from_rank0(torch.randperm(len(images), device=trainer.device)).to(images.device)
    if rank:  # else all would augment alike; anew in every epoch, so that --resume need not know
        torch.manual_seed(int(order[0]) * several + rank)
    batches = order.split(batch_size)
    shares = [len(batch[rank::several]) / len(batch) for batch in batches]
    done = int(trainer.optimizer.steps)
    rates = torch.tensor(
        [
            (next(learning_rates), averaging_weight(number), share * several)
            for number, share in enumerate(shares, done + 1)
        ],
        device=trainer.device,
    )
    figures = []
    for number, batch in enumerate(tqdm(batches, leave=False, disable=True if rank else None, unit="step")):
        mine = batch[rank::several]
        mine = mine if len(mine) else batch[:1]  # a last batch of fewer images than processes: counts nothing
        figures.append(step(images[mine].to(trainer.device), rates[number]) * shares[number])
    figures = distributed.all_reduce_sum(torch.stack(figures).double()).cpu()  # (steps, 2)
    if not figures[:, 0].isfinite().all():
        raise NotFinite(figures[:, 0].isfinite().int().argmin().item() + 1)
    counts = torch.tensor([len(batch) for batch in batches])
    return tuple((figures * counts[:, None]).sum(0).div(len(images)).tolist())


class NotFinite(Exception):
    """The loss of a step, counted from 1, is no longer a finite number."""


def train(
    net,
    examples,
    valid,
    *,
    epochs,
    batch_size,
    learning_rate,
    augment,
    log,
    loss_fn=plain_loss_fn,
    precision=torch.float32,
    compile="off",
    first_epoch=1,
    resumed=None,
):
    """Train with Adam under a one-cycle learning rate; the network ends with averaged weights.

    `augment`, `loss_fn` and `precision` are those of Trainer, `compile` that of
    GraphedStep. Epochs count from `first_epoch`.
    Calls log(row, state) after each, with a dict of its figures and the trainer's state.
    `resumed`, (epoch, state), goes on after that epoch. Raises UserError if the loss
    is not finite.
    """
    tune_malloc()
    trainer = Trainer(net, examples, augment, loss_fn, precision)
    step = GraphedStep(trainer, compile, capture=trainer.device.type == "cuda" and distributed.world_size() == 1)
    done = 0
    if resumed:
        done = resumed[0] - first_epoch + 1
        trainer.restore(resumed[1])
    steps_per_epoch = math.ceil(len(examples.images) / batch_size)
    steps = epochs * steps_per_epoch
    learning_rates = (learning_rate * one_cycle(step / steps) for step in range(done * steps_per_epoch, steps))
    for epoch in range(first_epoch + done, first_epoch + epochs):
        start = time.perf_counter()
        try:
            train_loss, train_accuracy = train_epoch(trainer, step, learning_rates, batch_size)
        except NotFinite as error:
            raise UserError(
                f"the loss is no longer finite in step {error} of epoch {epoch}; the checkpoint is of the epoch "
                f"before: train again with a smaller --learn-rate than {learning_rate:g}"
            ) from error
        for statistic in net.buffers():
            distributed.broadcast_from_rank0(statistic)
        valid_loss, valid_accuracy = evaluate(net, valid)
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "valid_loss": valid_loss,
            "valid_accuracy": valid_accuracy,
            "learning_rate": learning_rate * one_cycle((epoch - first_epoch + 1) / epochs),
            "seconds": time.perf_counter() - start,
        }
        log(row, trainer.state())


def format_metrics(loss, accuracy):
    """Return validation figures in words; an accuracy of not-a-number is left out."""
    return f"validation loss {loss:.5f}" + ("" if math.isnan(accuracy) else f", accuracy {accuracy:.2%}")
