"""The skeleton of a package that adds a data set, a network, a flow or a solver to gpm-tune."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import gpm_tune
from gpm_tune.config import nearest
from gpm_tune.data import DataConfig
from gpm_tune.errors import UserError
from gpm_tune.models.flows.kernel import AnyFunctional
from gpm_tune.networks import DenoiserConfig, DiscriminatorConfig, GeneratorConfig
from gpm_tune.plugins import members, name_of
from gpm_tune.sampling.solvers import SolverConfig


class Kind(NamedTuple):
    """What a package can add: in words, the group of its entry point, and the unions it joins."""

    what: str
    group: str
    unions: tuple[Any, ...]


KINDS = {
    "dataset": Kind("data set", "gpm_tune.data", (DataConfig,)),
    "network": Kind("network", "gpm_tune.networks", (DiscriminatorConfig, GeneratorConfig, DenoiserConfig)),
    "flow": Kind("flow", "gpm_tune.flows", (AnyFunctional,)),
    "solver": Kind("solver", "gpm_tune.solvers", (SolverConfig,)),
}


def write_skeleton(kind: str, name: str, folder: Path | None) -> Path:
    """Write a package that works as it is: configuration class, test, study, README; returns its folder.

    Raises UserError where there is no such kind, where the name is taken or none, and where the folder is
    not empty.
    """
    if kind not in KINDS:
        raise UserError(f"new {kind}: unknown kind; {nearest(kind, KINDS)}")
    _check_name(name, KINDS[kind])
    folder = folder or Path(f"gpm-tune-{name.replace('_', '-')}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: it is there already, and no empty folder; name another one")
    try:
        for path, text in _texts(kind, name).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    return folder


def _check_name(name: str, kind: Kind) -> None:
    if not re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}': expected a name of small letters, digits and _, such as two_moons")
    taken = {name_of(config) for union in kind.unions for config in members(union)}
    if name in taken:
        raise UserError(
            f"there is a {kind.what} '{name}' already; choose a name other than {', '.join(sorted(taken))}"
        )


def _texts(kind: str, name: str) -> dict[str, str]:
    """Path in the package -> text."""
    module = f"gpm_tune_{name}"
    values = {
        "name": name,
        "module": module,
        "package": module.replace("_", "-"),
        "config": "".join(map(str.capitalize, name.split("_"))) + "Config",
        "what": KINDS[kind].what,
        "group": KINDS[kind].group,
    }
    templates = files(gpm_tune) / "templates"
    sources = {
        "pyproject.toml": templates / "package" / "pyproject.toml.template",
        "README.md": templates / "package" / "README.md.template",
        f"{module}.py": templates / kind / "module.py.template",
        f"tests/test_{name}.py": templates / kind / "test.py.template",
        f"{name}.yaml": templates / kind / "study.yaml.template",
    }
    return {
        path: Template(source.read_text(encoding="utf-8")).substitute(values)
        for path, source in sources.items()
    }
