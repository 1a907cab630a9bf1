"""The place of a model in the paper's taxonomy (Table 1), as `gpm-tune models` prints it."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Place(NamedTuple):
    """A combination of flow and generator, its knobs, and where the paper has it."""

    flow: Literal["score", "discriminator", "kernel"]
    generator: bool
    knobs: tuple[str, ...]  # paths into `model` that a study would search
    paper: str
