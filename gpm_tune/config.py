"""What every configuration object of the package has in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

MAX_WIDTH = 2**14  # units of a layer, or size of a vector: what is beyond is taken for a slip
MAX_SAMPLING_STEPS = 10_000  # of sampling, likewise
MAX_MAGNITUDE = 1e6  # of quantities that are squared, likewise
MIN_MAGNITUDE = 1e-6  # of quantities that are squared and divided by, likewise
SEEDS = 2**32  # how many there are, from 0: what NumPy takes, and torch with a step beside it
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
NUMBERS = (int, float, int | None, float | None)
# Marks a key, with all that is below it: it changes how a trained model is sampled or measured, and not its
# training. As in `Field(32, json_schema_extra=INFERENCE_ONLY)`; the JSON Schema has the mark, too.
INFERENCE_ONLY: JsonDict = {"inference_only": True}


class Config(BaseModel):
    """An immutable, validated part of an experiment or a study; unknown keys are refused by name.

    Docstrings and descriptions of keys are what the reference of the study file prints.
    """

    paper: ClassVar[str] = ""  # where the paper has it: sections, appendices, (equations); empty for nowhere

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = [field.alias or name for name, field in cls.model_fields.items()]
            for key in data:
                if key not in valid:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key '{key}'; {hint}",
                        {"key": str(key), "hint": nearest(str(key), valid)},
                    )
        return data

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, data: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(data, dict) else ():
            if field.annotation in NUMBERS and isinstance(data.get(name), bool):
                raise PydanticCustomError(
                    "boolean",
                    "expected a number, found {value}",
                    {"key": name, "value": str(data[name]).lower()},
                )
        return data

    def trained_part(self) -> dict[str, Any]:
        """As plain data, without inference-only keys."""
        return self.model_dump(mode="json", exclude=_inference_only(self))

    def inference_part(self) -> dict[str, Any]:
        """As plain data, inference-only keys alone."""
        return self.model_dump(mode="json", include=_inference_only(self))

    @property
    def inference_only_keys(self) -> list[str]:
        """The dotted paths of its inference-only keys, sorted; what is below one is not listed."""
        return sorted(_dotted(_inference_only(self)))


def is_inference_only(field: FieldInfo) -> bool:
    """Whether a key of a configuration class has the mark."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.items() >= INFERENCE_ONLY.items()


def _inference_only(value: Any) -> dict[Any, Any]:
    """The marked keys in a configuration, or a sequence of them, as pydantic includes and excludes keys."""
    inner: dict[Any, Any] = {}
    if isinstance(value, Config):
        for name, field in type(value).model_fields.items():
            inner[name] = is_inference_only(field) or _inference_only(getattr(value, name))
    elif isinstance(value, list | tuple):
        inner = dict(enumerate(map(_inference_only, value)))
    return {key: marked for key, marked in inner.items() if marked}


def _dotted(keys: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, inner in keys.items():
        if inner is True:
            yield f"{prefix}{key}"
        else:
            yield from _dotted(inner, f"{prefix}{key}.")


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped word: the closest valid one if any is close, and all that are valid."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1)
    suggestion = f"did you mean '{close[0]}'? " if close else ""
    return f"{suggestion}valid: {', '.join(names)}"
