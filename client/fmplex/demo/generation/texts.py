"""Questions and answers about Python, from the documentation that ships with it: docstrings and the language reference."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pydoc_data.topics import topics
from types import ModuleType
from typing import NamedTuple

# Well known, quick to import, and doing nothing when imported.
_MODULES = (
    "builtins", "os.path", "collections", "copy", "functools", "glob", "heapq", "itertools", "json", "math", "random", "re",
    "string", "textwrap",
)  # fmt: skip
# Their members say the same as those of str and set.
_ALIKE = {"bytes", "bytearray", "frozenset", "memoryview"}
_LONGEST = 260  # characters of an answer
_FEWEST_WORDS = 4
_ENDS = ".!?"
_STATEMENT = re.compile(r'The "(\w+)" statement')
_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "–": "-", "—": "-", "`": ""})
_EMPHASIS = re.compile(r"(?<![*\w])\*(\w+)\*(?![*\w])")


class QuestionAnswer(NamedTuple):
    """A question about Python and its answer."""

    question: str
    answer: str


def pairs() -> list[QuestionAnswer]:
    """Return a pair for each function, class and statement; no answer twice, in an order that does not change."""
    found: dict[str, QuestionAnswer] = {}
    for pair in (*_statements(), *_documented()):
        found.setdefault(pair.answer, pair)
    return list(found.values())


def _statements() -> Iterator[QuestionAnswer]:
    for text in topics.values():
        title = _STATEMENT.match(text)
        answer = _answer(text.partition("\n\n")[2]) if title else ""
        if title and answer:
            yield QuestionAnswer(f"What does the {title[1]} statement do?", answer)


def _documented() -> Iterator[QuestionAnswer]:
    for module in map(_module, _MODULES):
        prefix = "" if module.__name__ == "builtins" else f"{_name(module)}."
        for name, value in _own(module):
            answer = _answer(inspect.getdoc(value) or "")
            if answer:
                yield QuestionAnswer(_question(f"{prefix}{name}", value), answer)
            for part, member in _public(value) if inspect.isclass(value) and name not in _ALIKE else ():
                if answer := _answer(inspect.getdoc(member) or ""):
                    yield QuestionAnswer(_question(f"{prefix}{name}.{part}", member), answer)


def _module(name: str) -> ModuleType:
    with warnings.catch_warnings(action="ignore"):
        return importlib.import_module(name)


def _name(module: ModuleType) -> str:
    return "os.path" if module.__name__ in ("posixpath", "ntpath") else module.__name__


def _own(module: ModuleType) -> list[tuple[str, object]]:
    """Return what is public and defined in the module itself."""
    homes = {module.__name__, "genericpath"}  # of which os.path is made
    return [(name, v) for name, v in _public(module) if (_home(v) or module.__name__) in homes]


def _home(value: object) -> str:
    """Return the public module of a value: heapq for `_heapq`, json for json.decoder; empty if it has none."""
    return (getattr(value, "__module__", None) or "").lstrip("_").partition(".")[0]


def _public(owner: object) -> list[tuple[str, object]]:
    """Return functions and classes by name. Read from the namespace: asking for an attribute may run code, or warn."""
    named = [(name, v) for name, v in sorted(vars(owner).items()) if not name.startswith("_")]
    return [(name, v) for name, v in named if inspect.isroutine(v) or (inspect.isclass(v) and not _is_error(v))]


def _is_error(value: type) -> bool:
    return issubclass(value, BaseException)


def _question(name: str, value: object) -> str:
    return f"What is {name}?" if inspect.isclass(value) else f"What does {name} do?"


def _answer(text: str) -> str:
    """Return the first sentences of the first prose of a documentation; empty if there is none that can be read."""
    prose = [_tidy(part) for part in text.split("\n\n") if _is_prose(part)]
    sentences = [s for part in prose if _is_readable(part) for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", part)]
    answer = ""
    for sentence in sentences:
        if answer and len(answer) + len(sentence) >= _LONGEST:
            break
        answer = f"{answer} {sentence}".strip()
    return answer if len(answer.split()) >= _FEWEST_WORDS and len(answer) <= _LONGEST and answer[-1] in _ENDS else ""


def _tidy(part: str) -> str:
    return re.sub(r"\s+", " ", _EMPHASIS.sub(r"\1", part.translate(_PLAIN))).strip()


def _is_prose(part: str) -> bool:
    """Tell whether a paragraph is not code, a heading, a signature or an item of a list."""
    lines = part.strip("\n").splitlines()
    return bool(lines) and not any(
        line.startswith((" ", "-", "+", "|", ">>>", "=", "#", ".", "@", ":")) or "->" in line or "::" in line
        for line in lines
    ) and not any(set(line) <= set("*=-~^") for line in lines)  # fmt: skip


def _is_readable(text: str) -> bool:
    return (
        text.isascii()
        and not any(sign in text for sign in ("<", "\\", "{", "__"))
        and text[:1].isalpha()
        and text[:1].isupper()
    )
