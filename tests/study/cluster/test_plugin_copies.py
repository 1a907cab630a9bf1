"""Installed plug-ins as a folder: a Python with it on its path finds them, however they were installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from program import call

from gpm_tune.study.starting.skeleton import write_skeleton

PIP = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
COPY = """
import site, sys
from pathlib import Path
site.addsitedir(sys.argv[1])  # where links to sources work, too
from gpm_tune.study.cluster.plugin_copies import copy_plugins
copy_plugins(Path(sys.argv[2]))
"""
USE = """
from pathlib import Path
from gpm_tune.plugins import packages
from gpm_tune.training import Experiment
import gpm_tune_two_moons, yaml
print(packages(), gpm_tune_two_moons.__file__)
Experiment.model_validate(yaml.safe_load(Path("source/two_moons.yaml").read_text())["experiment"])
"""
LINKED = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "gpm-tune-two-moons"
version = "0.1.0"

[project.entry-points."gpm_tune.data"]
two_moons = "gpm_tune_two_moons:TwoMoonsConfig"

[tool.setuptools]
py-modules = ["gpm_tune_two_moons"]
"""


def run(code: str, *arguments: Path, folder: Path, path: Path | None = None) -> str:
    paths = os.pathsep.join(filter(None, [str(path or ""), os.environ.get("PYTHONPATH")]))
    result = call(folder, *map(str, arguments), code=code, imported="libraries", PYTHONPATH=paths)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_copied_package_is_found_as_if_it_were_installed(tmp_path: Path, is_linked: bool) -> None:
    source, place, copy = (
        write_skeleton("dataset", "two_moons", tmp_path / "source"),
        tmp_path / "place",
        tmp_path / "copy",
    )
    if is_linked:
        (source / "pyproject.toml").write_text(LINKED)
    subprocess.run([*PIP, "--target", place, *(["--editable"] if is_linked else []), source], check=True)
    copy.mkdir()
    run(COPY, place, copy, folder=tmp_path)
    assert run(USE, folder=tmp_path, path=copy).strip() == (
        f"{{'gpm-tune-two-moons': '0.1.0'}} {copy / 'gpm_tune_two_moons.py'}"
    )
    assert not [file for file in copy.rglob("*") if file.suffix in (".pyc", ".pth")]


def test_without_plugins_nothing_is_copied(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    run(COPY, tmp_path, tmp_path / "copy", folder=tmp_path)
    assert list((tmp_path / "copy").iterdir()) == []


def test_a_package_whose_files_are_not_known_is_refused(tmp_path: Path) -> None:
    metadata = tmp_path / "place" / "lost-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[gpm_tune.data]\nlost = lost:Lost\n")
    with pytest.raises(AssertionError, match=r"the package lost, .*cannot be sent"):
        run(COPY, tmp_path / "place", tmp_path / "copy", folder=tmp_path)
