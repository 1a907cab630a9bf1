"""ResNet: counts layer by layer, blocks as described, self-attention against a softmax by hand."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from counting import conv, linear, modulation, normed, parameters
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, relu

from gpm_tune.networks.initialization import Default
from gpm_tune.networks.layers import Conv
from gpm_tune.networks.resnet import (
    DownBlock,
    FirstBlock,
    ResNetDiscriminatorConfig,
    ResNetGeneratorConfig,
    SelfAttention,
    UpBlock,
)


def test_discriminator_of_64_has_the_described_layers() -> None:
    with torch.device("meta"):
        network = ResNetDiscriminatorConfig(name="resnet").build_discriminator((3, 64, 64), embedding=128)
    first = conv(3, 64, 3, bias=False) + conv(64, 64, 3) + conv(3, 64, 1)
    second = conv(64, 128, 3) + conv(128, 128, 3) + conv(64, 128, 1)
    third = conv(128, 256, 3) + conv(256, 256, 3) + conv(128, 256, 1)
    fourth = conv(256, 512, 3) + conv(512, 512, 3) + conv(256, 512, 1)
    fifth = conv(512, 1024, 3) + conv(1024, 1024, 3) + conv(512, 1024, 1)
    time = modulation(128, *3 * [64], *3 * [128], *3 * [256], *3 * [512], *3 * [1024])
    assert parameters(network) == first + second + third + fourth + fifth + linear(1024, 1) + time


def test_the_papers_discriminator_of_celeba_has_its_parameters() -> None:
    config = ResNetDiscriminatorConfig(
        name="resnet", first_bias=True, activation="leaky_relu", activated_shortcut=True
    )
    with torch.device("meta"):
        network = config.build_discriminator((3, 64, 64), embedding=128)
    assert parameters(network) == 22_700_865


def test_discriminator_of_32_with_batch_norm_and_attention_has_the_described_layers() -> None:
    config = ResNetDiscriminatorConfig(name="resnet", norm="batch", first_bias=True, attention_after=(0,))
    with torch.device("meta"):
        network = config.build_discriminator((1, 32, 32), embedding=0)
    first = conv(1, 128, 3) + conv(128, 128, 3) + conv(1, 128, 1)
    attention = sum(conv(a, b, 1, bias=False) for a, b in [(128, 16), (128, 16), (128, 64), (64, 128)]) + 1
    norm = 2 * 128
    second = norm + normed(128, 128, 3) + conv(128, 128, 3) + norm + conv(128, 128, 1)
    third = fourth = norm + normed(128, 128, 3) + conv(128, 128, 3)
    assert parameters(network) == first + attention + second + third + fourth + linear(128, 1)


def test_generator_of_64_has_the_described_layers() -> None:
    with torch.device("meta"):
        network = ResNetGeneratorConfig(name="resnet").build_generator(128, (3, 64, 64))
    first = linear(128, 1024 * 16)
    blocks = sum(
        2 * before + normed(before, after, 3) + conv(after, after, 3) + conv(before, after, 1)
        for before, after in [(1024, 512), (512, 256), (256, 128), (128, 64)]
    )
    assert parameters(network) == first + blocks + 2 * 64 + conv(64, 3, 3)


def test_generator_of_32_keeps_its_width_and_still_has_shortcuts() -> None:
    with torch.device("meta"):
        config = ResNetGeneratorConfig(name="resnet", norm="none")
        network = config.build_generator(128, (1, 32, 32))
    block = 2 * conv(256, 256, 3) + conv(256, 256, 1)
    assert parameters(network) == linear(128, 256 * 16) + 3 * block + conv(256, 1, 3)


def test_every_convolution_is_modulated_by_the_time() -> None:
    config = ResNetDiscriminatorConfig(name="resnet", width=8, attention_after=(0, 2))
    network = config.build_discriminator((1, 32, 32), embedding=4)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    modulated = [module for module in network.modules() if isinstance(module, Conv) and module.affine]
    assert len(modulated) == len(convolutions) == 3 + 4 + 3 + 2 + 4 + 2


def discriminator(**changes: Any) -> ResNetDiscriminatorConfig:
    return ResNetDiscriminatorConfig.model_validate({"name": "resnet", **changes})


def test_the_first_block_pools_its_shortcut_before_the_convolution() -> None:
    block = FirstBlock(discriminator(), 3, 4, time=5).double()
    x, time = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 5).double()
    y = block.second(relu(block.first(x, time)), time)
    expected = avg_pool2d(y, 2) + block.shortcut(avg_pool2d(x, 2), time)
    torch.testing.assert_close(block(x, time), expected)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("outputs", "down"), [(3, True), (4, True), (4, False)])
def test_the_shortcut_of_the_discriminator_is_norm_then_convolution_then_pool(
    norm: bool, outputs: int, down: bool
) -> None:
    block = DownBlock(discriminator(norm="batch" if norm else "none"), 3, outputs, down=down, time=5).double()
    x, time = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 5).double()
    y = block.second(relu(block.first(relu(block.norm(x)), time)), time)
    shortcut = block.shortcut(block.shortcut_norm(x), time)
    expected = avg_pool2d(y + shortcut, 2) if down else y + shortcut
    torch.testing.assert_close(block(x, time), expected)
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == (3 if norm else 0)


def test_a_block_that_changes_nothing_has_the_identity_as_shortcut() -> None:
    block = DownBlock(discriminator(norm="batch"), 3, 3, down=False, time=0)
    nn.init.zeros_(block.second.convolution.weight)
    nn.init.zeros_(block.second.convolution.bias)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(block(x, None), x)


@pytest.mark.parametrize("outputs", [3, 4])
def test_an_activated_shortcut_makes_a_block_blind_to_what_its_activation_hides(outputs: int) -> None:
    """Below 0 ReLU gives 0, and a leaky ReLU a fifth: the shortcut sees it, unless it is activated, too."""
    x = torch.randn(2, 3, 8, 8)
    lower = torch.where(x < 0, x - 5, x)

    def difference(**changes: Any) -> float:
        block = DownBlock(discriminator(**changes), 3, outputs, down=outputs > 3, time=0)
        return (block(lower, None) - block(x, None)).abs().max().item()

    assert difference(activated_shortcut=True) == 0
    assert difference() > 0.1
    assert difference(activated_shortcut=True, activation="leaky_relu") > 0.1


def test_a_leaky_relu_lets_a_fifth_of_what_is_below_0_through() -> None:
    leaky, plain = (
        discriminator(activation=name, init={"name": "default"}).build_discriminator((1, 32, 32), embedding=0)
        for name in ("leaky_relu", "relu")
    )
    for network in (leaky, plain):
        nn.init.ones_(network.last.weight)
        network.layers = nn.ModuleList()  # its last layers alone
    x = -torch.rand(2, 128, 8, 8)
    expected = 0.2 * x.sum(dim=(1, 2, 3)) + leaky.last.bias
    torch.testing.assert_close(leaky(x), expected)
    torch.testing.assert_close(plain(x), plain.last.bias.expand(2))


def test_an_activated_shortcut_with_a_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="is for blocks without norm; norm is 'batch'"):
        discriminator(norm="batch", activated_shortcut=True)


def test_the_shortcut_of_the_generator_is_upsampling_then_convolution() -> None:
    block = UpBlock(4, 3, norm=True).double()
    x = torch.randn(2, 4, 5, 5).double()
    y = block.first(interpolate(relu(block.norm(x)), scale_factor=2))
    expected = block.second(relu(y)) + block.shortcut(interpolate(x, scale_factor=2))
    torch.testing.assert_close(block(x), expected)


def test_biases_are_left_out_where_a_norm_follows_directly() -> None:
    config = ResNetDiscriminatorConfig(name="resnet", width=8, norm="batch")
    first, *blocks = config.build_discriminator((1, 32, 32), embedding=0).layers
    assert [first.first.norm, first.second.norm] == [None, None]
    for block in [
        *blocks,
        *ResNetGeneratorConfig(name="resnet", width=8).build_generator(4, (1, 32, 32)).layers,
    ]:
        assert block.first.convolution.bias is None
        assert block.second.convolution.bias is not None
        assert block.shortcut is None or block.shortcut.convolution.bias is not None


def test_the_output_is_linear_in_the_sum_over_space() -> None:
    config = ResNetDiscriminatorConfig(name="resnet", width=8, init=Default())
    network = config.build_discriminator((1, 32, 32), embedding=0).double()
    x = features = torch.randn(3, 1, 32, 32).double()
    for layer in network.layers:
        features = layer(features, None)
    sums = relu(features).sum(dim=(2, 3))
    torch.testing.assert_close(network(x), sums @ network.last.weight[0] + network.last.bias)


def test_attention_starts_as_the_identity_and_then_changes_the_features() -> None:
    attention = SelfAttention(16)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(attention(x), x)
    nn.init.ones_(attention.gamma)
    assert not torch.allclose(attention(x), x)


@pytest.mark.parametrize("time", [0, 5])
def test_attention_is_the_softmax_by_hand(time: int) -> None:
    attention = SelfAttention(16, time).double()
    nn.init.constant_(attention.gamma, 0.7)
    x = torch.randn(2, 16, 4, 6).double()
    features = torch.randn(2, time).double() if time else None
    theta = attention.theta(x, features).reshape(2, 2, 24)
    phi = max_pool2d(attention.phi(x, features), 2).reshape(2, 2, 6)
    g = max_pool2d(attention.g(x, features), 2).reshape(2, 8, 6)
    weights = torch.einsum("bci,bcj->bij", theta, phi).softmax(dim=2)
    y = torch.einsum("bij,bcj->bci", weights, g).reshape(2, 8, 4, 6)
    torch.testing.assert_close(attention(x, features), x + 0.7 * attention.out(y, features))


def test_the_gradient_of_a_gradient_penalty_passes_through_attention() -> None:
    config = ResNetDiscriminatorConfig(name="resnet", width=8, attention_after=(0,))
    network = config.build_discriminator((1, 32, 32), embedding=4)
    nn.init.ones_(network.layers[1].gamma)
    x = torch.randn(2, 1, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x, torch.randn(2, 4)).sum(), x, create_graph=True)
    gradient.pow(2).sum().backward()
    assert network.layers[1].theta.convolution.weight.grad.any()


@pytest.mark.parametrize("role", ["discriminator", "generator"])
@pytest.mark.parametrize(("side", "valid"), [(32, 3), (64, 4)])
def test_attention_after_a_block_that_is_not_there_is_refused(
    role: Literal["discriminator", "generator"], side: int, valid: int
) -> None:
    kind = {"discriminator": ResNetDiscriminatorConfig, "generator": ResNetGeneratorConfig}[role]
    last = valid if role == "discriminator" else valid - 1
    kind(name="resnet", attention_after=(0, last)).check_shape((1, side, side))
    with pytest.raises(ValueError, match=f"blocks 0 to {last} .* after block {last + 1}"):
        kind(name="resnet", attention_after=(0, last + 1)).check_shape((1, side, side))
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        kind(name="resnet", attention_after=(-1,))


def test_attention_on_channels_that_8_does_not_divide_is_refused() -> None:
    config = ResNetDiscriminatorConfig(name="resnet", width=2, attention_after=(3,))
    config.check_shape((1, 64, 64))
    with pytest.raises(ValueError, match="block 3 of network 'resnet' gives 4; choose a width"):
        config.check_shape((1, 32, 32))
