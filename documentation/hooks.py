"""What MkDocs does while it builds the site: references are made of the program, and never written down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import command_reference
import study_reference

GENERATED = {
    "<!-- the study file's tables -->": study_reference.render,
    "<!-- the commands -->": command_reference.render,
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """A page with what stands for its marks, and no links to what only the repository has."""
    for mark, render in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, render())
    docs = Path(config.docs_dir).resolve()
    folder = docs / Path(page.file.src_uri).parent

    def within_the_site(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(docs) or not target.exists():
            return link[0]
        return f"{link[1]} (`{target.relative_to(docs.parent)}` in the repository)"

    return LINK.sub(within_the_site, markdown)
