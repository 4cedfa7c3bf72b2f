"""The optimizer, the learning-rate schedule and the average of the weights.

torch.optim's Adam and Muon compute the same, but constructing one loads PyTorch's compiler, which takes as long as
importing torch. Here the learning rate is an argument of step().
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

MUON_RATE = 2.5  # Muon's learning rate as a multiple of Adam's


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), with PyTorch's fused kernel."""

    def __init__(self, parameters: Iterable[nn.Parameter], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.parameters = list(parameters)
        self.betas, self.eps = betas, eps
        self.exp_avg = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.exp_avg_sq = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the parameters from their gradients."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        settings = {"beta1": self.betas[0], "beta2": self.betas[1], "lr": learning_rate, "eps": self.eps}
        unused = {"max_exp_avg_sqs": [], "weight_decay": 0, "amsgrad": False, "maximize": False}
        state = {"exp_avgs": self.exp_avg, "exp_avg_sqs": self.exp_avg_sq, "state_steps": self.steps}
        adam([*self.parameters], gradients, **state, fused=True, **settings, **unused)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving averages of the gradients and of their squares, and the numbers of steps."""
        parts = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "steps": self.steps}
        return {f"{name}.{i}": tensor for name, tensors in parts.items() for i, tensor in enumerate(tensors)}


class Muon:
    """Muon for the weights of convolutions (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    The update is the Nesterov momentum of the gradient, orthogonalized as a matrix (out, in·k·k). Momentum and
    steps of the iteration are smaller than Jordan's 0.95 and 5: runs are short, and three steps are as good.
    """

    def __init__(self, weights: Iterable[nn.Parameter], momentum: float = 0.6):
        self.weights, self.momentum = list(weights), momentum
        self.momentum_buffers = [torch.zeros_like(weight) for weight in self.weights]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the weights from their gradients."""
        for weight, buffer in zip(self.weights, self.momentum_buffers):
            buffer.lerp_(weight.grad, 1 - self.momentum)
            direction = weight.grad.lerp(buffer, self.momentum).flatten(1)  # (out, in·k·k)
            rows, columns = direction.shape
            scale = max(1, rows / columns) ** 0.5  # of a matrix that is taller than wide
            weight.sub_(orthogonalize(direction).view_as(weight), alpha=scale * learning_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving averages of the gradients."""
        return {f"momentum_buffer.{i}": buffer for i, buffer in enumerate(self.momentum_buffers)}


class MuonWithAdam:
    """Muon for the weights of the middle convolutions, Adam for all other parameters of a network."""

    def __init__(self, net: nn.Module):
        middle, others = split_parameters(net)
        self.muon, self.adam = Muon(middle), Adam(others)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.muon.zero_grad()
        self.adam.zero_grad()

    def step(self, learning_rate: float) -> None:
        """Update all parameters from their gradients; Muon's learning rate is MUON_RATE times as large."""
        self.muon.step(MUON_RATE * learning_rate)
        self.adam.step(learning_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of both, as tensors that are updated in place."""
        return self.muon.state_dict() | self.adam.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
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
    """The average of a network's parameters over its training steps, kept in another network.

    Polynomial-decay averaging (Shamir and Zhang 2013, section 4, η = 8): covers about the last ninth of all steps.
    """

    def __init__(self, averaged_model: nn.Module, model: nn.Module):
        self.pairs = list(zip(averaged_model.parameters(), model.parameters()))
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Include the parameters after another step."""
        self.steps += 1
        for average, latest in self.pairs:
            average.lerp_(latest, 9 / (9 + self.steps))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the number of steps; the average itself is in the network."""
        return {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore what state_dict() returned."""
        self.steps = int(state_dict["steps"])
