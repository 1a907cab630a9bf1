"""Commands that the documentation shows exist, with the options that it shows."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_reference import commands, context, render

from gpm_tune.cli.common import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^ *(```+|~~~+)[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)


def shown(text: str) -> Iterator[str]:
    """The commands in a page's fences: whole lines, continued ones included."""
    for _, code in FENCE.findall(text):
        for line in code.replace("\\\n", " ").splitlines():
            if line.strip().startswith("gpm-tune "):
                yield line.strip()


def words_of(line: str) -> list[str]:
    """The words of a line's first command, without comments, pipes and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word[0] in "|&;<>":
            break
        words.append(word)
    return words


def check(line: str) -> None:
    """Let click parse a command's options, without running it."""
    _, name, *arguments = words_of(line)
    if name.startswith("-"):
        assert name in ("--help", "-h", "--version", "--install-completion", "--show-completion"), line
        return
    if name == "COMMAND":  # stands for each of them
        return
    assert name in commands(), f"{line}: there is no command '{name}'"
    command = commands()[name]
    command.make_parser(context(name, command)).parse_args(args=arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist_with_their_options(page: Path) -> None:
    for line in shown(page.read_text(encoding="utf-8")):
        check(line)


@pytest.mark.parametrize("name", commands())
def test_examples_in_a_command_s_help_exist_with_their_options(name: str) -> None:
    examples = re.findall(r"^\s*(gpm-tune .*)$", commands()[name].epilog or "", re.MULTILINE)
    assert examples
    for line in examples:
        check(line)


@pytest.mark.parametrize(
    "line", ["gpm-tune fly", "gpm-tune run x.yaml --trails 3", "gpm-tune run x.yaml --trials"]
)
def test_what_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"no command|[Nn]o such option|requires an argument"):
        check(line)


def test_the_reference_has_every_command_with_all_its_options() -> None:
    page = render()
    for name, command in commands().items():
        section = page.partition(f"{{ #{name} }}")[2].partition("\n### ")[0]
        assert section, name
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            spelling = max(parameter.opts, key=len) if is_option else parameter.metavar or parameter.name
            assert parameter.hidden or spelling in section, (name, spelling)
            assert parameter.hidden or parameter.help.partition("|")[0] in section.replace("&lt;", "<"), name


def test_the_page_has_every_exit_code() -> None:
    page = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    in_page = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert in_page == re.findall(r"\b\d+\b", str(app.info.epilog))
