"""Embeddings of the time: on the unit circle, at the described frequencies."""

from __future__ import annotations

import math

import pytest
import torch

from gpm_tune.networks.embedding import FourierConfig, PositionalConfig


@pytest.mark.parametrize("config", [FourierConfig(size=64), PositionalConfig(size=64)])
def test_embeddings_are_on_the_unit_circle_and_fixed(config: FourierConfig | PositionalConfig) -> None:
    embedding = config.build()
    cos, sin = embedding(torch.rand(10)).chunk(2, dim=1)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(10, 32))
    assert not list(embedding.parameters())
    assert "frequencies" in embedding.state_dict()
    start = torch.cat([torch.ones(1, 32), torch.zeros(1, 32)], 1)
    torch.testing.assert_close(embedding(torch.zeros(1)), start)


def test_fourier_frequencies_have_the_asked_scale() -> None:
    frequencies = FourierConfig(size=16_000, scale=16.0).build().frequencies
    assert frequencies.std().item() == pytest.approx(2 * math.pi * 16.0, rel=0.03)


def test_fourier_embeddings_are_drawn_anew() -> None:
    config = FourierConfig()
    assert not torch.equal(config.build().frequencies, config.build().frequencies)


def test_positional_frequencies_fall_from_1_to_a_ten_thousandth_by_a_constant_factor() -> None:
    frequencies = PositionalConfig(size=256).build().frequencies.double()
    assert frequencies[0].item() == 1.0
    assert frequencies[-1].item() == pytest.approx(1e-4, rel=1e-5)
    factors = frequencies[1:] / frequencies[:-1]
    torch.testing.assert_close(factors, factors[:1].expand(127), atol=1e-5, rtol=1e-5)
