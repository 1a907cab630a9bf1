"""What every configuration object of the package has in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Config(BaseModel):
    """An immutable, validated part of an experiment or a study; unknown keys are refused by name.

    Docstrings and descriptions of keys are what the reference of the study file prints.
    """

    paper: ClassVar[str] = ""  # where the paper has it: sections, appendices, (equations); empty for nowhere

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

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


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped word: the closest valid one if any is close, and all that are valid."""
    names = sorted(valid)
    close = difflib.get_close_matches(word, names, n=1)
    suggestion = f"did you mean '{close[0]}'? " if close else ""
    return f"{suggestion}valid: {', '.join(names)}"
