"""The optimizers, the learning-rate schedule and weight averaging.

torch.optim's Adam and Muon compute the same, but constructing one loads PyTorch's compiler, which takes as
long as importing torch. Here each acts on one vector, with the learning rate, which may be a tensor, in step().
"""

import math

import torch
from torch.optim.adam import adam


def flatten(tensors):
    """Make tensors views of one vector, each in its order in memory; return the vector.

    One operation on the vector then takes the place of one for every tensor.
    """
    tensors = list(tensors)
    parts = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    vector = torch.cat(parts) if parts else torch.zeros(0)
    for tensor, part in zip(tensors, vector.split([len(part) for part in parts])):
        tensor.data = part.as_strided(tensor.shape, tensor.stride())
    return vector


def flatten_gradients(parameters):
    """Give parameters gradients of zero, which are views of one vector; return the vector."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return flatten(parameter.grad for parameter in parameters)


def middle_weights(net):
    """Return (the weights of all convolutions but the first and the last, all other parameters) of a network."""
    middle = [parameter for parameter in net.parameters() if parameter.ndim == 4][1:-1]
    return middle, [parameter for parameter in net.parameters() if not any(parameter is one for one in middle)]


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), with PyTorch's fused kernel."""

    def __init__(self, parameters, betas=(0.9, 0.999), eps=1e-8):
        parameters = list(parameters)
        self.vector, self.gradient = flatten(parameters), flatten_gradients(parameters)
        self.betas, self.eps = betas, eps
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.vector), torch.zeros_like(self.vector)
        self.steps = torch.zeros((), device=self.vector.device)

    @torch.no_grad()
    def step(self, learning_rate):
        """Update the parameters from their gradients, and reset those."""
        state = [self.vector], [self.gradient], [self.exp_avg], [self.exp_avg_sq]
        settings = {"beta1": self.betas[0], "beta2": self.betas[1], "lr": learning_rate, "eps": self.eps}
        unused = {"max_exp_avg_sqs": [], "weight_decay": 0, "amsgrad": False, "maximize": False}
        adam(*state, state_steps=[self.steps], fused=True, **settings, **unused)
        self.gradient.zero_()

    def state_dict(self):
        """Return the moving averages and the number of steps."""
        return {name: getattr(self, name) for name in ("exp_avg", "exp_avg_sq", "steps")}


class Muon:
    """Muon for the weights of convolutions (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    The update is the Nesterov momentum of the gradient, orthogonalized as a matrix (out, in·k·k). Momentum and
    steps of the iteration are smaller than Jordan's 0.95 and 5: runs are short, and three steps are as good.
    """

    def __init__(self, weights, momentum=0.6):
        self.vector, self.gradient = flatten(weights), flatten_gradients(weights)
        self.shapes, self.momentum = [(len(weight), weight[0].numel()) for weight in weights], momentum
        self.average = torch.zeros_like(self.vector)

    @torch.no_grad()
    def step(self, learning_rate):
        """Update the weights from their gradients, and reset those."""
        self.average.lerp_(self.gradient, 1 - self.momentum)
        direction = self.gradient.lerp_(self.average, self.momentum)
        sizes = [rows * columns for rows, columns in self.shapes]
        for weight, part, shape in zip(self.vector.split(sizes), direction.split(sizes), self.shapes):
            scale = max(1, shape[0] / shape[1]) ** 0.5  # of a matrix that is taller than wide
            weight.sub_(orthogonalize(part.view(shape)).flatten() * (scale * learning_rate))
        self.gradient.zero_()

    def state_dict(self):
        """Return the moving average of the gradient."""
        return {"average": self.average}


def orthogonalize(matrix, steps=3, coefficients=(3.4445, -4.7750, 2.0315)):
    """Return a matrix with the same singular vectors and singular values near 1, the closer the more steps.

    Newton-Schulz iteration with Jordan's coefficients: x becomes (a + b g + c g²) x, where g = x xᵀ. The factors
    commute, so that their product is found from g alone, which is smaller than a wide x.
    """
    a, b, c = coefficients
    x = matrix / (matrix.norm() + 1e-7)
    gram = x @ x.T
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(steps):
        factor = a * identity + torch.addmm(gram, gram, gram, beta=b, alpha=c)
        product, gram = factor @ product, factor @ gram @ factor
    return product @ x


def one_cycle(progress, warmup=0.3, start=1 / 25):
    """Return the learning rate, as a fraction of its peak, at `progress` from 0 to 1 (Smith and Topin 2019).

    It rises linearly from `start` during the first `warmup` of the run, then falls to zero as a cosine.
    """
    if progress < warmup:
        return start + (1 - start) * progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def averaging_weight(steps):
    """Return the weight of the latest parameters in their average after `steps` steps, a number or a tensor.

    Polynomial-decay averaging (Shamir and Zhang 2013, section 4, η = 8): covers about the last ninth of all steps.
    """
    return 9 / (9 + steps)
