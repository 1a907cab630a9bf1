"""Configurations split in two: what training depends on, and what is inference-only."""

from typing import Any

from pydantic import Field

from gpm_tune.config import INFERENCE_ONLY, Config
from gpm_tune.models.particle_model import GaussianPrior


class Path(Config):
    """A marked key, one with an alias, and one that is neither."""

    length: float = Field(1.0, alias="float")
    steps: int = Field(8, json_schema_extra=INFERENCE_ONLY)
    name: str = "path"


class Whole(Config):
    """Configurations inside of configurations, alone, in sequences, and in a marked key."""

    one: Path = Path()
    several: tuple[Path, ...] = (Path(), Path())
    pair: list[Path | int] = Field([Path(), 3])
    marked: Path = Field(Path(), json_schema_extra=INFERENCE_ONLY)
    loose: dict[str, Any] = Field({"steps": 3})


def test_each_part_has_what_the_other_has_not() -> None:
    whole = Whole()
    trained = {"float": 1.0, "name": "path"}
    assert whole.trained_part() == {
        "one": trained,
        "several": [trained, trained],
        "pair": [trained, 3],
        "loose": {"steps": 3},
    }
    sampled = {"steps": 8}
    assert whole.inference_part() == {
        "one": sampled,
        "several": [sampled, sampled],
        "pair": [sampled],
        "marked": {"float": 1.0, "steps": 8, "name": "path"},
    }


def test_marked_keys_are_listed_without_what_is_below_them() -> None:
    expected = ["marked", "one.steps", "pair.0.steps", "several.0.steps", "several.1.steps"]
    assert Whole().inference_only_keys == expected


def test_a_configuration_without_marks_is_all_trained() -> None:
    plain = GaussianPrior(std=2.0)
    assert plain.trained_part() == plain.model_dump(mode="json")
    assert plain.inference_part() == {}
    assert plain.inference_only_keys == []


def test_the_json_schema_has_the_mark() -> None:
    properties = Path.model_json_schema()["properties"]
    assert properties["steps"]["inference_only"] is True
    assert "inference_only" not in properties["float"]
