"""Whether generated samples are copies of training samples."""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_tune.metrics.distances import CHUNK, pairwise_distances
from gpm_tune.metrics.metric import Generated, Metric, Real


class MemorizationGap(Metric):
    """How often the real sample nearest to a generated one is held out, against how often by chance: h/c - 1.

    Of N training and m held-out samples, h is the share of generated ones whose nearest is held out, and
    c = m/(N + m). A model that has learnt the distribution, and no sample of it, has 0 on average, as
    training samples are to it what held-out ones are. Below 0 its samples lie too near to those that it was
    trained on: -1 where each is nearly a copy. Above 0 they lie nearer to held-out samples than chance has
    it, which is noise, or the sign of training samples unlike the others.
    """

    name, mode, images = "memorization_gap", "max", True

    def __init__(self, real: Real) -> None:
        self._held_out, self._training = real.features, real.training_features()
        self._chance = len(self._held_out) / (len(self._held_out) + len(self._training))

    def measure(self, generated: Generated) -> float:
        """In feature space; what is as near to both counts half."""
        return generated.once(self._nearer_to_held_out).mean().item() / self._chance - 1

    def error(self, generated: Generated) -> float:
        """By bootstrap."""
        nearer = generated.once(self._nearer_to_held_out)
        return (generated.weights @ nearer / len(nearer)).std().item() / self._chance

    def _nearer_to_held_out(self, x: Tensor) -> Tensor:
        """Of each of x (n, d): 1, 0, or ½."""
        to_training, to_held_out = _nearest(x, self._training), _nearest(x, self._held_out)
        return ((to_held_out < to_training).double() + (to_held_out <= to_training).double()) / 2


def _nearest(x: Tensor, y: Tensor) -> Tensor:
    """The distance (n,) of each of x (n, d) from the nearest of y (m, d)."""
    parts = [
        torch.stack([pairwise_distances(some, others).amin(1) for others in y.split(CHUNK)]).amin(0)
        for some in x.split(CHUNK)
    ]
    return torch.cat(parts)
