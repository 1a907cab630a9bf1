"""The JSON Schema that editors use: it accepts what the program does, and the published one is the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from examples import MODELS, POINTS, study_data
from jsonschema import Draft202012Validator

from gpm_tune.documents import Document
from gpm_tune.study.definition import space
from gpm_tune.study.definition.schema import as_text, experiment_schema, study_schema
from gpm_tune.study.definition.specification import load_experiment, shipped_studies

SHIPPED = sorted(shipped_studies().glob("*.yaml"))
STUDIES = Draft202012Validator(study_schema())
EXPERIMENTS = Draft202012Validator(experiment_schema())


class YAML12(yaml.SafeLoader):
    """Plain values as editors read them: by the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012


for tag, pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}.items():
    YAML12.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), None)


@pytest.mark.parametrize("validator", [STUDIES, EXPERIMENTS], ids=["study", "experiment"])
def test_the_schemas_are_schemas(validator: Draft202012Validator) -> None:
    Draft202012Validator.check_schema(validator.schema)
    assert validator.schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_valid_and_read_the_same_by_editors(path: Path) -> None:
    text = path.read_text()
    data = yaml.load(text, YAML12)
    assert data == Document.load(path).data
    assert [error.message for error in STUDIES.iter_errors(data)] == []
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named
    assert (path.parent / named[1]).is_file()


def test_the_published_schema_is_that_of_the_program() -> None:
    published = (shipped_studies() / "study.schema.json").read_text(encoding="utf-8")
    assert json.loads(published) == study_schema(), "gpm-tune schema -o search_spaces/study.schema.json"
    assert published == as_text(study_schema())


@pytest.mark.parametrize("name", ["edm", "gan", "score_gan", "mmd_generator"])
def test_experiments_are_valid_as_given_and_with_every_default(name: str) -> None:
    given = {**POINTS, "model": MODELS[name]}
    resolved = load_experiment(Document("test", given, {})).model_dump(mode="json")
    for data in (given, resolved):
        assert [error.message for error in EXPERIMENTS.iter_errors(data)] == []


ACCEPTED: dict[str, dict[str, Any]] = {
    "start points": {"start_from": ["base", "best.yaml", "0" * 32, {"model.eta": 3.0}]},
    "a search of any path": {"search": {"model.some.plugins.key": {"float": [0.0, 1.0]}}},
    "conditions": {"search": {"model.eta": {"int": [1, 2], "when": {"model.loss": ["ipm", "hinge"]}}}},
    "choices of any type": {"search": {"model.discriminator": {"choice": [{"name": "mlp"}, {"name": "x"}]}}},
    "a teacher's file": {
        "experiment": {**POINTS, "model": {**MODELS["score_gan"], "teacher": {"experiment": "edm.yaml"}}}
    },
    "a whole number for a real one": {"resources": {"gpu": 1}},
    "nothing for null": {"confirm": None},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_the_program_accepts_is_valid(case: str) -> None:
    data = study_data(**ACCEPTED[case])
    assert [error.message for error in STUDIES.iter_errors(data)] == []


REFUSED: dict[str, dict[str, Any]] = {
    "an unknown key": {"budgets": {"trials": 3}},
    "an unknown key inside": {"experiment": space.put(POINTS, {"training.stepz": 3})},
    "a number in YAML 1.1": {"experiment": space.put(POINTS, {"training.steps": "200_000"})},
    "a number out of its bounds": {"experiment": space.put(POINTS, {"training.optimizer.lr": 0})},
    "an unknown model": {"experiment": {**POINTS, "model": {"name": "vae"}}},
    "a member without its name": {"experiment": space.put(POINTS, {"model.discriminator.init": {"gain": 1}})},
    "another member's key": {"experiment": space.put(POINTS, {"model.discriminator.norm": "batch"})},
    "a tuple of three": {"experiment": space.put(POINTS, {"training.optimizer.betas": [0.5, 0.9, 0.9]})},
    "two distributions in one": {"search": {"model.eta": {"float": [1.0, 2.0], "choice": [1.0]}}},
    "one bound": {"search": {"model.eta": {"float": [1.0]}}},
    "no search": {"search": {}},
    "an unknown sampler": {"sampler": {"name": "tpee"}},
    "a scheduler without what it needs": {"scheduler": {"name": "pbt"}},
    "a name with a space": {"name": "my study"},
    "a teacher's experiment that is none": {
        "experiment": {**POINTS, "model": {**MODELS["score_gan"], "teacher": {"experiment": {"seed": 0}}}}
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_invalid(case: str) -> None:
    assert not STUDIES.is_valid(study_data(**REFUSED[case]))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_searched_paths_are_known_to_the_schema(path: Path) -> None:
    known = STUDIES.schema["properties"]["search"]["properties"]
    searched = Document.load(path).data["search"]
    assert set(searched) <= set(known)
    assert not any("teacher" in name for name in known)


def test_editors_show_which_keys_are_inference_only() -> None:
    known = STUDIES.schema["properties"]["search"]["properties"]
    assert known["model.sampling_noise.rho"]["description"].endswith("Inference-only.")
    assert "Inference-only" not in known["training.optimizer.lr"]["description"]
    of_edm, of_discr_flow, _ = known["model.sampling_steps"]["description"].splitlines()
    assert of_edm.endswith("Inference-only.")
    assert not of_discr_flow.endswith("Inference-only.")
    evaluation = EXPERIMENTS.schema["properties"]["evaluation"]
    assert evaluation["inference_only"] is True
    assert evaluation["description"].endswith("Inference-only.")


def test_every_key_has_a_description() -> None:
    definitions = STUDIES.schema["$defs"]
    nodes = {"study": STUDIES.schema, **definitions}
    lacking = [
        f"{name}.{key}"
        for name, node in nodes.items()
        for key, inner in node.get("properties", {}).items()
        if "description" not in {**definitions.get(inner.get("$ref", "").rpartition("/")[2], {}), **inner}
    ]
    assert lacking == []
