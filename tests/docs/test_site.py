"""The site is built without a warning, and a reader's browser asks no other host for anything."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gpm_tune import plugins

ROOT = Path(__file__).parents[2]
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Loaded(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        is_told_only = tag == "link" and attributes.get("rel") in ("canonical", "prev", "next")
        if tag in LOADS and not is_told_only:
            self.found.append(attributes.get(LOADS[tag]) or "")
        assert "mermaid" not in (attributes.get("class") or "").split(), "drawn by a script from elsewhere"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def loaded(site: Path) -> Iterator[tuple[Path, str]]:
    for page in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        yield from ((page, url) for url in parser.found)
    for sheet in site.rglob("*.css"):
        urls = re.findall(
            r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", sheet.read_text(encoding="utf-8")
        )
        yield from ((sheet, first or second) for first, second in urls)


@pytest.mark.slow
def test_everything_that_a_page_loads_lies_beside_it(site: Path) -> None:
    seen = [(file, url) for file, url in loaded(site) if not url.startswith("data:")]
    assert seen
    for file, url in seen:
        assert not re.match(r"[a-z]+:|//", url), f"{file.relative_to(site)} loads {url}"
        if url and file.name != "404.html":  # which is shown at any address, and so names the top of the site
            assert (file.parent / re.split("[?#]", url)[0]).exists(), f"{file.relative_to(site)}: no {url}"


@pytest.mark.slow
def test_links_to_what_only_the_repository_has_are_said_instead(site: Path) -> None:
    page = (site / "scaling.html").read_text(encoding="utf-8")
    assert "<code>benchmarks/results/scaling.md</code> in the repository" in page


@pytest.mark.slow
def test_the_references_are_in_the_site(site: Path) -> None:
    study = (site / "reference/study.html").read_text(encoding="utf-8")
    assert 'id="discrflow.eta"' in study
    assert 'href="#dcgandiscriminator"' in study
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert "gpm-tune run" in commands
    python = (site / "reference/python.html").read_text(encoding="utf-8")
    assert 'id="gpm_tune.api.Study.run"' in python


def test_the_page_on_plug_ins_names_all_that_a_class_must_have() -> None:
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    for group, needs in plugins.NEEDS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{group}`"))
        assert all(f"`{need}`" in row for need in needs)
