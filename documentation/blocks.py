"""Code blocks of the documentation as tests. A page has a folder and a namespace, for its blocks in order.

python   runs in the page's namespace
bash     runs with `bash -euo pipefail`; `gpm-tune` and `python` are those that run the tests
yaml     is parsed; a study is validated; with title="FILE.yaml" it is written into the page's folder

So that pages take seconds, the studies and experiments that they write, and those of QUICK that come with the
program, are shortened in the page's folder: the commands are tested there, and not what comes out.

A block that cannot run everywhere follows a comment with the reason: <!-- skip: next "needs a cluster" -->
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

INFO = re.compile(r'(?P<language>bash|python|yaml)\b(?:[^\n]*?\btitle="(?P<title>[^"\n]+)")?[^\n]*\n')
LEAKS = ("GPM_TUNE_HOME", "GPM_TUNE_STORAGE", "MLFLOW_TRACKING_URI")  # would lead out of the page's folder
QUICK = ("quickstart.yaml", "gan_gaussians.yaml")  # studies that pages run by their bare names
COMMANDS = Path(__file__).parents[1] / "tests" / "commands"
run_python = PythonEvaluator()


def parse(document: Document) -> Iterator[Region]:
    """The blocks in one of the languages."""
    for region in RawFencedCodeBlockLexer(INFO)(document):
        region.parsed = region.lexemes["source"]
        region.evaluator = EVALUATORS[region.lexemes["language"]]
        yield region


def run_bash(example: Example) -> str | None:
    """What a failing block printed, None for one that succeeds."""
    words = ["bash", "-euo", "pipefail", "-c", str(example.parsed)]
    result = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return f"exit code {result.returncode}\n{result.stdout}" if result.returncode else None


def check_yaml(example: Example) -> None:
    """Parse a block, write it where it has a title, and validate it where it is a study."""
    from gpm_tune.documents import Document as File
    from gpm_tune.study.definition.specification import load_study

    file = Path(example.region.lexemes["title"] or "untitled.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(example.parsed, encoding="utf-8")
    data = yaml.safe_load(example.parsed)
    if isinstance(data, dict) and {"name", "experiment"} <= data.keys():
        load_study(File.load(file))
    if isinstance(data, dict) and {"data", "model"} <= data.get("experiment", data).keys():
        file.write_text(yaml.safe_dump(shortened(data), sort_keys=False), encoding="utf-8")


def shortened(data: dict[str, Any]) -> dict[str, Any]:
    """A study or an experiment with a tenth of its steps and samples, small networks, and few trials."""
    data = copy.deepcopy(data)
    experiment = data.get("experiment", data)
    training, evaluation = experiment.setdefault("training", {}), experiment.setdefault("evaluation", {})
    for section, key in (
        (training, "steps"),
        (evaluation, "every"),
        (evaluation, "samples"),
        (data.get("scheduler", {}), "grace_steps"),
    ):
        if key in section:
            section[key] = max(1, section[key] // 10)
    evaluation.setdefault("samples", 50)
    if "every" in evaluation and "steps" in training:
        evaluation["every"] = max(evaluation["every"], training["steps"] // 4)
    for network in ("discriminator", "generator"):
        if "width" in experiment["model"].get(network, {}):
            experiment["model"][network]["width"] = 8
    if "trials" in data.get("budget", {}):
        data["budget"]["trials"] = min(4, data["budget"]["trials"])
    if "resources" in data:
        data["resources"]["concurrent"] = 1  # or a second process would have its imports to do
    return data


EVALUATORS = {"bash": run_bash, "python": run_python, "yaml": check_yaml}


def enter(namespace: dict[str, Any]) -> None:
    """Give a page its folder, and one thread: pages run beside each other."""
    import torch

    from gpm_tune.study.definition.specification import shipped_studies

    patch = pytest.MonkeyPatch()
    folder = tempfile.mkdtemp(prefix="page-")
    patch.chdir(folder)
    for name in QUICK:
        study = shortened(yaml.safe_load((shipped_studies() / name).read_text(encoding="utf-8")))
        Path(name).write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    programs = [str(COMMANDS), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    patch.setenv("PATH", os.pathsep.join(programs))
    patch.setenv("OMP_NUM_THREADS", "1")
    for name in LEAKS:
        patch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def leave() -> None:
        torch.set_num_threads(threads)
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)

    namespace["_leave"] = leave


def leave(namespace: dict[str, Any]) -> None:
    """Go back to where the tests were started, and remove the folder."""
    namespace["_leave"]()


def pages(*patterns: str) -> Sybil:
    """The blocks of the Markdown files whose paths, from the repository's root, match a pattern."""
    root = str(Path(__file__).parent.parent)
    return Sybil(parsers=[parse, SkipParser()], patterns=patterns, path=root, setup=enter, teardown=leave)
