"""What differs between kinds of models is asked by a method: nothing outside `models` looks at the kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from examples import KERNEL_FLOW, MODELS, POINTS, experiment_of

from gpm_tune.models import ParticleModel, ParticleModelConfig, SamplingOptions
from gpm_tune.models.flow import Flow
from gpm_tune.training import Experiment
from gpm_tune.training.description import build_empty

ROOT = Path(__file__).parent.parent.parent
MODEL_ROOM = ROOT / "gpm_tune" / "models"
SOURCES = sorted(
    file
    for folder in ("gpm_tune", "analysis", "benchmarks", "documentation")
    for file in (ROOT / folder).rglob("*.py")
    if MODEL_ROOM not in file.parents
)
TESTS_OF_KINDS = {"isinstance", "issubclass"}
LOOKS_BY_NAME = {"getattr", "hasattr"}


def _with_subclasses(cls: type) -> Iterator[str]:
    yield cls.__name__
    for child in cls.__subclasses__():
        yield from _with_subclasses(child)


KINDS = {name for cls in (ParticleModel, ParticleModelConfig, Flow) for name in _with_subclasses(cls)}


def looks_at_kinds(source: str) -> list[str]:
    """The expressions in a source that test the class, the name or the members of a model."""
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if _looks_at_kind(node)]


def _looks_at_kind(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in TESTS_OF_KINDS:
            return any(_last_name(each) in KINDS for each in ast.walk(node.args[1]))
        return node.func.id in LOOKS_BY_NAME and _is_model(node.args[0])
    if isinstance(node, ast.MatchClass):
        return _last_name(node.cls) in KINDS
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(isinstance(s, ast.Attribute) and s.attr == "name" and _is_model(s.value) for s in sides)
    return False


def _is_model(node: ast.AST) -> bool:
    return _last_name(node) in ("model", "flow")


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(self.model, GeneratorModel)",
        "isinstance(flow, models.flow.Flow | None)",
        "issubclass(cls, (int, EDMConfig))",
        "experiment.model.name == 'edm'",
        "'edm' in (x, experiment.model.name) or experiment.model.name in POINTS",
        "getattr(experiment.model, 'teacher', None)",
        "hasattr(trainer.model, 'generator')",
    ],
)
def test_such_lines_are_found(line: str) -> None:
    assert len(looks_at_kinds(line)) == 1


def test_nothing_outside_models_looks_at_the_kind_of_a_model() -> None:
    assert len(SOURCES) > 150
    found = {str(file.relative_to(ROOT)): looks_at_kinds(file.read_text("utf-8")) for file in SOURCES}
    assert not {file: lines for file, lines in found.items() if lines}, "ask it by a method of the model"


@pytest.mark.parametrize("name", ["discr_flow", "kernel_flow", *MODELS])
def test_a_model_answers_as_its_configuration_does(name: str) -> None:
    plain = {"discr_flow": POINTS["model"], "kernel_flow": KERNEL_FLOW["model"], **MODELS}[name]
    experiment = (
        Experiment.model_validate(KERNEL_FLOW) if name == "kernel_flow" else experiment_of(model=plain)
    )
    config, (model, _) = experiment.model, build_empty(experiment)
    assert ("generator" in model.parts) == config.has_generator
    assert (model.steps == 0) == (model.solver is None) == (model.grid().points == ()) == config.has_generator
    assert (model.solver_name == "generator") == config.has_generator
    assert len(model.grid(SamplingOptions(steps=3)).points) == (0 if config.has_generator else 4)
    assert (experiment.given_teacher is not None) == config.scores_generated
