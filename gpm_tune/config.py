"""What every configuration object of the package has in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_WIDTH = 2**14  # units of a layer, or size of a vector: what is beyond is taken for a slip
MAX_SAMPLING_STEPS = 10_000  # of sampling, likewise
MAX_MAGNITUDE = 1e6  # of quantities that are squared, likewise
MIN_MAGNITUDE = 1e-6  # of quantities that are squared and divided by, likewise
SEEDS = 2**32  # how many there are, from 0: what NumPy takes, and torch with a step beside it
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
NUMBERS = (int, float, int | None, float | None)


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


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped word: the closest valid one if any is close, and all that are valid."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1)
    suggestion = f"did you mean '{close[0]}'? " if close else ""
    return f"{suggestion}valid: {', '.join(names)}"
