"""FastGAN: counts layer by layer, blocks and gates as described."""

from __future__ import annotations

import pytest
import torch
from counting import conv, modulation, normed, parameters
from torch import nn
from torch.nn.functional import avg_pool2d, leaky_relu

from gpm_tune.networks.fastgan import (
    DownBlock,
    FastGANDiscriminatorConfig,
    FastGANGeneratorConfig,
    Gate,
    UpBlock,
)
from gpm_tune.networks.initialization import Default
from gpm_tune.networks.layers import Conv


def down(inputs: int, outputs: int) -> int:
    return normed(inputs, outputs, 4) + normed(outputs, outputs, 3) + normed(inputs, outputs, 1)


def test_generator_of_64_has_the_described_layers() -> None:
    with torch.device("meta"):
        network = FastGANGeneratorConfig(name="fastgan").build_generator(128, (3, 64, 64))
    first = normed(128, 1024, 4)
    to_8 = normed(512, 512, 3) + normed(256, 512, 3)
    to_16 = normed(256, 256, 3)
    to_32 = normed(128, 128, 3) + normed(64, 128, 3)
    to_64 = normed(64, 128, 3)
    gate = conv(512, 64, 4, bias=False) + conv(64, 64, 1, bias=False)
    last = conv(64, 3, 3, bias=False)
    assert parameters(network) == first + to_8 + to_16 + to_32 + to_64 + gate + last


def test_generator_of_32_has_the_described_layers() -> None:
    with torch.device("meta"):
        config = FastGANGeneratorConfig(name="fastgan", norm="none")
        network = config.build_generator(128, (1, 32, 32))
    first = conv(128, 1024, 4)
    blocks = conv(512, 512, 3) + conv(256, 512, 3) + conv(256, 256, 3) + conv(128, 128, 3) + conv(64, 128, 3)
    assert parameters(network) == first + blocks + conv(64, 1, 3, bias=False)


def test_discriminator_of_64_has_the_described_layers() -> None:
    with torch.device("meta"):
        network = FastGANDiscriminatorConfig(name="fastgan").build_discriminator((3, 64, 64), embedding=0)
    first = conv(3, 32, 3, bias=False)
    blocks = down(32, 64) + down(64, 128) + down(128, 256) + down(256, 512)
    gate = conv(64, 512, 4, bias=False) + conv(512, 512, 1, bias=False)
    last = normed(512, 512, 1) + conv(512, 1, 4, bias=False)
    assert parameters(network) == first + blocks + gate + last


def test_discriminator_of_32_with_time_has_the_described_layers() -> None:
    config = FastGANDiscriminatorConfig(name="fastgan", first_bias=True)
    with torch.device("meta"):
        network = config.build_discriminator((1, 32, 32), embedding=128)
    blocks = conv(1, 64, 3) + down(64, 128) + down(128, 256) + down(256, 512)
    last = normed(512, 512, 1) + conv(512, 1, 4, bias=False)
    time = modulation(128, 64, *3 * [128], *3 * [256], *3 * [512], 512, 1)
    assert parameters(network) == blocks + last + time


def test_every_convolution_is_modulated_by_the_time() -> None:
    config = FastGANDiscriminatorConfig(name="fastgan", width=2)
    network = config.build_discriminator((1, 64, 64), embedding=4)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    modulated = [module for module in network.modules() if isinstance(module, Conv) and module.affine]
    assert len(modulated) == len(convolutions) == 1 + 4 * 3 + 2 + 2


def test_a_down_block_is_the_mean_of_its_branches() -> None:
    block = DownBlock(3, 4, norm=True, time=5).double()
    x, time = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 5).double()
    one = leaky_relu(block.second(leaky_relu(block.first(x, time), 0.2), time), 0.2)
    other = leaky_relu(block.pooled(avg_pool2d(x, 2), time), 0.2)
    torch.testing.assert_close(block(x, time), torch.stack([one, other]).mean(dim=0))


def test_an_up_block_without_norm_gates_half_of_its_channels_by_the_other_half() -> None:
    block = UpBlock(1, 1, double=False, norm=False)
    nn.init.zeros_(block.first.convolution.weight)
    block.first.convolution.bias.data = torch.tensor([2.0, -1.0])
    expected = 2.0 * torch.tensor(-1.0).sigmoid()
    torch.testing.assert_close(block(torch.randn(1, 1, 4, 4)), expected.expand(1, 1, 8, 8))


@pytest.mark.parametrize("side", [4, 32])
def test_a_gate_gives_a_factor_between_0_and_1_for_every_channel(side: int) -> None:
    gate = Gate(3, 5)
    factors = gate(torch.randn(2, 3, side, side))
    assert factors.shape == (2, 5, 1, 1)
    assert ((factors > 0) & (factors < 1)).all()
    nn.init.zeros_(gate.second.convolution.weight)
    torch.testing.assert_close(gate(torch.randn(2, 3, side, side)), torch.full((2, 5, 1, 1), 0.5))


def test_the_gate_of_the_discriminator_multiplies_its_last_features() -> None:
    config = FastGANDiscriminatorConfig(name="fastgan", width=2, norm="none", init=Default())
    network = config.build_discriminator((1, 64, 64), embedding=0).double()
    x = torch.randn(3, 1, 64, 64).double()
    large = network.blocks[0](leaky_relu(network.first(x), 0.2), None)
    assert large.shape == (3, 4, 32, 32)
    small = large
    for block in list(network.blocks)[1:]:
        small = block(small, None)
    gated = leaky_relu(network.mix(small * network.gate(large)), 0.2)
    torch.testing.assert_close(network(x), network.last(gated).flatten())


def test_the_gate_of_the_generator_multiplies_the_features_before_the_image() -> None:
    config = FastGANGeneratorConfig(name="fastgan", width=2, init=Default())
    network = config.build_generator(3, (1, 64, 64)).double()
    z = torch.randn(4, 3).double()
    image = network(z)
    nn.init.zeros_(network.gate.second.convolution.weight)
    halved = network(z)
    network.gate = None
    torch.testing.assert_close(halved.atanh(), 0.5 * network(z).atanh())
    assert not torch.equal(image, halved)


def test_only_images_of_64_have_gates() -> None:
    assert FastGANGeneratorConfig(name="fastgan", width=2).build_generator(3, (1, 32, 32)).gate is None
    discriminator = FastGANDiscriminatorConfig(name="fastgan", width=2)
    assert discriminator.build_discriminator((1, 32, 32), embedding=0).gate is None
