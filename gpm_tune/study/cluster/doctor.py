"""`gpm-tune doctor`: whether everything that a study needs is here, line by line, with what to do.

This file imports nothing heavy, so that a broken installation is a finding too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpm_tune.errors import UserError, first_line

if TYPE_CHECKING:
    from gpm_tune.study.storage.home import Home

T = TypeVar("T")

OLDEST, NEWEST = (3, 10), (3, 13)  # the versions of Python that the package is tested with


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    level: str  # ok, warn or fail
    found: str
    advice: str = ""
    check: str = ""  # set by who runs it


Findings = Generator[Finding, None, T]
"""What a check yields; some return what others need."""


def ok(found: str) -> Finding:
    """Nothing is wrong."""
    return Finding("ok", found)


def warn(found: str, advice: str) -> Finding:
    """A study would run, but perhaps not as its user expects."""
    return Finding("warn", found, advice)


def fail(found: str, advice: str) -> Finding:
    """A study would not run."""
    return Finding("fail", found, advice)


def examine(file: Path | None, home: Home, address: str) -> Iterator[Finding]:
    """All findings, each as soon as it is made.

    file: of a study, whose data and resources are then looked at, too.
    """
    is_sound = True
    for name, check in BASICS.items():
        for finding in run_check(name, check):
            is_sound = is_sound and finding.level != "fail"
            yield finding
    if is_sound:
        from gpm_tune.study.cluster.checks import examine_case

        yield from examine_case(file, home, address)


def run_check(name: str, check: Callable[..., Findings[T]], *arguments: Any) -> Findings[T | None]:
    """The findings of a check, and what it returns; what it raises is a finding."""
    findings = check(*arguments)
    try:
        while True:
            yield replace(next(findings), check=name)
    except StopIteration as end:
        value: T = end.value
        return value
    except UserError as error:
        for line in str(error).splitlines():
            yield Finding("fail", line, check=name)
    except Exception as error:
        yield Finding("fail", f"{type(error).__name__}: {first_line(error)}", check=name)
    return None


def check_python() -> Findings[None]:
    """Whether this Python is one of those that the package is tested with."""
    here = sys.version_info[:2]
    found = ".".join(map(str, sys.version_info[:3]))
    if OLDEST <= here <= NEWEST:
        yield ok(found)
    else:
        expected = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))
        yield warn(
            found, f"The package is tested with Python {expected}: make its environment with one of these"
        )


def check_packages() -> Findings[None]:
    """Whether the package and the libraries that it stands on can be imported."""
    for module in ("torch", "torchvision", "gpm_tune.study.cluster.checks"):
        try:
            importlib.import_module(module)
        except Exception as error:  # a library that does not fit raises anything
            yield fail(
                f"{module} cannot be imported: {type(error).__name__}: {first_line(error)}",
                "Install again into a new environment, in a checkout: pip install -c constraints.txt .",
            )
            return
    from gpm_tune.study.tracking.provenance import PACKAGES, environment_tags

    versions = environment_tags()
    yield ok(", ".join(f"{name} {versions[f'gpm.{name}']}" for name in PACKAGES))


BASICS = {"Python": check_python, "packages": check_packages}
