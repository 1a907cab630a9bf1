"""The picture of the architecture shows the packages that there are, and how they import each other."""

from pathlib import Path

import architecture
import grimp

PACKAGE = architecture.ROOT / "gpm_tune"
# Neither a layer nor a room: the package's number, files that `gpm-tune new` fills in.
NO_LAYERS = {"__init__", "version", "templates", "search_spaces"}


def _modules(folder: Path) -> set[str]:
    found = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    return found - NO_LAYERS - {"__pycache__"}


def test_the_committed_picture_is_that_of_the_code() -> None:
    fresh, committed = architecture.draw(), architecture.PICTURE.read_text(encoding="utf-8")
    assert committed == fresh, "run `python documentation/architecture.py`"


def test_the_picture_has_every_package_and_every_room() -> None:
    shown = [module.removeprefix("gpm_tune.") for row in architecture.rows() for module in row]
    assert len(shown) == len(set(shown))
    rooms = {f"study.{room}" for room in _modules(PACKAGE / "study")}
    assert set(shown) == _modules(PACKAGE) | rooms


def test_what_stands_lower_imports_nothing_from_above() -> None:
    graph = grimp.build_graph("gpm_tune", exclude_type_checking_imports=True)
    height = {module: place for place, row in enumerate(architecture.rows()) for module in row}
    outer = {module for module in height if module.count(".") == 1}
    rooms = set(height) - outer
    for group in (outer, rooms):
        for importer in graph.modules:
            above = next((m for m in group if importer == m or importer.startswith(f"{m}.")), None)
            for imported in graph.find_modules_directly_imported_by(importer):
                below = next((m for m in group if imported == m or imported.startswith(f"{m}.")), None)
                if above and below and above != below:
                    assert height[above] < height[below], f"{importer} imports {imported}"
