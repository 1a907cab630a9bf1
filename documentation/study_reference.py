"""The reference of the study file: a table for every configuration class, made of the schema."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as bounds
import yaml
from pydantic.fields import FieldInfo

from gpm_tune.config import Config, is_inference_only
from gpm_tune.study.definition.distributions import Scalar
from gpm_tune.study.definition.schema import NOTE
from gpm_tune.study.definition.specification import StudyConfig

Places = dict[type[Config], list[tuple[type[Config], str]]]  # class -> the keys where it stands

# Title of each part of the page, and the modules whose classes it has.
ROOMS = {
    "Study": "gpm_tune.study.definition.specification",
    "Experiment": "gpm_tune.training.experiment",
    "Data sets": "gpm_tune.data.",
    "Models": "gpm_tune.models.",
    "Networks": "gpm_tune.networks.",
    "Sampling": "gpm_tune.sampling.",
    "Search distributions": "gpm_tune.study.definition.distributions",
    "Objectives and constraints": "gpm_tune.training.objectives",
    "Samplers": "gpm_tune.study.definition.samplers",
    "Schedulers": "gpm_tune.study.definition.schedulers",
}
WORDS = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "`true` or `false`",
    Path: "path",
    NoneType: "`null`",
    Any: "any value",
}


def render() -> str:
    """The tables, as Markdown, in the order in which the YAML nests.

    Raises ValueError where a class is of no part of the page.
    """
    parts: dict[str, list[str]] = {title: [] for title in ROOMS}
    for config in reachable():
        parts[_room(config)].append(_section(config))
    return "\n\n".join(f"## {title}\n\n" + "\n\n".join(sections) for title, sections in parts.items())


@cache
def reachable() -> Places:
    """Every configuration class that a study file can hold, in the order of their first mention."""
    found: Places = {StudyConfig: []}

    def visit(config: type[Config]) -> None:
        for key, field in keys(config):
            for member in _configs(field.annotation):
                is_new = member not in found
                found.setdefault(member, []).append((config, key))
                if is_new:
                    visit(member)

    visit(StudyConfig)
    return found


def keys(config: type[Config]) -> Iterator[tuple[str, FieldInfo]]:
    """The keys of a class, as a file has them."""
    for name, field in config.model_fields.items():
        yield field.alias or name, field


def names(config: type[Config]) -> tuple[str, ...]:
    """What chooses a class in a file: its `name`, or the key that only it has; nothing for most."""
    if "name" in config.model_fields and get_origin(config.model_fields["name"].annotation) is Literal:
        return get_args(config.model_fields["name"].annotation)
    if _room(config) == "Search distributions":
        return tuple(key for key, field in keys(config) if field.is_required())
    return ()


def _room(config: type[Config]) -> str:
    for title, module in ROOMS.items():
        if f"{config.__module__}.".startswith(module):
            return title
    raise ValueError(f"{config.__module__}.{config.__name__}: no part of the reference has this module")


def _configs(annotation: Any) -> Iterator[type[Config]]:
    """The configuration classes in an annotation."""
    if inspect.isclass(annotation) and get_origin(annotation) is None and issubclass(annotation, Config):
        yield annotation
    for inner in get_args(annotation):
        yield from _configs(inner)


def _section(config: type[Config]) -> str:
    """Heading, docstring, where it stands and is in the paper, and the table of its keys."""
    lines = [
        f"### {_title(config)} {{ #{_anchor(config)} }}",
        inspect.getdoc(config) or "",
        f"Stands at {'; '.join(_mentions(config))}." if reachable()[config] else "",
        f"In the paper: {config.paper}." if config.paper else "",
        _table(config),
    ]
    return "\n\n".join(filter(None, lines))


def _title(config: type[Config]) -> str:
    if chosen_by := names(config):
        return f"{_codes(chosen_by)} ({', '.join(_stands_at(config))})"
    return _codes(_stands_at(config)) or "The top of the file"


def _mentions(config: type[Config]) -> Iterator[str]:
    """Each key at which a class stands, and of what."""
    for key in _stands_at(config):
        owners = [_link(owner) for owner, at in reachable()[config] if at == key]
        yield f"`{key}` of {_listed(owners, 'and')}"


def _stands_at(config: type[Config]) -> list[str]:
    return list(dict.fromkeys(key for _, key in reachable()[config]))


def _anchor(config: type[Config]) -> str:
    return config.__name__.removesuffix("Config").lower()


def _link(config: type[Config]) -> str:
    text = _codes(names(config) or _stands_at(config)) or "the study"
    return f"[{text}](#{_anchor(config)})"


def _table(config: type[Config]) -> str:
    needed_first = sorted(keys(config), key=lambda each: not _is_needed(config, *each))
    rows = [_row(config, key, field) for key, field in needed_first]
    return "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows])


def _row(config: type[Config], key: str, field: FieldInfo) -> str:
    anchor = f"{_anchor(config)}.{key}"
    cells = [
        f'<a id="{anchor}" href="#{anchor}"><code>{key}</code></a>',
        words(field.annotation, field.metadata),
        "required" if _is_needed(config, key, field) else _default(field.get_default()),
        _meaning(field),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _meaning(field: FieldInfo) -> str:
    text = field.description or "Chooses what this table is about."
    return f"{text} *{NOTE}*" if is_inference_only(field) else text


def _is_needed(config: type[Config], key: str, field: FieldInfo) -> bool:
    return field.is_required() or (key == "name" and bool(names(config)))


def words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type and its bounds in words; configuration classes are links to their tables."""
    return _listed(list(dict.fromkeys(_alternatives(annotation, list(metadata)))), "or")


