"""A study file that explains itself: every key with its description, and further keys to be switched on."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

import yaml

from gpm_tune.study.definition.schema import Schema, alternatives, is_named, noted, study_schema

WIDTH = 100
INDENT = "  "
SEARCH, EXPERIMENT = "search", "experiment"


class CommentedStudy:
    """The text of a study file: `# text` explains, `#key: value` is a key that is switched off."""

    def __init__(self, tree: dict[str, Any], options: dict[str, Any]) -> None:
        """tree: the keys that are set. options: path -> value of those that are switched off."""
        self.tree, self.options = tree, options
        self.schema = study_schema()

    def text(self, header: str) -> str:
        """With a header, whose lines become comments; top-level keys are set apart."""
        parts = ["\n".join(_comment(header, ""))]
        for key in self._keys(self.schema, self.tree, ""):
            parts.append("\n".join(self._entry(self.schema, self.tree, "", key)))
        return "\n\n".join(parts) + "\n"

    def _keys(self, node: Schema, data: dict[str, Any], prefix: str) -> list[str]:
        """Those that are set or switched off here: a name first, the others in the order of the schema."""
        off = [path.removeprefix(prefix) for path in self.options if path.startswith(prefix)]
        here = [*data, *(key for key in off if "." not in key)]
        order = [key for inner in self._fitting(node, data) for key in inner["properties"]]
        return sorted(here, key=lambda key: (key != "name", order.index(key)))

    def _entry(self, node: Schema, data: dict[str, Any], prefix: str, key: str) -> Iterator[str]:
        """A key, its value, and what it means."""
        indent = INDENT * prefix.count(".")
        inner = self._property(node, data, key)
        said = self._said(inner)
        value: Any = data.get(key)
        if key not in data:
            yield from _explained(f"#{key}: {_flow(self.options[prefix + key])}", said, indent)
        elif prefix + key == SEARCH:
            yield from _explained(f"{key}:", said, indent)
            for path, distribution in value.items():
                yield from _explained(f"{path}: {_flow(distribution)}", self._about(path), indent + INDENT)
        elif isinstance(value, dict):
            yield from _explained(f"{key}:", said, indent)
            below = f"{prefix}{key}."
            for other in self._keys(inner, value, below):
                yield from self._entry(inner, value, below, other)
        else:
            yield from _explained(f"{key}: {_flow(value)}", said, indent)

    def _about(self, path: str) -> str:
        """What the schema says of a path into the experiment, where it may lead to another kind of thing."""
        node, data = self.schema["properties"][EXPERIMENT], self.tree[EXPERIMENT]
        marked = False
        for key in path.split("."):
            node = self._property(node, data, key)
            data = data.get(key) if isinstance(data.get(key), dict) else {}
            marked = marked or node.get("inference_only", False)
        return noted(self._said(node)) if marked else self._said(node)

    def _said(self, node: Schema) -> str:
        """The description of a key, else of what stands there."""
        nodes = [node, *alternatives(self.schema, node)]
        return next((inner["description"] for inner in nodes if "description" in inner), "")

    def _property(self, node: Schema, data: dict[str, Any], key: str) -> Schema:
        found: Schema = next(
            inner["properties"][key] for inner in self._fitting(node, data) if key in inner["properties"]
        )
        return found

    def _fitting(self, node: Schema, data: dict[str, Any]) -> list[Schema]:
        """The alternatives, the one that the data choose by their name first."""
        found = alternatives(self.schema, node)
        return sorted(found, key=lambda inner: not is_named(inner, data.get("name")))


def _explained(line: str, text: str, indent: str) -> Iterator[str]:
    """The explanation at the end of the line where it fits, else above."""
    together = f"{indent}{line}  # {text}" if text else indent + line
    if len(together) <= WIDTH:
        yield together
        return
    yield from _comment(text, indent)
    yield indent + line


def _comment(text: str, indent: str) -> Iterator[str]:
    for paragraph in text.splitlines():
        for line in wrap(paragraph, WIDTH - len(indent) - 2) or [""]:
            yield f"{indent}# {line}".rstrip()


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
