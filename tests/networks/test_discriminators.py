"""Discriminators: the paper's parameter counts, shapes, and that time matters."""

import pytest
import torch
from torch import nn

from gpm_tune.networks.dcgan import DCGANDiscriminatorConfig
from gpm_tune.networks.embedding import FourierConfig, FourierEmbedding
from gpm_tune.networks.initialization import Default, Normal, Orthogonal, initialize
from gpm_tune.networks.mlp import MLPConfig


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_are_the_papers() -> None:
    assert parameters(MLPConfig(name="mlp").build((2,), embedding=128)) == 855_553
    dcgan = DCGANDiscriminatorConfig(name="dcgan", width=64)
    assert parameters(dcgan.build((1, 32, 32), embedding=128)) == 3_355_010


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 32, 32), (3, 64, 64)])
def test_dcgan_gives_a_scalar_per_image_for_every_side(shape: tuple[int, ...]) -> None:
    network = DCGANDiscriminatorConfig(name="dcgan", width=4).build(shape, embedding=8)
    assert network(torch.randn(5, *shape), torch.randn(5, 8)).shape == (5,)


@pytest.mark.parametrize("shape", [(2,), (1, 28, 28), (1, 32, 16)])
def test_dcgan_refuses_what_it_cannot_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="'dcgan' takes images of 16x16, 32x32, 64x64"):
        DCGANDiscriminatorConfig(name="dcgan").check_shape(shape)


@pytest.mark.parametrize("config", [MLPConfig(name="mlp"), DCGANDiscriminatorConfig(name="dcgan", width=8)])
def test_output_depends_on_input_and_time(config: MLPConfig | DCGANDiscriminatorConfig) -> None:
    network = config.model_copy(update={"init": Default()}).build((1, 16, 16), embedding=16)
    x, embedding = torch.randn(3, 1, 16, 16), torch.randn(3, 16)
    output = network(x, embedding)
    assert not torch.allclose(output, network(x + 1, embedding))
    assert not torch.allclose(output, network(x, embedding + 1))


def test_samples_of_a_batch_do_not_influence_each_other() -> None:
    """The shrinking simulation relies on it."""
    network = DCGANDiscriminatorConfig(name="dcgan", width=4).build((1, 16, 16), embedding=8).double()
    x, embedding = torch.randn(6, 1, 16, 16).double(), torch.randn(6, 8).double()
    torch.testing.assert_close(network(x, embedding)[:2], network(x[:2], embedding[:2]))


def test_modulation_with_zero_affine_is_the_identity() -> None:
    network = DCGANDiscriminatorConfig(name="dcgan", width=4).build((1, 16, 16), embedding=8)
    modulated = network.convolutions[0]
    nn.init.zeros_(modulated.affine.weight)
    nn.init.zeros_(modulated.affine.bias)
    x, time = torch.randn(2, 1, 16, 16), torch.randn(2, 16)
    torch.testing.assert_close(modulated(x, time), modulated.convolution(x))


def test_fourier_embedding_is_on_the_unit_circle_and_fixed() -> None:
    embedding = FourierEmbedding(FourierConfig(size=64, scale=16.0))
    t = torch.rand(10)
    cos, sin = embedding(t).chunk(2, dim=1)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(10, 32))
    assert not list(embedding.parameters())
    torch.testing.assert_close(
        embedding(torch.zeros(1)), torch.cat([torch.ones(1, 32), torch.zeros(1, 32)], 1)
    )


def test_fourier_frequencies_have_the_asked_scale() -> None:
    frequencies = FourierEmbedding(FourierConfig(size=20_000, scale=16.0)).frequencies
    assert frequencies.std().item() == pytest.approx(16.0, rel=0.03)


def test_initializations() -> None:
    layer = nn.Linear(400, 300)
    initialize(layer, Normal(gain=0.02))
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not layer.bias.any()
    initialize(layer, Orthogonal(gain=1.41))
    torch.testing.assert_close(layer.weight @ layer.weight.T, 1.41**2 * torch.eye(300), atol=1e-4, rtol=1e-4)
    before = layer.weight.clone()
    initialize(layer, Default())
    assert torch.equal(layer.weight, before)
