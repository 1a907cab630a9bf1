"""Convolutions with norm and modulation, time features, and the images that networks take."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gpm_tune.networks.layers import Conv, Dropout, Modulation, TimeMLP, check_images


@pytest.mark.parametrize(
    ("norm", "bias", "has_bias"),
    [
        (False, None, True),
        (True, None, False),
        (False, False, False),
        (True, True, True),
    ],
)
def test_a_convolution_has_a_bias_unless_a_norm_follows_or_it_is_told(
    norm: bool, bias: bool | None, has_bias: bool
) -> None:
    assert (Conv(2, 3, 3, norm=norm, bias=bias).convolution.bias is not None) == has_bias


@pytest.mark.parametrize("norm", [False, True])
def test_modulation_with_zero_affine_is_the_identity(norm: bool) -> None:
    modulated = Conv(2, 3, 3, norm=norm, time=16)
    assert modulated.affine is not None
    nn.init.zeros_(modulated.affine.weight)
    nn.init.zeros_(modulated.affine.bias)
    x, time = torch.randn(2, 2, 8, 8), torch.randn(2, 16)
    plain = modulated.convolution(x)
    expected = plain if modulated.norm is None else modulated.norm(plain)
    torch.testing.assert_close(modulated(x, time), expected)


def test_modulation_scales_and_shifts_every_channel_after_the_norm() -> None:
    modulated = Conv(2, 3, 3, norm=True, time=4)
    assert modulated.affine is not None
    x, time = torch.randn(5, 2, 8, 8), torch.randn(5, 4)
    scale, shift = modulated.affine(time).chunk(2, dim=1)
    y = modulated(x, time)
    normed = nn.BatchNorm2d(3)(modulated.convolution(x))
    torch.testing.assert_close(y, (1 + scale)[..., None, None] * normed + shift[..., None, None])


def test_time_features_are_twice_the_embedding_and_none_without_one() -> None:
    modulation = Modulation(8)
    features = modulation(torch.randn(5, 8))
    assert features is not None
    assert features.shape == (5, 16)
    assert modulation.features == 16
    without = Modulation(0)
    assert without.features == 0
    assert without(None) is None
    assert not list(without.parameters())


def test_the_time_mlp_ends_with_an_activation() -> None:
    mlp = TimeMLP(4, 6)
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU]
    assert mlp(torch.randn(100, 4)).min() > -0.3


def test_transposed_convolutions_invert_the_resampling() -> None:
    x = torch.randn(2, 3, 8, 8)
    down = Conv(3, 4, 4, stride=2, padding=1)
    up = Conv(4, 3, 4, stride=2, padding=1, transposed=True)
    assert up(down(x)).shape == x.shape


def test_images_must_be_square_and_of_a_known_side() -> None:
    check_images("net", (3, 32, 32), (16, 32))
    for shape in [(2,), (32, 32), (3, 32, 16), (3, 64, 64)]:
        with pytest.raises(ValueError, match="network 'net' takes images of 16x16, 32x32, the data has"):
            check_images("net", shape, (16, 32))


@given(st.floats(0.01, 0.99), st.integers(1, 3), st.booleans())
def test_dropout_drops_its_share_and_keeps_the_mean(p: float, channels: int, last: bool) -> None:
    layer = Dropout(p)
    x = torch.ones(64, channels, 32, 32)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    torch.manual_seed(0)
    y = layer(x)
    assert y.stride() == x.stride(), "a mask in another memory format would slow what follows"
    assert y.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-5)
    spread = (p * (1 - p) / x.numel()) ** 0.5
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=5 * spread + 2**-16)
    # Neighbours share a random number, and must not know of each other.
    dropped = (y.permute(0, 2, 3, 1) if last else y).reshape(-1) == 0
    for distance in (1, 2, 3, 4):
        both = (dropped[distance:] & dropped[:-distance]).float().mean().item()
        assert both == pytest.approx(p**2, abs=6 * (p**2 * (1 - p**2) / x.numel()) ** 0.5 + 1e-4)


def test_dropout_follows_the_global_seed_and_passes_everything_in_evaluation() -> None:
    layer, x = Dropout(0.5), torch.randn(4, 3, 5, 5)
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        masks.append(layer(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(layer.eval()(x), x)


def test_dropout_stops_the_gradients_of_what_it_drops() -> None:
    x = torch.ones(8, 4, 4, 4, requires_grad=True)
    y = Dropout(0.25)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
