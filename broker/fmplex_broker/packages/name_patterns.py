"""Patterns of module names in PEFT's configs: regular expressions that others wrote, matched in linear time.

PEFT matches them by Python's `re`, which one pattern can keep busy for years with the interpreter in its hands. Here they are
matched by the engine that pydantic brings (Rust's `regex`): its time grows with pattern times name, whatever the pattern. Taken
is what both engines read alike. Names are printable ASCII (`weights.tensor_shapes` sees to it), so `\\w` and `\\d` are too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property

from pydantic_core import SchemaError, SchemaValidator, core_schema

from fmplex_broker.packages.peft_config import rejected

MAX_PATTERNS = 1024  # PEFT's EVA writes a name for every module; 405 billion parameters have 882
MAX_LENGTH = 256  # characters of one pattern
MAX_EXPRESSIONS = 4096  # characters of all those of a config that are more than names
_BLOCK = 32  # patterns; about the root of the most
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_CHARACTER = (
    r"(?:[A-Za-z0-9_.-]|\\[.dw-]|\[\^?(?:[A-Za-z0-9_.]|\\[.dw-]|-(?!-))+\])(?:(?:[*+?]|\{[0-9](?:,[0-9]?)?\})\??)?"
)
_EXPRESSION = re.compile(rf"(?:{_CHARACTER}|\((?:\?:)?|\)(?:[*+?]\??)?|[|^$])*")
_ADVICE = "write the names of the modules out, or use no more than . \\. \\d \\w [sets] (groups) | * + ? {1,9}"


class NamePatterns:
    """Finds the first of some patterns that matches a whole name; `before`: an expression that may come before each of them.

    The patterns must have passed `check_patterns`.
    """

    def __init__(self, patterns: Iterable[str], before: str = "") -> None:
        listed = list(patterns)
        self._blocks = [_Block(listed[at : at + _BLOCK], before) for at in range(0, len(listed), _BLOCK)]
        self._found: dict[str, str | None] = {}

    def first(self, name: str) -> str | None:
        """Return the first pattern that matches, None if none does. Names are remembered: each is matched once."""
        if name not in self._found:
            self._found[name] = next(
                (found for block in self._blocks if (found := block.first(name)) is not None), None
            )
        return self._found[name]


class _Block:
    """Patterns that are first tried all at once: one for each of a thousand modules is the usual thing."""

    def __init__(self, patterns: Sequence[str], before: str) -> None:
        self._patterns, self._before = patterns, before
        self._any = _compiled("|".join(f"(?:{pattern})" for pattern in patterns), before)

    def first(self, name: str) -> str | None:
        if not self._any.isinstance_python(name):
            return None
        return next(pattern for pattern, matcher in self._each if matcher.isinstance_python(name))

    @cached_property
    def _each(self) -> list[tuple[str, SchemaValidator]]:
        return [(pattern, _compiled(pattern, self._before)) for pattern in self._patterns]


def check_patterns(option: str, patterns: Collection[str]) -> None:
    """Check the patterns of an option of an adapter's config: few, short, and such as both engines read alike.

    Raises `PackageRejected` that names the option and the pattern.
    """
    if len(patterns) > MAX_PATTERNS:
        raise rejected(
            f"{option}: {len(patterns)} patterns, at most {MAX_PATTERNS} are taken; put several names into one"
        )
    expressions = 0
    for pattern in patterns:
        if len(pattern) > MAX_LENGTH:
            raise rejected(
                f"{option}: pattern {pattern[:64]!r}… has {len(pattern)} characters, at most {MAX_LENGTH} are taken"
            )
        if _NAME.fullmatch(pattern):
            continue
        expressions += len(pattern)
        if expressions > MAX_EXPRESSIONS:
            raise rejected(f"{option}: its regular expressions have more than {MAX_EXPRESSIONS} characters; {_ADVICE}")
        _check_expression(option, pattern)


def _check_expression(option: str, pattern: str) -> None:
    """Check that a pattern has only the taken signs, and is an expression for PEFT as for us. Raises `PackageRejected`."""
    if _EXPRESSION.fullmatch(pattern) is None:
        raise rejected(f"{option}: pattern {pattern!r} is too complex, or not a regular expression; {_ADVICE}")
    try:
        re.compile(pattern)  # of so few signs, it takes no longer than the pattern is long
        _compiled(pattern, "")
    except (re.error, SchemaError, RecursionError) as e:
        raise rejected(f"{option}: pattern {pattern!r} is not a regular expression ({e})") from e


def _compiled(pattern: str, before: str) -> SchemaValidator:
    plain = pattern.replace(r"\w", "[A-Za-z0-9_]").replace(r"\d", "[0-9]")  # in a set too: sets may hold sets there
    whole = f"^(?:{before})?(?:{plain})$" if before else f"^(?:{plain})$"
    return SchemaValidator(core_schema.str_schema(pattern=whole, regex_engine="rust-regex"))
