"""Adapters to train, as options of `fmplex fit` and `fmplex tune submit` name them."""

from __future__ import annotations

from typing import Any

from fmplex_broker.errors import InvalidInput


def read_lora(text: str | None) -> dict[str, Any] | None:
    """Read `r=8,alpha=16,targets=query+value`; None if there is none. Raises `InvalidInput`."""
    return None if text is None else _named("--lora", text, ("targets",), "r=8,alpha=16")


def read_ia3(text: str | None) -> dict[str, Any] | None:
    """Read `all`, or `targets=query+value`; None if there is none. Raises `InvalidInput`."""
    if text is None or text == "all":
        return None if text is None else {}
    return _named("--ia3", text, ("targets", "feedforward"), "targets=query+value")


def _named(option: str, text: str, lists: tuple[str, ...], example: str) -> dict[str, Any]:
    """Read named values; those of `lists` may have several. Raises `InvalidInput`."""
    options: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidInput(f"{option} {text!r}: write it as {example}", field=option.removeprefix("--"))
        options[key.strip()] = value.split("+") if key.strip() in lists else value
    return options
