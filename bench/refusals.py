"""What pydantic refuses, as lines for people: the place in the file, the value, what is allowed."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.registry import nearest_hint

Schema = dict[str, Any]


def refusals(error: ValidationError, model: type[BaseModel], where: str = "") -> Iterator[str]:
    """One line for each thing wrong.

    Args:
        error: what the model raised.
        model: the model that was given the values.
        where: the dotted path of those values in the file.
    """
    schema = model.model_json_schema()
    for item in error.errors():
        path, parent, node = _walk(schema, item["loc"])
        place = ".".join([where, *path] if where else path) or "the file"
        given = f"(given {item['input']!r})"
        if item["type"] == "extra_forbidden":
            yield f"{place}: unknown key {given}; {nearest_hint(path[-1], _keys(schema, parent))}"
        elif item["type"] == "missing":
            yield f"{place}: missing; add it (its neighbours: {', '.join(sorted(_keys(schema, parent)))})"
        elif item["type"] == "union_tag_not_found":
            names = sorted(node.get("discriminator", {}).get("mapping", {}))
            yield f"{place}.name: missing {given}; allowed: {', '.join(names)}"
        else:
            yield f"{place}: {item['msg']} {given}"


def _walk(schema: Schema, loc: tuple[int | str, ...]) -> tuple[list[str], Schema, Schema]:
    """The path as it stands in the file, and the schema of its last key's mapping and of its value."""
    path: list[str] = []
    parent, node = schema, schema
    for part in loc:
        choice = next((n for n in _choices(schema, node) if _is_tag(n, part)), None)
        if choice is not None:  # the name that chose among the types of a union, not a key
            node = choice
        else:
            path.append(str(part))
            parent, node = node, _child(schema, node, part)
    return path, parent, _resolve(schema, node)


def _is_tag(node: Schema, part: int | str) -> bool:
    properties = node.get("properties", {})
    return properties.get("name", {}).get("const") == part and part not in properties


def _keys(schema: Schema, node: Schema) -> list[str]:
    return [key for choice in _choices(schema, node) for key in choice.get("properties", {})]


def _choices(schema: Schema, node: Schema) -> list[Schema]:
    """A schema, or all that it may be."""
    node = _resolve(schema, node)
    return [node, *(_resolve(schema, n) for n in node.get("oneOf", []) + node.get("anyOf", []))]


def _resolve(schema: Schema, node: Schema) -> Schema:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _child(schema: Schema, node: Schema, part: int | str) -> Schema:
    for choice in _choices(schema, node):
        if isinstance(part, int) and "items" in choice:
            found: Schema = choice["items"]
            return found
        if part in choice.get("properties", {}):
            return dict(choice["properties"][part])
    extra = _resolve(schema, node).get("additionalProperties", {})
    return extra if isinstance(extra, dict) else {}
