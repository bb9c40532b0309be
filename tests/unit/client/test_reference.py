"""`help(fmplex.…)` teaches: all that is exported is documented with its parameters, and both clients take the same."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

import fmplex
import fmplex_broker.errors
from fmplex import (
    AsyncBatch,
    AsyncBatches,
    AsyncClient,
    AsyncHandle,
    AsyncTextStream,
    AsyncTune,
    AsyncTunes,
    AsyncVfms,
    Batch,
    Batches,
    Client,
    FmplexError,
    Handle,
    TextStream,
    Tune,
    Tunes,
    Vfms,
    VfmSpec,
)

EXPORTED = {name: getattr(fmplex, name) for name in fmplex.__all__}
CLASSES = {name: kind for name, kind in EXPORTED.items() if isinstance(kind, type)}
PAIRS = (
    (AsyncClient, Client),
    (AsyncVfms, Vfms),
    (AsyncHandle, Handle),
    (AsyncTextStream, TextStream),
    (AsyncBatches, Batches),
    (AsyncBatch, Batch),
    (AsyncTunes, Tunes),
    (AsyncTune, Tune),
)
SYNC_NAMES = {"aclose": "close"}


def members(kind: type) -> dict[str, Any]:
    """The public methods and properties of a class, its bases of ours included."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("fmplex"):
            found |= {
                n: m for n, m in vars(base).items() if isinstance(m, property | classmethod) or inspect.isfunction(m)
            }
    return {name: member for name, member in found.items() if not name.startswith("_")}


def parameters(kind: Any) -> list[str]:
    """What a function takes, or a class is made of, if it says so itself."""
    if inspect.isfunction(kind) or isinstance(kind, classmethod):
        return list(inspect.signature(inspect.unwrap(getattr(kind, "__func__", kind))).parameters)
    if issubclass(kind, BaseModel):
        # The kind of a head, or of an event, is a constant.
        return [field.alias or name for name, field in kind.model_fields.items() if name not in ("kind", "event")]
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    if issubclass(kind, tuple):
        return list(kind._fields)  # type: ignore[attr-defined]
    return list(inspect.signature(vars(kind)["__init__"]).parameters) if "__init__" in vars(kind) else []


def documented() -> Iterator[tuple[str, Any, Any]]:
    """Everything that can be looked up: its name, its docstring, its parameters."""
    for name, thing in EXPORTED.items():
        yield name, vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__, parameters(thing)
    for name, kind in CLASSES.items():
        for method, member in members(kind).items():
            taken = [] if isinstance(member, property) else parameters(member)
            yield f"{name}.{method}", member.__doc__, taken


DOCUMENTED = {name: rest for name, *rest in documented()}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_docstring_names_every_parameter(name: str) -> None:
    docstring, taken = DOCUMENTED[name]
    assert docstring, f"{name} has no docstring"
    missing = [p for p in taken if p not in ("self", "cls") and not re.search(rf"`{re.escape(p)}\b", docstring)]
    assert missing == [], f"the docstring of {name} does not name them"


@pytest.mark.parametrize(("awaited", "plain"), PAIRS, ids=lambda kind: kind.__name__)
def test_both_clients_have_the_same_methods_with_the_same_parameters(awaited: type, plain: type) -> None:
    theirs = {SYNC_NAMES.get(name, name): member for name, member in members(awaited).items()}
    ours = members(plain)
    assert theirs.keys() == ours.keys()
    for name, member in ours.items():
        assert isinstance(member, property) == isinstance(theirs[name], property)
        if not isinstance(member, property):
            assert signature(member) == signature(theirs[name]), name
    if awaited is AsyncClient:
        assert signature(Client.__init__) == signature(AsyncClient.__init__)


def signature(function: Any) -> list[inspect.Parameter]:
    """Names, order, kinds, defaults and types of what it takes."""
    return list(inspect.signature(function).parameters.values())


def test_the_sync_client_sends_nobody_to_the_other_one() -> None:
    for kind in (Client, Vfms, Handle, TextStream, Batches, Batch, Tunes, Tune):
        for name, docstring in [(kind.__name__, kind.__doc__), *((n, m.__doc__) for n, m in members(kind).items())]:
            assert "Async" not in (docstring or ""), name


def test_what_is_exported_is_listed_in_order() -> None:
    assert fmplex.__all__ == sorted(set(fmplex.__all__))


def errors(root: type[FmplexError]) -> Iterator[type[FmplexError]]:
    """An error and those below it, but for those that a test or another role has made."""
    if root.__module__ == fmplex_broker.errors.__name__:
        yield root
    for child in root.__subclasses__():
        yield from errors(child)


def test_every_error_is_exported() -> None:
    tree = {kind.__name__: kind for kind in errors(FmplexError)}
    assert len(tree) > 20
    assert {name: EXPORTED.get(name) for name in tree} == tree


def test_every_part_of_a_specification_is_exported() -> None:
    parts = [*_models(VfmSpec), *_models(fmplex.VfmInfo)]
    assert len(set(parts)) >= 12
    assert {kind.__name__ for kind in parts} <= set(fmplex.__all__)


def _models(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models that the fields of a model hold."""
    for field in kind.model_fields.values():
        yield from _classes(field.annotation)


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _classes(part)
