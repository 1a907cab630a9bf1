"""YAML files that know on which line each key stands, and the errors that say so."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gpm_tune.config import nearest
from gpm_tune.errors import UserError, escaped

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)
MOST_VALUES = 20_000  # of a file, repeated ones included: a few lines of aliases can stand for billions
TOO_MANY = f"there are more than {MOST_VALUES:,} values, aliases resolved"
MOST_BYTES = 2_000_000  # of a file: nobody writes a longer one
MOST_PROBLEMS = 50  # that a message lists
MAX_DEPTH = 32
LONGEST_WORD = 100  # characters of a word, or value, that messages show
LONGEST_KEY = 200
LONGEST_ORIGIN = 200  # characters of an assignment, likewise
YAML = "tag:yaml.org,2002:"
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, where PyYAML has it


class _UnsuitableError(yaml.MarkedYAMLError):
    """Valid YAML that has no place in a study."""

    def __init__(self, problem: str, node: Any) -> None:
        """node: or event, either of which knows its line."""
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """Reads what JSON can say: null, booleans, numbers of 64 bits, text, lists, and mappings from text.

    2e-4 is a number, as everybody expects, and a date is text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. They are counted as they are read: the whole of a long file would take minutes."""
        self._composed += index is not None  # keys have none
        if self._composed > MOST_VALUES:
            raise _UnsuitableError(TOO_MANY, self.peek_event())  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def refuse_tag(self, node: yaml.Node) -> Any:
        """Python's objects, and YAML's sets, dates and bytes."""
        raise _UnsuitableError(f"the tag {_quoted(node.tag.replace(YAML, '!!'))} is not allowed", node)

    def construct_scalar_checked(self, node: yaml.ScalarNode) -> Any:
        """A scalar, refused where it is not what its tag says, or more than 64 bits or text can hold."""
        kind = node.tag.removeprefix(YAML)
        try:
            value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except (ValueError, LookupError):
            raise _UnsuitableError(f"{_quoted(node.value)} is not a valid {kind}", node) from None
        if isinstance(value, int) and abs(value) >= 2**63:
            raise _UnsuitableError("the number needs more than 64 bits", node)
        if isinstance(value, str) and not _is_text(value):
            raise _UnsuitableError(f"{_quoted(value)} has characters that text cannot have", node)
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (f"{YAML}timestamp", f"{YAML}value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{YAML}float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_Loader.yaml_constructors = {
    **{YAML + kind: _Loader.construct_scalar_checked for kind in ("null", "bool", "int", "float", "str")},
    **{YAML + kind: yaml.SafeLoader.yaml_constructors[YAML + kind] for kind in ("seq", "map")},
    None: _Loader.refuse_tag,
}


class Document:
    """A YAML mapping with the line of every key, to which values can be set from a command line."""

    def __init__(self, source: str, data: dict[str, Any], lines: Mapping[Location, int]) -> None:
        self.source = source
        self.data = data
        self._lines = lines
        self._origins: dict[Location, str] = {}  # of values that the file does not have

    @classmethod
    def load(cls, path: Path) -> Document:
        """Read a file.

        Raises UserError where it is missing, too long, no YAML, no mapping, or repeats a key.
        """
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise UserError(f"{path}: is too long: expected at most {MOST_BYTES:,} bytes")
            text = content.decode()
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise UserError(f"{path}:{line}: cannot be read: not UTF-8 text: {error.reason}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        data, lines = _read(text, lambda line: f"{path}:{line}")
        if not isinstance(data, dict):
            raise UserError(f"{path}: expected keys and values (`name: …`), found none")
        return cls(str(path), data, lines)

    def set(self, assignment: str) -> None:
        """Apply `dotted.key=value`, the value read as YAML. Raises UserError where it is no such thing."""
        path, separator, text = assignment.partition("=")
        origin = f"--set {printable(assignment)[:LONGEST_ORIGIN]}"
        if not separator or not path:
            raise UserError(f"{origin}: expected KEY=VALUE, such as experiment.seed=1")
        value, _ = _read(text, lambda _line: origin)
        self.assign(path, value, origin)

    def assign(self, path: str, value: Any, origin: str) -> None:
        """Give the key at a dotted path a value; `origin` says in errors where it came from."""
        location = self._locate(path)
        if len(location) > MAX_DEPTH:
            raise UserError(f"{origin}: the key is nested more than {MAX_DEPTH} deep")
        parent: Any = self.data
        for key in location[:-1]:
            old = parent.get(key)
            parent[key] = dict(old) if isinstance(old, dict) else {}  # an alias elsewhere keeps the old one
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
        part = _at(self.data, at)
        try:
            return model.model_validate(part)
        except ValidationError as error:
            details = error.errors()
        nameless = [
            d["loc"] for d in details if d["type"] == "union_tag_not_found" and isinstance(d["input"], dict)
        ]
        if nameless:  # with an empty name the names that there are come to light
            named = copy.deepcopy(part)
            for location in nameless:
                _at(named, self._strip_tags(location, at))["name"] = ""
            try:
                model.model_validate(named)
            except ValidationError as error:
                details = error.errors()
        raise self.refusal(self._problem(each, at) for each in details)

    def refusal(self, problems: Iterable[tuple[Location, str]]) -> UserError:
        """What is wrong, a line each: `file:line: dotted.key: sentence`."""
        found = [f"{self.at(location)}: {_sentence(location, problem)}" for location, problem in problems]
        messages = list(dict.fromkeys(found))
        more = [f"and {len(messages) - MOST_PROBLEMS} more"] if len(messages) > MOST_PROBLEMS else []
        return UserError("\n".join([*messages[:MOST_PROBLEMS], *more]))

    def at(self, location: Location) -> str:
        """`file:line` of a key, or the command-line assignment that gave the value."""
        for length in range(len(location), -1, -1):
            prefix = location[:length]
            if prefix in self._origins:
                return self._origins[prefix]
            if prefix in self._lines:
                return f"{self.source}:{self._lines[prefix]}"
        return self.source

    def _problem(self, details: ErrorDetails, at: Location) -> tuple[Location, str]:
        location = at + self._strip_tags(details["loc"], at)
        if details["type"] in ("unknown_key", "boolean"):
            location = (*location, details["ctx"]["key"])
        elif details["type"] == "union_tag_invalid":
            location = (*location, "name")
        return location, reason(details)

    def _strip_tags(self, location: Location, at: Location) -> Location:
        """Drop what pydantic adds to a location beyond the keys: the tags of unions."""
        node = _at(self.data, at)
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


def as_yaml(data: object) -> str:
    """Plain data as the text of a file."""
    return yaml.dump(data, Dumper=DUMPER, sort_keys=False, allow_unicode=True)


def reason(details: ErrorDetails) -> str:
    """What pydantic says of a value, in the words of study files."""
    context = details.get("ctx", {})
    match details["type"]:
        case "unknown_key" | "boolean":
            return details["msg"]
        case "union_tag_invalid":
            tag, names = context["tag"], context["expected_tags"].replace("'", "").split(", ")
            if not tag:
                return f"the key is missing; valid: {', '.join(sorted(names))}"
            return f"unknown name {_quoted(tag)}; {nearest(tag, names)}"
        case "model_type" | "model_attributes_type" | "dict_type" | "union_tag_not_found":
            text = "expected keys and values"
        case "list_type" | "tuple_type":
            text = "expected a list"
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            text = "expected a whole number"
        case "float_type" | "float_parsing":
            text = "expected a number"
        case "bool_type" | "bool_parsing":
            text = "expected true or false"
        case "string_type":
            text = "expected text"
        case "literal_error":
            text = f"expected {context['expected']}"
        case "missing":
            text = "the key is missing"
        case "too_short":
            text = f"expected at least {context['min_length']} item{'s'[: context['min_length'] > 1]}"
        case _:
            message = details["msg"].removeprefix("Value error, ")
            text = message[0].lower() + message[1:]
    given = details["input"]
    found = given is None or isinstance(given, str | int | float | bool)
    if not found:
        return text
    problem, end, advice = text.partition("\nhelp: ")
    return f"{problem}, found {_quoted(given)}{end}{advice}"


def _at(node: Any, location: Location) -> Any:
    for key in location:
        node = node[key]
    return node


def _read(text: str, at: Callable[[int], str]) -> tuple[Any, dict[Location, int]]:
    """The data of a YAML text, None where it has none, and the line of every key.

    at: what names a line in messages. Raises UserError where the text has no place in a study.
    """
    lines: dict[Location, int] = {}
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, lines
        _record_lines(root, (), lines)
        return loader.construct_document(root), lines
    except _UnsuitableError as error:
        raise UserError(f"{at(_line(error))}: {printable(str(error.problem))}") from None
    except yaml.MarkedYAMLError as error:
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{at(_line(error))}: not valid YAML: {printable(reason)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = _quoted(text[error.position])
        raise UserError(f"{at(line)}: not valid YAML: the character {character} is not allowed") from None
    except RecursionError:
        raise UserError(f"{at(1)}: nested more than {MAX_DEPTH} deep, or in itself") from None


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _record_lines(node: yaml.Node, location: Location, lines: dict[Location, int]) -> None:
    """Note the line of everything below a node, and refuse what has no place in a study."""
    if len(location) > MAX_DEPTH:
        raise _UnsuitableError(f"nested more than {MAX_DEPTH} deep, or in itself", node)
    if len(lines) > MOST_VALUES:
        raise _UnsuitableError(TOO_MANY, node)
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _refuse_odd_key(key)
            inner = (*location, key.value)
            if inner in lines:
                raise _UnsuitableError(f"key {_quoted(key.value)} stands here a second time", key)
            lines[inner] = key.start_mark.line + 1
            _record_lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _record_lines(value, (*location, index), lines)


def _refuse_odd_key(key: yaml.Node) -> None:
    if not isinstance(key, yaml.ScalarNode):
        raise _UnsuitableError("a key must be text, this is a list or a mapping", key)
    if key.tag not in (f"{YAML}str", f"{YAML}merge"):
        kind = key.tag.removeprefix(YAML)
        raise _UnsuitableError(f"a key must be text, {_quoted(key.value)} is read as {kind}: quote it", key)
    if len(key.value) > LONGEST_KEY:
        raise _UnsuitableError(f"the key {_quoted(key.value)} is longer than {LONGEST_KEY} characters", key)
    if not _is_text(key.value):
        raise _UnsuitableError(f"the key {_quoted(key.value)} has characters that text cannot have", key)


def _is_text(value: str) -> bool:
    """Whether it can be stored, and be a path: escapes in quotes give characters that no file may have."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def printable(text: str) -> str:
    """A text on one line, without what a terminal might obey, and with long words cut."""
    return re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:LONGEST_WORD]}…", escaped(text))


def _sentence(location: Location, problem: str) -> str:
    """A problem, and what to do about it where the problem says so, on a line each."""
    key = ".".join(map(str, location))
    lines = (f"{key}: {problem}" if key else problem).split("\nhelp: ", 1)
    return "\nhelp: ".join(map(printable, lines))


def _quoted(value: object) -> str:
    """As in a file, cut where it is long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_WORD else f"{text[:LONGEST_WORD]}…"
