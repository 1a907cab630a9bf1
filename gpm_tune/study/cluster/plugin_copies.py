"""Installed plug-ins as a folder to be sent to a cluster, whose nodes find them as if installed there."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path

from gpm_tune.errors import UserError
from gpm_tune.plugins import distributions

UNWANTED = shutil.ignore_patterns("__pycache__", "*.pyc")


def copy_plugins(folder: Path) -> None:
    """Copy every package that has plug-ins into a folder, with the metadata that names them.

    What they depend on is not copied. Raises UserError where the files of one cannot be found.
    """
    for package, modules in distributions():
        if _is_editable(package):
            for module in modules:
                _copy_module(module, folder)
        copied = [file for file in package.files or () if _is_wanted(package, Path(str(file)))]
        if not any(file.name == "entry_points.txt" for file in copied):
            raise UserError(
                f"the package {package.name}, which has plug-ins, cannot be sent to the cluster: its "
                f"files are not known\nhelp: install it with `pip install`, or uninstall it"
            )
        for file in copied:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(package.locate_file(file)), target)


def _is_editable(package: Distribution) -> bool:
    """Whether only links to its source were installed."""
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    return bool(origin.get("dir_info", {}).get("editable"))


def _is_wanted(package: Distribution, file: Path) -> bool:
    """Whether an installed file is to be copied: no script, and where the source is linked the metadata."""
    if ".." in file.parts or file.is_absolute() or file.suffix == ".pyc":
        return False
    is_metadata = file.parts[0].endswith(".dist-info")
    return (is_metadata or not _is_editable(package)) and Path(str(package.locate_file(file))).is_file()


def _copy_module(name: str, folder: Path) -> None:
    """Copy a top-level module or package from where Python imports it."""
    spec = find_spec(name)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    for place in places:
        shutil.copytree(place, folder / name, ignore=UNWANTED, dirs_exist_ok=True)
    if spec and spec.origin and not places:
        shutil.copy(spec.origin, folder)
