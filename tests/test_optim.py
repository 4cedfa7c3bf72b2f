"""The optimizer against PyTorch's, the schedule and the average."""

import pytest
import torch
from helpers import random_dataset
from torch import nn

from models import create_model
from training.loop import Trainer, TrainingConfig
from training.optim import MUON_RATE, MuonAdam, WeightAverage, one_cycle, orthogonalize, split_parameters


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
    """Weights and statistics, with eta = 8; the start does not count."""
    model, averaged = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    average = WeightAverage(averaged, model)
    for step in range(1, 11):
        model.weight.data.fill_(step)
        model.running_mean.fill_(step)
        average.update()
        steps = [float(earlier) for earlier in range(1, step + 1)]
        assert averaged.weight.item() == pytest.approx(polynomial_decay(steps, 8), rel=1e-6)
        assert averaged.running_mean.item() == pytest.approx(polynomial_decay(steps, 8), rel=1e-6)
    assert 9 < averaged.weight.item() == averaged.running_mean.item() < 10


def test_weights_and_statistics_are_averaged():
    torch.manual_seed(0)
    net = create_model("UNet", 3, 4, 5)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    trainer, states = Trainer(net, random_dataset(6), TrainingConfig(batch_size=6, augment=())), []
    for _ in range(3):
        trainer.step(trainer.dataset.images, 0.01)
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    for name, average in net.state_dict().items():
        if average.is_floating_point():
            expected = polynomial_decay([state[name] for state in states], 8)
            torch.testing.assert_close(average, expected)
            assert not torch.equal(states[0][name], start[name])


def test_a_gradient_of_zero_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(3, 9)), torch.zeros(3, 9))


def test_muons_rate_is_two_and_a_half_times_the_learning_rate():
    """A first step from zero momentum: the direction is the orthogonalized gradient."""
    weight = torch.nn.Parameter(torch.zeros(2, 8, 1, 1))
    weight.grad = torch.randn(2, 8, 1, 1)
    direction = orthogonalize(weight.grad.flatten(1)).view_as(weight)  # any positive factor leaves it as it is
    MuonAdam([weight], []).step(0.1)
    assert torch.allclose(weight, -0.25 * direction, atol=1e-4)
