"""YAML files that know on which line each key stands, and the errors that say so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gpm_tune.errors import UserError

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader in which 2e-4 is a number, as everybody expects, and not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class Document:
    """A YAML mapping with the line of every key, to which values can be set from a command line."""

    def __init__(self, source: str, data: dict[str, Any], lines: Mapping[Location, int]) -> None:
        self.source = source
        self.data = data
        self._lines = lines
        self._origins: dict[Location, str] = {}  # of values that the file does not have

    @classmethod
    def load(cls, path: Path) -> Document:
        """Read a file. Raises UserError where it is missing, no YAML, no mapping, or repeats a key."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        lines: dict[Location, int] = {}
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                raise UserError(f"{path}: expected keys and values (`name: …`), found none")
            _record_lines(root, (), lines, path)
            data = loader.construct_document(root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = f":{mark.line + 1}" if mark else ""
            raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid YAML: {error}") from None
        return cls(str(path), data, lines)

    def set(self, assignment: str) -> None:
        """Apply `dotted.key=value`, the value read as YAML. Raises UserError where it is no such thing."""
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise UserError(f"--set {assignment}: expected KEY=VALUE, such as experiment.seed=1")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise UserError(f"--set {assignment}: the value is not valid YAML: {error}") from None
        self.assign(path, value, f"--set {assignment}")

    def assign(self, path: str, value: Any, origin: str) -> None:
        """Give the key at a dotted path a value; `origin` says in errors where it came from."""
        location = self._locate(path)
        parent: Any = self.data
        for key in location[:-1]:
            if not isinstance(parent.get(key), dict):
                parent[key] = {}
            parent = parent[key]
        parent[location[-1]] = value
        self._origins[location] = origin

    def _locate(self, path: str) -> Location:
        """Split a dotted path, minding that keys themselves may contain dots (as in `search`)."""
        location: list[str] = []
        node: Any = self.data
        while path:
            keys = node if isinstance(node, dict) else {}
            fitting = [key for key in keys if path == key or path.startswith(f"{key}.")]
            if fitting:
                key = max(fitting, key=len)
            else:  # a new one: where keys are paths themselves, all that is left is one
                key = path if any("." in key for key in keys) else path.split(".", 1)[0]
            location.append(key)
            node, path = keys.get(key), path[len(key) + 1 :]
        return tuple(location)

    def parse(self, model: type[Model], at: Location = ()) -> Model:
        """Validate the document, or the part of it at a location.

        Raises UserError that lists everything that is wrong, each with its line.
        """
        part: Any = self.data
        for key in at:
            part = part[key]
        try:
            return model.model_validate(part)
        except ValidationError as error:
            messages = [self._message(details, at) for details in error.errors()]
            raise UserError("\n".join(dict.fromkeys(messages))) from None

    def where(self, location: Location) -> str:
        """`file:line: dotted.key: `, or the command-line assignment that gave the value."""
        key = ".".join(map(str, location))
        return f"{self.at(location)}: {key}: " if key else f"{self.at(location)}: "

    def at(self, location: Location) -> str:
        """`file:line` of a key, or the command-line assignment that gave the value."""
        for length in range(len(location), -1, -1):
            prefix = location[:length]
            if prefix in self._origins:
                return self._origins[prefix]
            if prefix in self._lines:
                return f"{self.source}:{self._lines[prefix]}"
        return self.source

    def _message(self, details: ErrorDetails, at: Location) -> str:
        location = at + self._strip_tags(details["loc"], at)
        if details["type"] == "unknown_key":
            location = (*location, details["ctx"]["key"])
        text = details["msg"].removeprefix("Value error, ")
        given = details["input"]
        if details["type"] != "unknown_key" and isinstance(given, str | int | float | bool):
            text = f"{text}, found {given!r}"
        return self.where(location) + text[0].lower() + text[1:]

    def _strip_tags(self, location: Location, at: Location) -> Location:
        """Drop what pydantic adds to a location beyond the keys: the tags of unions."""
        node: Any = self.data
        for key in at:
            node = node[key]
        kept: list[str | int] = []
        for position, key in enumerate(location):
            inside = isinstance(node, dict) and key in node
            listed = isinstance(node, list) and isinstance(key, int) and key < len(node)
            if inside or listed:
                node = node[key]
                kept.append(key)
            elif position == len(location) - 1 and not self._is_tag(node, key):
                kept.append(key)  # a key that is missing
        return tuple(kept)

    @staticmethod
    def _is_tag(node: Any, key: str | int) -> bool:
        """Tags are the `name` of a member, or have a space; keys do not."""
        return not isinstance(node, dict) or key == node.get("name") or " " in str(key)


def _record_lines(node: yaml.Node, location: Location, lines: dict[Location, int], path: Path) -> None:
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*location, key.value)
            line = key.start_mark.line + 1
            if inner in lines:
                raise UserError(f"{path}:{line}: key '{key.value}' stands here a second time")
            lines[inner] = line
            _record_lines(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _record_lines(value, (*location, index), lines, path)