def _alternatives(annotation: Any, metadata: list[Any]) -> Iterator[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _alternatives(inner[0], [*inner[1:], *metadata])
    elif origin in (Union, UnionType):
        scalars = get_args(Scalar)
        if set(scalars) <= set(inner):
            yield "scalar"
            inner = tuple(each for each in inner if each not in scalars)
        for each in inner:
            yield from _alternatives(each, [] if each is NoneType else metadata)
    elif origin is Literal:
        yield from (f"`{value}`" for value in inner)
    elif origin is dict:
        yield f"{_filled(metadata)}mapping to {words(inner[1])}"
    elif origin in (list, tuple):
        is_long = origin is list or inner[-1] is Ellipsis
        yield f"{_filled(metadata)}list{'' if is_long else f' of {len(inner)}'}, each {words(inner[0])}"
    elif inspect.isclass(annotation) and issubclass(annotation, Config):
        yield _link(annotation) if names(annotation) else f"[mapping](#{_anchor(annotation)})"
    else:
        yield WORDS[annotation] + _bounded(metadata)


def _filled(metadata: list[Any]) -> str:
    return "non-empty " if bounds.MinLen(1) in metadata else ""


def _bounded(metadata: list[Any]) -> str:
    """Bounds of a number or text, with a space before them."""
    found = []
    for each in chain.from_iterable(m.metadata if isinstance(m, FieldInfo) else [m] for m in metadata):
        match each:
            case bounds.Ge(ge=value):
                found.append(f"≥ {value:,}")
            case bounds.Gt(gt=value):
                found.append(f"> {value:,}")
            case bounds.Le(le=value):
                found.append(f"≤ {value:,}")
            case bounds.Lt(lt=value):
                found.append(f"< {value:,}")
            case bounds.MultipleOf(multiple_of=value):
                found.append(f"a multiple of {value:,}")
            case bounds.MaxLen(max_length=value):
                found.append(f"of at most {value:,} characters")
            case _ if pattern := getattr(each, "pattern", None):
                found.append(f"matching `{pattern}`")
    return f" {_listed(found, 'and')}" if found else ""


def _listed(parts: list[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(f"`{text}`" for text in texts)


def _default(value: Any) -> str:
    """A default as a file would have it, on one line."""
    plain = _plain(value)
    if isinstance(value, Config) and not plain:
        return "its defaults"
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000)
    return f"`{text.split(chr(10))[0]}`"


def _plain(value: Any) -> Any:
    """Plain data: of configuration objects, what differs from their own defaults, and their name."""
    if isinstance(value, Config):
        config = type(value)
        values = zip(keys(config), (getattr(value, name) for name in config.model_fields), strict=True)
        return {
            key: _plain(each)
            for (key, field), each in values
            if _is_needed(config, key, field) or each != field.get_default()
        }
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
