"""How samples spread over the modes of the data, against the data themselves (Figure 4, appendix C.2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpm_tune.analysis.figures import look, new_figure
from gpm_tune.analysis.pictures import REAL, Shown
from gpm_tune.data import DataConfig, GaussiansConfig
from gpm_tune.data.dataset import to_float
from gpm_tune.metrics.features import small_features
from gpm_tune.metrics.modes import nearest_modes

DIGITS = ("mnist", "digits")  # what the bundled classifier knows
UNCLEAR = 0.5  # no class is as probable as this
DATA = "data"
CLASSIFIED_AT_ONCE = 1000

_log = logging.getLogger("gpm_tune")


class Modes(NamedTuple):
    """The modes of a data set, M of them."""

    names: list[str]  # M, and what a sample of none is called
    title: str
    of: Callable[[Tensor], Tensor]  # samples (n, *shape) -> (n,) in [0, M]; M for none


def find_modes(shown: Sequence[Shown]) -> Modes | None:
    """Those of the models' data; None, with a warning, where none are known or the data differ."""
    configs = [each.subject.experiment.data for each in shown]
    if any(config != configs[0] for config in configs):
        _log.warning("no coverage of modes: the models were trained on different data; draw them apart")
        return None
    modes = modes_of(configs[0])
    if modes is None:
        _log.warning("no coverage of modes: data '%s' has no classifier of its modes", configs[0].name)
    return modes


def modes_of(data: DataConfig) -> Modes | None:
    """Gaussians by their distance, digits by the bundled classifier; None for other data."""
    if isinstance(data, GaussiansConfig):
        names = [*map(str, range(data.modes)), "beyond 3 std\nof all"]
        return Modes(names, "Gaussian", lambda x: nearest_modes(x, data.means, data.std))
    if data.name not in DIGITS:
        return None
    names = [*map(str, range(10)), f"none above\n{UNCLEAR:.0%}"]
    return Modes(names, "digit, by the bundled classifier of MNIST", _classify)


@torch.no_grad()
def _classify(images: Tensor) -> Tensor:
    """The class of images (n, C, H, W) in [-1, 1]; 10 where none is clear."""
    network = small_features()
    batches = (images.clamp(-1, 1) / 2 + 0.5).split(CLASSIFIED_AT_ONCE)
    probability, digit = torch.cat([network.classify(batch).softmax(1) for batch in batches]).max(1)
    return torch.where(probability >= UNCLEAR, digit, 10)


def effective_modes(counts: Tensor) -> float:
    """exp(entropy) of counts (M,): M where all are alike, 1 where there is but one; 0 without any."""
    if counts.sum() == 0:
        return 0.0
    shares = counts.double() / counts.sum()
    return math.exp(torch.special.entr(shares).sum().item())


def coverage_figure(
    shown: Sequence[Shown], modes: Modes, samples: int, split: str, seed: int
) -> tuple[Figure, pd.DataFrame]:
    """The share of each model's samples in each mode, and that of the real data of a split.

    Bars have binomial standard errors. The table has a row per model, or the data, and mode.
    Raises UserError where the real data cannot be had.
    """
    experiment = shown[0].subject.experiment
    real = to_float(getattr(experiment.data.load(experiment.seed), split))
    parts = [_shares(modes, real, {"label": DATA, "data": experiment.data_label, "split": split})]
    for each in shown:
        nfe, x = each.sampler.draw(each.simulated(samples), seed)
        parts.append(_shares(modes, x[:samples], each.trace(nfe, seed)))
    return _bars(parts, modes), pd.concat(parts, ignore_index=True)


def _shares(modes: Modes, x: Tensor, trace: dict[str, object]) -> pd.DataFrame:
    counts = torch.bincount(modes.of(x), minlength=len(modes.names))
    shares = counts.double() / len(x)
    return pd.DataFrame(
        {
            **trace,
            "samples": len(x),
            "mode": [name.replace("\n", " ") for name in modes.names],
            "share": shares,
            "standard_error": (shares * (1 - shares) / len(x)).sqrt(),
            "effective_modes": effective_modes(counts[:-1]),
        }
    )


def _bars(parts: Sequence[pd.DataFrame], modes: Modes) -> Figure:
    figure, axes = new_figure(max(6.4, 0.22 * len(parts) * len(modes.names)))
    width = 0.8 / len(parts)
    for i, part in enumerate(parts):
        at = [mode + (i - (len(parts) - 1) / 2) * width for mode in range(len(modes.names))]
        color = REAL if i == 0 else look(i - 1)[0]
        one = part.iloc[0]
        label = f"{one['label']}: {one['effective_modes']:.1f} effective modes ({one['samples']:,} samples)"
        axes.bar(at, part["share"], width, yerr=part["standard_error"], color=color, label=label)
    axes.set_xticks(range(len(modes.names)), modes.names, fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.set(xlabel=modes.title, ylabel="share of samples (± standard error)")
    figure.legend(loc="outside upper left", fontsize=8, frameon=False)
    return figure
