"""Convolutions with norm and modulation, time features, and the images that networks take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpm_tune.networks.layers import Conv, Modulation, TimeMLP, check_images


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
