"""Adapters to train, as options of `fmplex fit` and `fmplex tune submit` name them."""

from __future__ import annotations

from typing import Any

from fmplex_broker.errors import InvalidInput


def read_lora(text: str | None) -> Any:
    """Read `r=8,alpha=16,targets=query+value`; None if there is none. Raises `InvalidInput`."""
    return _named("--lora", text, "r=8,alpha=16")


def read_ia3(text: str | None) -> Any:
    """Read `targets=query+value`, or `all`; None if there is none. Raises `InvalidInput`."""
    return _named("--ia3", text, "targets=query+value")


def _named(option: str, text: str | None, example: str) -> Any:
    """Read named values, or `all` for the defaults."""
    if text is None:
        return None
    options: dict[str, Any] = {}
    for part in () if text == "all" else text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidInput(f"{option} {text!r}: write it as {example}", field=option.removeprefix("--"))
        options[key.strip()] = value.split("+") if key.strip() in ("targets", "feedforward") else value
    return options
