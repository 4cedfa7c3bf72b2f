"""The optimizer, the learning-rate schedule and weight averaging."""

import math
from itertools import chain

import torch
from torch.optim.adam import adam


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), with PyTorch's fused kernel for all parameters.

    torch.optim.Adam computes the same, but loads PyTorch's compiler when it is constructed, which takes
    as long as importing torch. Here the learning rate, which may be a tensor, is passed to step().
    """

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.exp_avgs = [torch.zeros_like(p) for p in self.parameters]
        self.exp_avg_sqs = [torch.zeros_like(p) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate):
        """Update the parameters from their gradients."""
        gradients = [p.grad for p in self.parameters]
        settings = {"beta1": 0.9, "beta2": 0.999, "lr": learning_rate, "eps": 1e-8}
        unused = {"max_exp_avg_sqs": [], "weight_decay": 0, "amsgrad": False, "maximize": False}
        averages = self.exp_avgs, self.exp_avg_sqs
        adam(self.parameters, gradients, *averages, state_steps=self.steps, fused=True, **settings, **unused)

    def state_dict(self):
        """Return the moving averages and step counts, as lists of tensors."""
        return {"exp_avgs": self.exp_avgs, "exp_avg_sqs": self.exp_avg_sqs, "steps": self.steps}

    def load_state_dict(self, state_dict):
        """Restore what state_dict() returned."""
        for name, tensors in self.state_dict().items():
            for mine, saved in zip(tensors, state_dict[name], strict=True):
                mine.copy_(saved)


def one_cycle(progress, warmup=0.3, start=1 / 25):
    """Return the learning rate, as a fraction of its peak, at `progress` from 0 to 1 (Smith and Topin 2019).

    It rises linearly from `start` during the first `warmup` of the run, then falls to zero as a cosine.
    """
    if progress < warmup:
        return start + (1 - start) * progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


@torch.no_grad()
def update_average(averaged_model, model, steps):
    """Move the averaged parameters and batch-norm statistics toward the latest, of step `steps`, a 0-d tensor.

    Polynomial-decay averaging (Shamir and Zhang 2013, section 4, η = 8): covers about the last ninth of all steps.
    """
    weight = 9 / (9 + steps)
    tensors = (chain(net.parameters(), net.buffers()) for net in (averaged_model, model))
    for average, latest in zip(*tensors):
        if average.is_floating_point():
            average.lerp_(latest, weight)
