"""How weights start: their distributions, for every kind of layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpm_tune.networks.initialization import Default, Normal, Orthogonal, initialize

WEIGHTED = [nn.Linear(400, 300), nn.Conv2d(200, 100, 3), nn.ConvTranspose2d(200, 100, 3)]
NORMS = [nn.BatchNorm1d(20_000), nn.BatchNorm2d(20_000), nn.GroupNorm(10, 20_000)]


@pytest.mark.parametrize("layer", WEIGHTED, ids=lambda layer: type(layer).__name__)
def test_normal_weights_have_the_gain_as_standard_deviation(layer: nn.Linear) -> None:
    initialize(layer, Normal(gain=0.02))
    assert layer.weight.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not layer.bias.any()


@pytest.mark.parametrize("layer", WEIGHTED, ids=lambda layer: type(layer).__name__)
def test_orthogonal_weights_are_orthogonal_rows_times_the_gain(layer: nn.Linear) -> None:
    initialize(layer, Orthogonal(gain=1.41))
    rows = layer.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, 1.41**2 * torch.eye(len(rows)), atol=1e-4, rtol=1e-4)
    assert not layer.bias.any()


@pytest.mark.parametrize("initialization", [Normal(gain=0.02), Orthogonal(gain=1.41)], ids=lambda i: i.name)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_norm_scales_are_spread_around_1_by_the_gain(
    norm: nn.GroupNorm, initialization: Normal | Orthogonal
) -> None:
    initialize(norm, initialization)
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=4 * initialization.gain / 20_000**0.5)
    assert norm.weight.std().item() == pytest.approx(initialization.gain, rel=0.03)
    assert not norm.bias.any()


def test_default_leaves_everything_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    initialize(network, Default())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_layers_without_bias_and_layers_inside_layers_are_initialised() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(30, 30, 3, bias=False)), nn.ReLU())
    initialize(network, Normal(gain=5.0))
    assert next(network.parameters()).std().item() == pytest.approx(5.0, rel=0.1)
