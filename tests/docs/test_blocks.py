"""Blocks of a page share a folder and a namespace, fail loudly, and are skipped with a reason only."""

from pathlib import Path
from unittest import SkipTest

import pytest
from blocks import pages
from sybil.example import SybilFailure

from gpm_tune.errors import UserError

STUDY = """
name: x
experiment:
  data: {name: gaussians}
  model: {name: discr_flow, discriminator: {name: mlp}}
  training: {steps: 10}
search:
  model.eta: {float: [1.0, 5.0]}
"""


def run(text: str, folder: Path) -> None:
    """Run every block of a page."""
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    sybil = pages("*.md")
    document = sybil.parse(page)
    before = Path.cwd()
    assert sybil.setup
    assert sybil.teardown
    sybil.setup(document.namespace)
    try:
        for example in document.examples():
            example.evaluate()
    finally:
        sybil.teardown(document.namespace)
    assert Path.cwd() == before


def fence(language: str, code: str) -> str:
    return f"```{language}\n{code.strip()}\n```\n\n"


def test_blocks_see_what_earlier_blocks_left(tmp_path: Path) -> None:
    run(
        fence('yaml title="study.yaml"', STUDY)
        + fence("bash", "grep -c eta study.yaml > count.txt")
        + fence("python", "count = int(open('count.txt').read())")
        + fence("python", "assert count == 1")
        + fence(
            "bash", "test -f count.txt && gpm-tune --version | grep gpm-tune && python -c 'import gpm_tune'"
        ),
        tmp_path,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.parametrize(
    "code",
    [
        "echo what went wrong; false",
        "echo what went wrong | grep -v x; false | cat",
        "echo what went wrong $NONE",
    ],
)
def test_a_failing_command_fails_its_block_and_shows_what_it_printed(code: str, tmp_path: Path) -> None:
    with pytest.raises(SybilFailure, match=r"exit code \d+\s+.*(went wrong|NONE: unbound)"):
        run(fence("bash", code), tmp_path)


def test_a_study_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'eta'"):
        run(fence("yaml", STUDY.replace("model.eta", "model.etta")), tmp_path)


def test_a_fragment_is_only_parsed(tmp_path: Path) -> None:
    run(fence("yaml", "search: {anything: [goes]}"), tmp_path)


def test_other_languages_are_left_alone(tmp_path: Path) -> None:
    run("```\nnot a program\n```\n\n" + fence("text", "nor this") + fence("toml", "a = 1"), tmp_path)


def test_a_block_is_skipped_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(SkipTest, match="needs a cluster"):
        run('<!-- skip: next "needs a cluster" -->\n\n' + fence("bash", "false"), tmp_path)
