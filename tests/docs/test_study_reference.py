"""The reference of the study file says all that the schema knows, and names only what the paper has."""

import re
from collections import Counter
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from study_reference import keys, names, reachable, render, words

from gpm_tune.config import Config
from gpm_tune.networks import MLPConfig

CLASSES = list(reachable())
OF_THE_PAPER = ("gpm_tune.data.", "gpm_tune.models.", "gpm_tune.networks.", "gpm_tune.sampling.")
# What gpm_tune has beyond the paper, and choices of which the paper's text says nothing.
BEYOND_THE_PAPER = {
    "ABConfig",
    "DPM2Config",
    "DPMppConfig",
    "Default",
    "DigitsConfig",
    "EnergyKernel",
    "FolderConfig",
    "FourierConfig",
    "GaussianKernel",
    "IPNDMConfig",
    "LearnedGrid",
    "ListedGrid",
    "LogSNRGrid",
    "Normal",
    "Orthogonal",
    "PositionalConfig",
    "RestartConfig",
    "SigmaGrid",
    "TrainingNoise",
    "UniPCConfig",
}
SECTIONS = {"2", "2.1", "2.2", "3.1", "3.2", "3.3", "4.1", "4.2", "4.4"}
SECTIONS |= {"A.1", "A.2", "A.3", "A.4", "B.1", "B.1.1", "B.1.2", "B.2"}
SECTIONS |= {"C.1", "C.2", "C.3", "C.4", "C.5", "C.6", "D.1", "D.2", "D.3"}
LAST = {"equation": 28, "Table": 7, "Algorithm": 3}


@pytest.mark.parametrize("config", CLASSES, ids=lambda config: config.__name__)
def test_every_class_and_every_key_says_what_it_means(config: type[Config]) -> None:
    assert config.__doc__
    for key, field in keys(config):
        if key == "name" and names(config):
            continue  # it chooses the class, which has said what it is
        assert re.fullmatch(r"\S+ .+[.]", field.description or ""), f"{key}: {field.description!r}"


def test_every_class_that_the_paper_has_names_its_place() -> None:
    without = {c.__name__ for c in CLASSES if f"{c.__module__}.".startswith(OF_THE_PAPER) and not c.paper}
    assert without == BEYOND_THE_PAPER


@pytest.mark.parametrize("config", [c for c in CLASSES if c.paper], ids=lambda config: config.__name__)
def test_places_in_the_paper_exist(config: type[Config]) -> None:
    sections = re.findall(r"\b[A-D](?:\.\d)+|(?<=section )[\d.]*\d", config.paper)
    assert set(sections) <= SECTIONS
    assert sections
    for kind, pattern in (
        ("equation", r"\((\d+)\)"),
        ("Table", r"Table (\d+)"),
        ("Algorithm", r"Algorithm (\d+)"),
    ):
        assert all(1 <= int(number) <= LAST[kind] for number in re.findall(pattern, config.paper))


def test_the_page_has_a_section_for_every_class_and_no_link_that_leads_nowhere() -> None:
    page = render()
    ids = re.findall(r"^### .* \{ #(\S+) \}$|<a id=\"([^\"]+)\"", page, re.MULTILINE)
    anchors = Counter(first or second for first, second in ids)
    assert set(anchors.values()) == {1}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= anchors.keys()
    assert len(re.findall(r"^### ", page, re.MULTILINE)) == len(CLASSES)


def row(anchor: str) -> list[str]:
    line = next(line for line in render().splitlines() if f'id="{anchor}"' in line)
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[2:-1]]


def test_a_row_has_type_bounds_default_and_meaning() -> None:
    assert row("training.steps")[:2] == ["whole number ≥ 0", "required"]
    assert row("budget.hours")[:2] == ["number > 0 or `null`", "`null`"]
    assert row("discrflow.discriminator")[1] == "`{name: dcgan, first_bias: true, init: {name: orthogonal}}`"
    assert row("score_gan.noise".replace("_", ""))[1] == "`{sigma_min: 0.32, rho: 3.0}`"
    assert row("floatrange.float")[:2] == ["list of 2, each number", "required"]
    assert "[`nsga2`, `nsga3`](#nsga)" in row("study.sampler")[0]


def test_inference_only_keys_say_so() -> None:
    note = "*Inference-only.*"
    for anchor in ("experiment.evaluation", "edm.solver", "edm.sampling_steps", "edm.sampling_noise"):
        assert row(anchor)[2].endswith(note)
    for anchor in ("discrflow.sampling_steps", "scoregan.noise", "training.steps"):
        assert note not in row(anchor)[2]


TYPES: dict[str, Any] = {
    "list of 2, each number ≥ 0 and < 1": tuple[
        Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]
    ],
    "list, each whole number": tuple[int, ...],
    "`a`, `b` or `null`": Literal["a", "b"] | None,
    "scalar or list, each text": str | int | float | bool | None | list[str],
    "mapping to [`mlp`](#mlp)": dict[str, MLPConfig],
}


@pytest.mark.parametrize("expected", TYPES)
def test_types_are_said_in_words(expected: str) -> None:
    assert words(TYPES[expected]) == expected
