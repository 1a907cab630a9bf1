"""Where results come from: versions, machine and git commit, recorded with every study."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path

import torch

import gpm_tune
from gpm_tune.plugins import packages
from gpm_tune.training import Experiment
from gpm_tune.version import __version__

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow")
GIT_SECONDS = 5.0


def run_tags(experiment: Experiment, data: str) -> dict[str, str]:
    """What runs are filtered by in MLflow. data: fingerprint of what was read."""
    tags = {
        "gpm.model": experiment.model.name,
        "gpm.data": experiment.data_label,
        "gpm.data_fingerprint": data,
        "gpm.version": __version__,
    }
    if experiment.features:
        tags["gpm.features"] = experiment.features
    return tags


def environment_tags() -> dict[str, str]:
    """Versions and the machine; the git commits of the program and of the working folder, in checkouts."""
    tags = {"gpm.python": platform.python_version(), "gpm.platform": platform.platform()}
    tags |= {f"gpm.{package}": version(package) for package in PACKAGES}
    tags |= {f"gpm.plugin.{package}": number for package, number in packages().items()}
    if torch.cuda.is_available():
        tags["gpm.cuda"] = str(torch.version.cuda)
        tags["gpm.gpu"] = torch.cuda.get_device_name()
    tags["gpm.code"] = code_digest()
    for name, folder in (("gpm.git_commit", Path(gpm_tune.__file__).parent), ("gpm.folder_commit", Path())):
        commit = _git(folder, "rev-parse", "HEAD")
        if commit:
            tags[name] = commit + ("-dirty" if _git(folder, "status", "--porcelain") else "")
    return tags


def requirements() -> str:
    """Every installed package and its version, as pip's requirements."""
    names = {(found.metadata["Name"], found.version) for found in distributions()}
    return "".join(f"{name}=={number}\n" for name, number in sorted(names))


@cache
def code_digest() -> str:
    """Digest of this package's source files, because versions alone do not tell two checkouts apart."""
    package = Path(gpm_tune.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _git(folder: Path, *words: str) -> str:
    """What git says of a folder; nothing where there is no git, or no checkout."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
