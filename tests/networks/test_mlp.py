"""MLP: the paper's parameter counts in every role, and how the embedding enters."""

from __future__ import annotations

import pytest
import torch
from counting import parameters
from torch import nn

from gpm_tune.networks.initialization import Default
from gpm_tune.networks.mlp import MLPConfig


def test_parameter_counts_are_the_papers() -> None:
    mlp = MLPConfig(name="mlp")
    assert parameters(mlp.build_discriminator((2,), embedding=128)) == 855_553
    assert parameters(mlp.build_discriminator((2,), embedding=0)) == 790_017
    assert parameters(mlp.build_generator(128, (2,))) == 855_042
    assert parameters(mlp.build_denoiser((2,), embedding=128)) == 856_066


def test_the_embedding_is_concatenated_to_the_flat_input() -> None:
    config = MLPConfig(name="mlp", width=8, depth=1, init=Default())
    network = config.build_discriminator((1, 2, 2), embedding=3)
    x, embedding = torch.randn(5, 1, 2, 2), torch.randn(5, 3)
    first, activation, last = network.layers
    hidden = activation(first(torch.cat([x.flatten(1), embedding], 1)))
    torch.testing.assert_close(network(x, embedding), last(hidden).squeeze(1))


@pytest.mark.parametrize(("name", "at_minus_1"), [("leaky_relu", -0.2), ("relu", 0.0), ("silu", -0.2689414)])
def test_activations_stand_between_the_layers(name: str, at_minus_1: float) -> None:
    config = MLPConfig.model_validate({"name": "mlp", "width": 4, "depth": 3, "activation": name})
    layers = config.build_generator(2, (2,)).layers
    assert [isinstance(layer, nn.Linear) for layer in layers] == [True, False] * 3 + [True]
    assert layers[1](torch.tensor(-1.0)).item() == pytest.approx(at_minus_1)


def test_every_shape_is_welcome() -> None:
    for shape in [(2,), (3, 5), (1, 28, 28)]:
        MLPConfig(name="mlp").check_shape(shape)


def test_dropout_drops_hidden_features_in_training_only() -> None:
    config = MLPConfig(name="mlp", width=10_000, depth=1, dropout=0.3, init=Default())
    network = config.build_denoiser((2,), embedding=3)
    x, embedding = torch.randn(1, 2), torch.randn(1, 3)
    hidden = network.layers[1](torch.ones(1, 10_000))
    assert (hidden == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(network(x, embedding), network(x, embedding))
    network.eval()
    assert torch.equal(network(x, embedding), network(x, embedding))
