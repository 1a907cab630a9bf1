"""JSON Schema of the files that people write, for editors that complete and check as one types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from gpm_tune.study.definition.specification import StudyConfig
from gpm_tune.training import Experiment

Schema = dict[str, Any]
DEFINITIONS = "#/$defs/"
NOTE = "Inference-only."  # ends the descriptions of such keys
TEACHER = "teacher"  # shared by all trials, so that its keys cannot be searched


def as_text(schema: Schema) -> str:
    """As the text of a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def study_schema() -> Schema:
    """Of a study file (JSON Schema, draft 2020-12), with what plug-ins add."""
    schema = _schema(StudyConfig, "A study of gpm-tune", DEFINITIONS + "Experiment")
    definitions, search = schema["$defs"], schema["properties"]["search"]
    definitions["Distribution"] = search["additionalProperties"]
    search["additionalProperties"] = {"$ref": DEFINITIONS + "Distribution"}
    search["properties"] = {
        path: {"description": description, "$ref": DEFINITIONS + "Distribution"}
        for path, description in _searchable(schema).items()
    }
    return schema


def experiment_schema() -> Schema:
    """Of an experiment file (JSON Schema, draft 2020-12), with what plug-ins add."""
    return _schema(Experiment, "An experiment of gpm-tune", "#")


def alternatives(schema: Schema, node: Schema) -> Iterator[Schema]:
    """The mappings that may stand where a node of a schema does, references followed."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].removeprefix(DEFINITIONS)]
    if node.get("type") == "object" and "properties" in node:
        yield node
    for inner in node.get("oneOf") or node.get("anyOf") or ():
        yield from alternatives(schema, inner)


def is_named(mapping: Schema, name: Any) -> bool:
    """Whether a name chooses a mapping among others; None is no name."""
    known = mapping["properties"].get("name", {})
    return name is not None and name in (known.get("const"), *known.get("enum", ()))


def is_inference_only(schema: Schema, path: str) -> bool:
    """Whether a dotted path is an inference-only key, or below one, in each kind of thing that has it."""
    nodes = [schema]
    for key in path.split("."):
        mappings = [mapping for node in nodes for mapping in alternatives(schema, node)]
        found = [mapping["properties"][key] for mapping in mappings if key in mapping["properties"]]
        nodes = [node for node in found if not node.get("inference_only")]
        if found and not nodes:
            return True
    return False


def _schema(model: type[StudyConfig | Experiment], title: str, experiment: str) -> Schema:
    """experiment: where the schema has the experiment's."""
    schema = model.model_json_schema(schema_generator=_Generator)
    # In files, a teacher's experiment may also be the name of the file that has it.
    taught = schema["$defs"]["TeacherConfig"]["properties"]["experiment"]
    for definition in schema["$defs"].values():
        _note_inference_only(definition)
    _note_inference_only(schema)
    taught["anyOf"] = [{"type": "string"}, {"$ref": experiment}, {"type": "null"}]
    return {"$schema": _Generator.schema_dialect, **schema, "title": title}


def _note_inference_only(mapping: Schema) -> None:
    """Editors show descriptions, not marks."""
    for inner in mapping.get("properties", {}).values():
        if inner.get("inference_only") and "description" in inner:
            inner["description"] = noted(inner["description"])


def noted(description: str) -> str:
    """The description of an inference-only key, or of one below it."""
    return description if description.endswith(NOTE) else f"{description} {NOTE}"


def _searchable(schema: Schema) -> dict[str, str]:
    """Every path into the experiment that a study could search, and what the schema says of it."""
    found: dict[str, list[str]] = {}
    for path, description in _paths(schema, schema["properties"]["experiment"], ""):
        said = found.setdefault(path, [])
        if description not in said:
            said.append(description)
    return {path: "\n".join(said) for path, said in found.items()}


def _paths(schema: Schema, node: Schema, prefix: str, below: bool = False) -> Iterator[tuple[str, str]]:
    """below: whether what holds the node is inference-only."""
    for mapping in alternatives(schema, node):
        for key, inner in mapping["properties"].items():
            if key == TEACHER:
                continue
            marked = below or inner.get("inference_only", False)
            if "description" in inner:
                yield prefix + key, noted(inner["description"]) if marked else inner["description"]
            yield from _paths(schema, inner, f"{prefix}{key}.", marked)


class _Generator(GenerateJsonSchema):
    """Without titles that only repeat keys; members of unions are told apart by `name`, as in files."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        del schema
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        """A name says what it chooses: the first line of the class's documentation."""
        generated = super().model_schema(schema)
        name = generated.get("properties", {}).get("name")
        if name is not None and "description" in generated:
            name.setdefault("description", generated["description"].partition("\n")[0])
        return generated

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> Schema:
        """The `name` is needed, also where it has a default outside of the union."""
        generated = super().tagged_union_schema(schema)
        discriminator = generated.pop("discriminator", None)  # OpenAPI's, unknown to JSON Schema
        if discriminator:
            key = discriminator["propertyName"]
            generated["required"] = [key]
            generated["properties"] = {key: {"enum": list(discriminator["mapping"])}}
        return generated
