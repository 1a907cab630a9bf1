"""The reference of the command line, made of the application itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import typer.main

from gpm_tune.cli import app

EXAMPLE = re.compile(r"^\s*(gpm-tune .*)$")
NOTES = re.compile(
    r"(?:^|  )\[([^\[]*)\]$"
)  # click's default, bounds and so on, at the end of an option's help


def commands() -> dict[str, Any]:
    """Every command that is not hidden, as click has it, by its name."""
    group: Any = typer.main.get_command(app)
    return {name: command for name, command in group.commands.items() if not command.hidden}


def context(name: str, command: Any) -> Any:
    """The context in which click parses the arguments of a command."""
    return command.context_class(command, info_name=name)


def render() -> str:
    """A part for every panel of `gpm-tune --help`, with a section for each of its commands, as Markdown."""
    panels: dict[str, list[str]] = {}
    for name, command in commands().items():
        panels.setdefault(command.rich_help_panel or "Commands", []).extend(_section(name, command))
    return "\n\n".join("\n\n".join([f"## {panel}", *parts]) for panel, parts in panels.items())


def _section(name: str, command: Any) -> Iterator[str]:
    here = context(name, command)
    yield f"### `gpm-tune {name}` {{ #{name} }}"
    yield _prose(command.help)
    usage = " ".join(["gpm-tune", name, *command.collect_usage_pieces(here)])
    yield _fence(usage.replace("{", "").replace("}", ""))
    yield _table(parameter.get_help_record(here) for parameter in command.get_params(here))
    if command.epilog:
        yield from _epilog(command.epilog)


def _table(records: Iterator[tuple[str, str] | None]) -> str:
    rows = [_row(*record) for record in records if record]
    return "\n".join(["| argument or option | meaning | default, bounds |", "| --- | --- | --- |", *rows])


def _row(spelling: str, text: str) -> str:
    notes = NOTES.search(text)
    cells = [
        f"`{spelling}`",
        _prose(NOTES.sub("", text)),
        notes[1].removeprefix("default: ").replace("x>=", "≥ ") if notes else "",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _epilog(text: str) -> Iterator[str]:
    """Its paragraphs, and the commands in it as blocks of code."""
    lines = [line for line in text.splitlines() if line.strip()]
    for is_example, group in groupby(lines, key=lambda line: EXAMPLE.match(line) is not None):
        part = "\n".join(line.strip() for line in group)
        yield _fence(part) if is_example else _prose(part)


def _prose(text: str | None) -> str:
    """Help as Markdown: what HTML would take for a tag is none."""
    return (text or "").replace("\b", "").replace("<", "&lt;").strip()


def _fence(text: str) -> str:
    return f"```text\n{text}\n```"
