"""The optimizer, the learning-rate schedule and the average of the weights.

torch.optim has Muon and Adam, but its Muon takes only matrices, and constructing either loads PyTorch's compiler, which
takes as long as importing torch.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

MUON_RATE = 2.5  # Muon's learning rate as a multiple of Adam's


class MuonAdam:
    """Muon for some weights of convolutions, and Adam for all other parameters.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): the update is the Nesterov momentum of the
    gradient, orthogonalized as a matrix (out, in·k·k). The momentum (0.6) and the number of iterations (3) are smaller
    than Jordan's (0.95 and 5), because runs are shorter here. Adam: Kingma and Ba 2015, algorithm 1.
    """

    momentum, betas, eps = 0.6, (0.9, 0.999), 1e-8

    def __init__(self, muon_weights: list[Any], adam_parameters: list[Any]):
        self.muon_weights, self.adam_parameters = muon_weights, adam_parameters
        self.momentum_buffer = [torch.zeros_like(weight) for weight in muon_weights]
        self.exp_avg = [torch.zeros_like(parameter) for parameter in adam_parameters]
        self.exp_avg_sq = [torch.zeros_like(parameter) for parameter in adam_parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in adam_parameters]

    def zero_grad(self) -> None:
        """Set the gradients to None."""
        for parameter in self.muon_weights + self.adam_parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the parameters from their gradients; Muon's learning rate is MUON_RATE times as large."""
        for weight, buffer in zip(self.muon_weights, self.momentum_buffer):
            buffer.lerp_(weight.grad, 1 - self.momentum)
            direction = weight.grad.lerp(buffer, self.momentum).flatten(1)  # (out, in·k·k)
            rows, columns = direction.shape
            scale = max(1, rows / columns) ** 0.5  # of a matrix that is taller than wide
            weight.sub_(orthogonalize(direction).view_as(weight), alpha=scale * MUON_RATE * learning_rate)
        (beta1, beta2), gradients = self.betas, [parameter.grad for parameter in self.adam_parameters]
        settings: dict[str, Any] = {"lr": learning_rate, "beta1": beta1, "beta2": beta2, "eps": self.eps, "fused": True}
        settings |= {"exp_avgs": self.exp_avg, "exp_avg_sqs": self.exp_avg_sq, "state_steps": self.steps}
        unused: dict[str, Any] = {"max_exp_avg_sqs": [], "weight_decay": 0, "amsgrad": False, "maximize": False}
        adam(self.adam_parameters, gradients, **settings, **unused)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that changes from step to step, as tensors that are updated in place."""
        names = ("momentum_buffer", "exp_avg", "exp_avg_sq", "steps")
        return {f"{name}.{i}": tensor for name in names for i, tensor in enumerate(getattr(self, name))}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore what state_dict() returned. Raises KeyError or RuntimeError if it does not fit."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state_dict[name])


def split_parameters(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return (the weights of all convolutions but the first and the last, all other parameters) of a network."""
    middle = [parameter for parameter in net.parameters() if parameter.ndim == 4][1:-1]
    return middle, [parameter for parameter in net.parameters() if not any(parameter is one for one in middle)]


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return a matrix with the same singular vectors and singular values near 1, the closer the more steps.

    Newton-Schulz iteration with Jordan's coefficients: x becomes (a + b g + c g²) x, where g = x xᵀ. The factors
    commute, so that their product is found from g alone, which is smaller than a wide x.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    gram = x @ x.T
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(steps):
        factor = a * identity + torch.addmm(gram, gram, gram, beta=b, alpha=c)
        product, gram = factor @ product, factor @ gram @ factor
    return product @ x


def one_cycle(progress: float, warmup: float = 0.3, start: float = 1 / 25) -> float:
    """Return the learning rate, as a fraction of its peak, at `progress` from 0 to 1 (Smith and Topin 2019).

    It rises linearly from `start` during the first `warmup` of the run, then falls to zero as a cosine.
    """
    if progress < warmup:
        return start + (1 - start) * progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


class WeightAverage:
    """The average of a network's weights and batch norm's statistics over its training steps, kept in another network.

    Polynomial-decay averaging (Shamir and Zhang 2013, section 4, η = 8): covers about the last ninth of all steps.
    """

    def __init__(self, averaged_model: nn.Module, model: nn.Module):
        pairs = zip(averaged_model.state_dict().values(), model.state_dict().values())
        self.pairs = [pair for pair in pairs if pair[0].is_floating_point()]  # all but batch norm's counters
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Include the weights after another step."""
        self.steps += 1
        for average, latest in self.pairs:
            average.lerp_(latest, 9 / (8 + self.steps))
