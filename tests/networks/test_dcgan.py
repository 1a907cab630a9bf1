"""DCGAN: the paper's parameter counts, and the counts of the other sides layer by layer."""

from __future__ import annotations

import torch
from counting import conv, modulation, normed, parameters
from torch import nn

from gpm_tune.networks.dcgan import DCGANDiscriminatorConfig, DCGANGeneratorConfig
from gpm_tune.networks.layers import Conv


def test_parameter_counts_are_the_papers() -> None:
    shape = (1, 32, 32)
    flow = DCGANDiscriminatorConfig(name="dcgan", first_bias=True)
    assert parameters(flow.build_discriminator(shape, embedding=128)) == 3_355_010
    gan = DCGANDiscriminatorConfig(name="dcgan", norm="batch")
    assert parameters(gan.build_discriminator(shape, embedding=0)) == 2_763_072
    assert parameters(DCGANGeneratorConfig(name="dcgan").build_generator(128, shape)) == 3_803_584


def test_discriminator_of_64_has_the_described_layers() -> None:
    network = DCGANDiscriminatorConfig(name="dcgan").build_discriminator((3, 64, 64), embedding=128)
    expected = conv(3, 64, 4, bias=False) + conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 512, 4)
    expected += conv(512, 1, 4, bias=False) + modulation(128, 64, 128, 256, 512, 1)
    assert parameters(network) == expected


def test_generator_of_64_has_the_described_layers() -> None:
    network = DCGANGeneratorConfig(name="dcgan").build_generator(128, (3, 64, 64))
    expected = normed(128, 512, 4) + normed(512, 256, 4) + normed(256, 128, 4) + normed(128, 64, 4)
    assert parameters(network) == expected + conv(64, 3, 4, bias=False)


def test_only_the_middle_convolutions_of_the_discriminator_have_a_norm_and_then_no_bias() -> None:
    network = DCGANDiscriminatorConfig(name="dcgan", width=2, norm="batch", first_bias=True)
    layers = network.build_discriminator((1, 32, 32), embedding=0).layers
    assert [layer.norm is not None for layer in layers] == [False, True, True, True, False]
    assert [layer.convolution.bias is not None for layer in layers] == [True, False, False, False, False]


def test_without_norm_the_generators_convolutions_have_biases_except_the_last() -> None:
    layers = DCGANGeneratorConfig(name="dcgan", width=2, norm="none").build_generator(3, (1, 16, 16)).layers
    assert [layer.norm for layer in layers] == [None] * 4
    assert [layer.convolution.bias is not None for layer in layers] == [True, True, True, False]


def test_every_convolution_is_modulated_by_the_time() -> None:
    network = DCGANDiscriminatorConfig(name="dcgan", width=2).build_discriminator((1, 64, 64), embedding=4)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    modulated = [module for module in network.modules() if isinstance(module, Conv) and module.affine]
    assert len(modulated) == len(convolutions) == 5


def test_a_zero_last_layer_gives_zero_images() -> None:
    network = DCGANGeneratorConfig(name="dcgan", width=2).build_generator(3, (1, 16, 16))
    nn.init.zeros_(network.layers[-1].convolution.weight)
    assert not network(torch.randn(2, 3)).any()
