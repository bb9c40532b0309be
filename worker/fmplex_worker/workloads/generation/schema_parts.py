"""Parts of a JSON schema: where the schemas in it are, and the forms of keywords that llguidance keeps. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

# Keywords whose values are schemas: by names, which show in the path of a part or do not; in a list; one.
_NAMED = {"properties": "{}", "patternProperties": "{}", "$defs": "", "definitions": "", "dependentSchemas": ""}
_LISTED = {"prefixItems": "[{}]", "items": "[{}]", "anyOf": "", "oneOf": "", "allOf": ""}
_SINGLE = {
    "items": "[]", "additionalItems": "[]", "contains": "[]", "additionalProperties": "*", "unevaluatedItems": "[]",
    "unevaluatedProperties": "*", "propertyNames": "", "not": "", "if": "", "then": "", "else": "",
}  # fmt: skip
_SAYS_NOTHING = {"type", "title", "description", "$comment", "examples", "default"}


class Part(NamedTuple):
    """A schema in another one; `path`: the property that it is of, from there (`address.zip`, `lines[].price`)."""

    path: str
    schema: Any


def parts(schema: Any) -> Iterator[Part]:
    """Yield the schemas that are in a schema itself, not those in these."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            yield from (Part(_NAMED[key].format(name), part) for name, part in value.items())
        elif key in _LISTED and isinstance(value, list):
            yield from (Part(_LISTED[key].format(i), part) for i, part in enumerate(value))
        elif key in _SINGLE:
            yield Part(_SINGLE[key], value)


def joined(path: str, more: str) -> str:
    """Join two paths."""
    return f"{path}.{more}" if path and more and not more.startswith("[") else path + more


def changed(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a schema in which each schema, inner ones first, is what `change` makes of it."""
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            made[key] = {name: changed(part, change) for name, part in value.items()}
        elif key in _LISTED and isinstance(value, list):
            made[key] = [changed(part, change) for part in value]
        elif key in _SINGLE:
            made[key] = changed(value, change)
    return change(made)


def resolved(root: Any, schema: Any) -> Any:
    """Follow a `$ref` within the document (`#/$defs/Address`); None if it leads nowhere, or elsewhere."""
    ref = schema.get("$ref") if isinstance(schema, dict) else None
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return None
    for step in ref[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(root, dict) or name not in root:
            return None
        root = root[name]
    return root


def with_names_as_properties(root: Any) -> Any:
    """Return a schema in which `propertyNames`, which llguidance does not know, is said by what it does know, wherever that means
    the same: names that are listed become properties, those of a pattern a pattern property."""

    def change(schema: dict[str, Any]) -> dict[str, Any]:
        names = schema.get("propertyNames")
        names = resolved(root, names) or names
        if not isinstance(names, dict):
            return schema
        rest = {key: value for key, value in schema.items() if key != "propertyNames"}
        said = names.keys() - _SAYS_NOTHING
        if not said and names.get("type", "string") == "string":
            return rest
        values = schema.get("additionalProperties", True)
        if said == {"pattern"} and not schema.keys() & {"properties", "patternProperties"}:
            return rest | {"patternProperties": {names["pattern"]: values}, "additionalProperties": False}
        if said in ({"enum"}, {"const"}) and "patternProperties" not in schema:
            return rest | {
                "properties": _listed(names, schema.get("properties"), values),
                "additionalProperties": False,
            }
        return schema

    return changed(root, change)


def _listed(names: Mapping[str, Any], own: Any, values: Any) -> dict[str, Any]:
    listed = names["enum"] if "enum" in names else [names["const"]]
    given = own if isinstance(own, dict) else {}
    return {name: given.get(name, values) for name in listed if isinstance(name, str)}
