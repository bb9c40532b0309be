"""Schemas as ordinary generators write them, and tokenizers that are larger or smaller than the model's vocabulary."""

from __future__ import annotations

import enum
import ipaddress
import json
import pathlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from transformers import AutoTokenizer

from fmplex_broker.errors import InvalidInput
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.workloads.generation.grammars import servable
from tests.support import tiny_lm

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
Folders = Callable[[str], Path]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Line(pydantic.BaseModel):
    tags: set[str]


class Order(pydantic.BaseModel):
    secret: pydantic.SecretStr
    path: pathlib.Path
    number: uuid.UUID
    net: ipaddress.IPv4Network
    raw: bytes
    coded: pydantic.Base64Str
    by_colour: dict[Colour, int]
    lines: list[Line]


def of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


def served(schema: dict[str, Any], strict: bool) -> Any:
    return json.loads(servable(json.dumps(schema), strict))


# As zod-to-json-schema, Zod's own toJSONSchema, TypeBox and OpenAPI write them.
LENIENT: dict[str, dict[str, Any]] = {
    "zod set": {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
    "zod email": {"type": "string", "format": "email", "pattern": r"^(?!\.)(?!.*\.\.)[a-z.]+@[a-z]+\.com$"},
    "python pattern": {"type": "string", "pattern": r"^a\Z"},
    "oneOf of what overlaps": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "not": {"type": "string", "not": {"const": "x"}},
    "if": {"type": "object", "if": {"required": ["x"]}, "then": {"required": ["y"]}},
    "record of uuids": {"type": "object", "propertyNames": {"format": "uuid"}, "additionalProperties": {}},
}
EXACT: dict[str, dict[str, Any]] = {
    "zod base64": {"type": "string", "format": "base64", "contentEncoding": "base64", "pattern": "^[0-9a-zA-Z+/=]*$"},
    "zod record": {
        "type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"},
    },
    "format of another world": {"type": "string", "format": "licence-plate"},
    "openapi": {"type": "integer", "format": "int32", "example": 3, "nullable": True, "x-order": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", LENIENT)
def test_what_cannot_be_kept_is_left_out_unless_strict(name: str) -> None:
    served(of(LENIENT[name]), False)
    with pytest.raises(ValueError, match=r"^property 'a': .*strict=false"):
        served(of(LENIENT[name]), True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_annotations_are_nobodys_trouble(name: str, strict: bool) -> None:
    """An unknown format is one; that names of properties are texts goes without saying."""
    served(of(EXACT[name]), strict)


@pytest.mark.parametrize("strict", [False, True])
def test_names_of_properties(strict: bool) -> None:
    listed = {"type": "object", "propertyNames": {"$ref": "#/$defs/N"}, "additionalProperties": {"type": "integer"}}
    a = served(of(listed) | {"$defs": {"N": {"enum": ["x", "y"], "title": "N"}}}, strict)["properties"]["a"]
    assert a["properties"] == {"x": {"type": "integer"}, "y": {"type": "integer"}}
    assert a["additionalProperties"] is False
    pattern = {"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": {"type": "integer"}}
    a = served(of(pattern), strict)["properties"]["a"]
    assert a == {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False}


def test_what_is_refused_names_the_property() -> None:
    wrong = {"type": "object", "properties": {"b": {"type": "array", "items": of({"type": "no such"})}}}
    for schema, says in (
        (of(wrong), r"property 'a.b\[\].a': Invalid type: no such"),
        (of({"$ref": "#/$defs/nope"}), "property 'a': Pointer"),
        (of({"$ref": "#/$defs/D"}) | {"$defs": {"D": wrong}}, r"property 'a.b\[\].a': Invalid type"),
        (of({"type": "object", "patternProperties": {"^(?=x)": {}}}), "property 'a': look-around"),
        ({"type": "no such"}, "Invalid type: no such"),
    ):
        for strict in (False, True):
            with pytest.raises(ValueError, match=f"^{says}"):
                served(schema, strict)
    with pytest.raises(ValueError, match=r"^property 'lines\[\].tags': .*uniqueItems"):
        served(Order.model_json_schema(), True)


def text(engine: PackedEngine, schema: dict[str, Any], **params: Any) -> Any:
    digest = tiny_lm.load(engine)
    job = tiny_lm.prepare(engine, digest, "an order:", schema=schema, seed=3, max_tokens=190, **params)
    (out,) = tiny_lm.drive(engine, [job])
    return out if isinstance(out, Exception) else out["text"]


BOUNDED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "secret": {"type": "string", "format": "password", "maxLength": 5},
        "tags": {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "prices": {
            "type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": {"type": "boolean"},
            "required": ["y"],
        },
    },
    "required": ["secret", "tags", "prices"],
    "additionalProperties": False,
}  # fmt: skip


def test_texts_have_what_is_kept(lm_folder: Folders) -> None:
    engine = tiny_lm.open_tiny(lm_folder("llama"))
    for _ in range(2):  # tried, and known
        made = json.loads(text(engine, BOUNDED))
        assert len(made["secret"]) <= 5
        assert set(made["tags"]) <= {"a", "b"}
        assert {"y"} <= set(made["prices"]) <= {"x", "y"}
    tiny_lm.prepare(engine, tiny_lm.load(engine), "x", schema=Order.model_json_schema())
    with pytest.raises(InvalidInput, match=r"schema: property 'tags': .*uniqueItems") as refusal:
        tiny_lm.prepare(engine, tiny_lm.load(engine), "x", schema=BOUNDED, strict=True)
    assert refusal.value.field == "params.schema"


@pytest.mark.parametrize("more", [1, 7, 200])
def test_a_tokenizer_that_is_larger_than_the_model(more: int, lm_folder: Folders, tmp_path: Path) -> None:
    """As where special tokens were added and the model was not resized: they cannot come, all else can."""
    folder = tiny_lm.save_model("llama", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<|extra{i}|>" for i in range(more)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    engine = tiny_lm.open_tiny(folder)
    assert len(tokenizer) == tiny_lm.generation(engine)._backbone.lm_head.vocabulary + more  # type: ignore[union-attr]
    made = text(engine, BOUNDED)
    assert set(json.loads(made)) == {"secret", "tags", "prices"}
    assert made == text(tiny_lm.open_tiny(lm_folder("llama")), BOUNDED), "the same as without them"
