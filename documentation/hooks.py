"""What MkDocs does while it builds the site: references are made of the program, and never written down."""

from __future__ import annotations

from typing import Any

import command_reference
import study_reference

GENERATED = {
    "<!-- the study file's tables -->": study_reference.render,
    "<!-- the commands -->": command_reference.render,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page with what stands for its marks, if it has any."""
    for mark, render in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, render())
    return markdown
