"""Plug-ins: what other installed packages add to the kinds of things that an experiment chooses by name.

A package names its configuration classes in entry points, in one of these groups, each under the `name`
that chooses it in a study file:

gpm_tune.data        data sets, as those of `gpm_tune/data/`
gpm_tune.networks    networks, as those of `gpm_tune/networks/`, in every role for which they have a method
gpm_tune.models      a flow with or without a generator, as those of `gpm_tune/models/`
gpm_tune.flows       flows in closed form, for `kernel_flow`, as those of `gpm_tune/models/flows/kernel.py`
gpm_tune.solvers     solvers, as those of `gpm_tune/sampling/solvers/`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from traceback import walk_tb
from typing import Annotated, Any, Union, get_args

from pydantic import Field, GetCoreSchemaHandler
from pydantic.errors import PydanticUndefinedAnnotation
from pydantic_core import CoreSchema

from gpm_tune.config import Config
from gpm_tune.errors import DivergedError, UserError, escaped, on_one_line, origin

# What a class must have to be one of the group.
NEEDS = {
    "gpm_tune.data": ("shape", "validation_samples", "prepare", "load"),
    "gpm_tune.networks": ("check_shape",),
    "gpm_tune.models": ("taxonomy", "trains", "check_shape", "build"),
    "gpm_tune.flows": ("direction",),
    "gpm_tune.solvers": ("step",),
}
NETWORK_ROLES = ("build_discriminator", "build_generator", "build_denoiser")  # a network has one or more
SAID_ELSEWHERE = ("click", "typer", "mlflow")  # packages whose own exceptions are no plug-in's
OWN = ("gpm_tune", "__main__")  # packages whose failures are no plug-in's, though one may have called them

_packages: dict[str, str] = {}  # of the plug-ins that were loaded, by their top-level modules


@dataclass(frozen=True)
class Extensible:
    """Marks a union of configuration classes, told apart by `name`, to which plug-ins may add.

    It stands where `Field(discriminator="name")` would: `Annotated[A | B, Extensible("gpm_tune.data")]`.
    """

    group: str
    role: str = ""  # the method that members need, where the group has several

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        members: Any = Union[self.members(source)]  # noqa: UP007 (known at run time only)
        return handler.generate_schema(Annotated[members, Field(discriminator="name")])

    def members(self, union: Any) -> tuple[type[Config], ...]:
        """The classes of the union, and those of plug-ins."""
        own: tuple[type[Config], ...] = get_args(union)
        added = [plugin for plugin in installed(self.group) if not self.role or hasattr(plugin, self.role)]
        for index, plugin in enumerate(added):
            if name_of(plugin) in map(name_of, (*own, *added[:index])):
                raise UserError(
                    f"plug-in {plugin.__module__}.{plugin.__name__}: the name '{name_of(plugin)}' is that of "
                    f"another member of {self.group}; choose another one"
                )
        return (*own, *added)


def members(union: Any) -> tuple[type[Config], ...]:
    """The classes of an extensible union, those of plug-ins included."""
    classes, mark = get_args(union)
    found: tuple[type[Config], ...] = mark.members(classes)
    return found


def name_of(config: type[Config]) -> str:
    """What chooses a configuration class in a study file."""
    return str(get_args(config.model_fields["name"].annotation)[0])


@cache
def installed(group: str) -> tuple[type[Config], ...]:
    """The classes that installed packages add to a group.

    Raises UserError where one cannot be loaded, or is no member of the group, and
    PydanticUndefinedAnnotation while one is imported, after which pydantic tries again.
    """
    entries = sorted(entry_points(group=group), key=lambda entry: entry.name)
    for entry in entries:
        if entry.pattern.fullmatch(entry.value) is None:
            raise UserError(
                f"{_described(entry)} is not an entry point: expected MODULE:CLASS. {_advice(entry)}"
            )
        if _is_being_imported(entry.module):
            raise PydanticUndefinedAnnotation(entry.attr, f"{entry.value} is being imported")
    return tuple(map(_load, entries))


@contextmanager
def named() -> Iterator[None]:
    """Raise UserError with the package's name in place of what the code of a plug-in raises.

    An OSError stays: a disk that is full is said as such, whoever writes.
    """
    try:
        yield
    except BaseException as error:
        sentence = None if isinstance(error, OSError) else failure(error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def failure(error: BaseException) -> str | None:
    """What the code of a plug-in has raised, and where, in a sentence; None where it was none's.

    It may be SystemExit, too, or any other exception that nobody expects. A plug-in's is what it raises, or a
    library that it calls; not what gpm_tune raises when a plug-in calls it. What is meant for a person to
    read, or is said in other words elsewhere, is left as it is.
    """
    if isinstance(error, UserError | DivergedError | KeyboardInterrupt):
        return None
    kind = type(error)
    if _top(kind.__module__) in SAID_ELSEWHERE or kind.__qualname__ == "OutOfMemoryError":  # torch's
        return None
    tops = [_top(str(frame.f_globals.get("__name__"))) for frame, _ in walk_tb(error.__traceback__)]
    last = next((top for top in reversed(tops) if top in _packages or top in OWN), None)
    if last not in _packages:
        return None
    return f"the plug-in package {_packages[last]} failed: {on_one_line(error)} ({origin(error)})"


def is_of_plugin(function: Callable[..., object]) -> bool:
    """Whether a plug-in's package defines a function."""
    return _top(function.__module__) in _packages


def packages() -> dict[str, str]:
    """The installed packages that have plug-ins, and their versions."""
    return {package.name: package.version for package, _ in distributions()}


def distributions() -> list[tuple[Distribution, set[str]]]:
    """The installed packages that have plug-ins, each with the top-level modules in which these are."""
    found: dict[str, tuple[Distribution, set[str]]] = {}
    for entry in (entry for group in NEEDS for entry in entry_points(group=group)):
        if entry.dist is not None and entry.dist.name:  # damaged metadata have none
            found.setdefault(entry.dist.name, (entry.dist, set()))[1].add(_top(entry.module))
    return list(found.values())


def _is_being_imported(module: str) -> bool:
    """Whether it is not yet complete: it imports, directly or not, the union to which it adds."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _top(module: str) -> str:
    return module.partition(".")[0]


def _package(entry: EntryPoint) -> str:
    return escaped((entry.dist and entry.dist.name) or entry.value)


def _described(entry: EntryPoint) -> str:
    point = escaped(
        f"'{entry.name}' of the package {_package(entry)} (entry point {entry.group}, {entry.value})"
    )
    return f"plug-in {point}"


def _advice(entry: EntryPoint) -> str:
    return f"Fix it, or `pip uninstall {_package(entry)}`"


def _load(entry: EntryPoint) -> type[Config]:
    what = _described(entry)
    _packages[_top(entry.module)] = _package(entry)
    try:
        config = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever another package raises when it is imported, SystemExit too
        raise UserError(f"{what} cannot be loaded: {on_one_line(error)}. {_advice(entry)}") from error
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise UserError(f"{what} is not a class derived from gpm_tune.config.Config")
    name = config.model_fields.get("name")
    if name is None or get_args(name.annotation) != (entry.name,):
        raise UserError(f'{what}: {config.__name__} needs the field `name: Literal["{entry.name}"]`')
    missing = [need for need in NEEDS[entry.group] if not hasattr(config, need)]
    if entry.group == "gpm_tune.networks" and not any(hasattr(config, role) for role in NETWORK_ROLES):
        missing.append(" or ".join(NETWORK_ROLES))
    if missing:
        raise UserError(f"{what}: {config.__name__} lacks {', '.join(missing)}")
    return config
