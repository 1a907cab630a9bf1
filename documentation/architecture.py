"""The picture of docs/architecture.md, drawn of what import-linter holds the package to.

python documentation/architecture.py        # writes docs/architecture.svg
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
WIDTH, HEIGHT, GAP, INDENT = 980, 46, 6, 28
STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:12px;fill:#1f2937}"
    ".name{font-weight:600;font-size:13px;font-family:ui-monospace,monospace}"
    "rect{fill:#eef2ff;stroke:#6366f1;rx:5}.room rect{fill:#fff}.page{fill:#fff;stroke:none}"
)


def layers(name: str) -> list[list[str]]:
    """The modules of a contract of pyproject.toml, side by side where it allows no imports between them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found = next(contract["layers"] for contract in contracts if contract["name"] == name)
    return [[module.strip() for module in layer.split("|")] for layer in found]


def rows() -> list[list[str]]:
    """From top to bottom: the layers of the package, with the rooms of `study` below it."""
    rooms = layers("So do those between the rooms of a study")
    package = layers("Imports point downwards only")
    return [row for layer in package for row in ([layer, *rooms] if layer == ["gpm_tune.study"] else [layer])]


def purpose(module: str) -> str:
    """The first sentence of a module's docstring."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return docstring.splitlines()[0].split(". ")[0].rstrip(".")


def draw() -> str:
    """The picture as SVG."""
    boxes, top = [], GAP
    for row in rows():
        indent = INDENT if row[0].count(".") > 1 else 0
        width = (WIDTH - indent - GAP) / len(row) - GAP
        for column, module in enumerate(row):
            left = GAP + indent + column * (width + GAP)
            boxes.append(_box(module, left, top, width))
        top += HEIGHT + GAP
    page = f'<rect class="page" width="{WIDTH}" height="{top}"/>'
    size = f'width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}"'
    title = "<title>The layers of gpm_tune: each imports only from those below it</title>"
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', title, f"<style>{STYLE}</style>", page]
    return "\n".join([*lines, *boxes, "</svg>", ""])


def _box(module: str, left: float, top: int, width: float) -> str:
    room = ' class="room"' if module.count(".") > 1 else ""
    text = purpose(module)
    most = int(width / 6.4)
    shown = text if len(text) <= most else text[: most - 1].rsplit(" ", 1)[0].rstrip(",:;") + " …"
    return (
        f'<g{room}><rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{HEIGHT}"/>'
        f'<text class="name" x="{left + 10:.0f}" y="{top + 18}">{module.removeprefix("gpm_tune.")}</text>'
        f'<text x="{left + 10:.0f}" y="{top + 36}">{escape(shown)}</text></g>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
