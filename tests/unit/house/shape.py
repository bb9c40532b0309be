"""The shape that the packages keep, as functions over a source text: each returns what breaks its rule, one line each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

LONGEST_FUNCTION = 40  # lines from `def` to the end, docstring included
LONGEST_MODULE = 300
MOST_PARAMETERS = 7  # of a constructor, besides self

Function = ast.FunctionDef | ast.AsyncFunctionDef

# A docstring of a function begins with a verb; these are none.
_PREPOSITIONS = """about above after against along among around as at before behind below beneath beside besides between beyond
    by despite down during except for from in inside into like near of off on onto out outside over per since than through
    throughout to toward towards under until up upon versus via with within without"""
_PRONOUNS = """anybody anyone anything both each either every everybody everyone everything he her hers him his i it its itself
    mine my neither nobody nothing one ones other others our ours she somebody someone something such that their theirs them
    these they this those us we what whatever which whichever who whoever whom whose you your yours"""
_ARTICLES = "a an the all another any few half many more most much no none several some two three four"
_CONJUNCTIONS = """although and because but how however if lest nor once only or so then therefore there though thus unless
    when whenever where whereas wherever whether while why yet"""
_ADVERBS = "again almost already also always else even ever here just maybe never not now often perhaps still too very"
NO_VERBS = frozenset(" ".join((_PREPOSITIONS, _PRONOUNS, _ARTICLES, _CONJUNCTIONS, _ADVERBS)).split())


def long_functions(source: str) -> list[str]:
    """List the functions and methods of more than `LONGEST_FUNCTION` lines."""
    lengths = [(function, (function.end_lineno or 0) - function.lineno + 1) for function in _functions(source)]
    return [f"{f.lineno}: {f.name} has {n} lines" for f, n in lengths if n > LONGEST_FUNCTION]


def long_modules(source: str) -> list[str]:
    """Say so, if the text has more than `LONGEST_MODULE` lines."""
    lines = len(source.splitlines())
    return [f"1: it has {lines} lines"] if lines > LONGEST_MODULE else []


def crowded_constructors(source: str) -> list[str]:
    """List the constructors with more than `MOST_PARAMETERS` parameters besides self; `*args` and `**more` count as one each."""
    found = []
    for kind in ast.walk(ast.parse(source)):
        if not isinstance(kind, ast.ClassDef):
            continue
        for made in kind.body:
            if (
                isinstance(made, ast.FunctionDef)
                and made.name == "__init__"
                and (n := _parameters(made)) > MOST_PARAMETERS
            ):
                found.append(f"{made.lineno}: {kind.name} is made of {n} parameters")
    return found


def verbless_docstrings(source: str) -> list[str]:
    """List the functions and methods, properties apart, whose docstring begins with a word of `NO_VERBS`."""
    found = []
    for function in _functions(source):
        docstring = ast.get_docstring(function) or ""
        first = re.match(r"\W*([\w'’]+)", docstring)
        if first is not None and first[1].lower() in NO_VERBS and not _is_property(function):
            found.append(f"{function.lineno}: {function.name} begins with {first[1]!r}: {docstring.splitlines()[0]}")
    return found


def _functions(source: str) -> Iterator[Function]:
    """Yield the functions and methods of a text, inner ones too, in its order."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    yield from sorted(found, key=lambda function: function.lineno)


def _parameters(function: ast.FunctionDef) -> int:
    a = function.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x is not None)]
    return len(named) - 1


def _is_property(function: Function) -> bool:
    """Tell whether a decorator makes it one: `property`, `cached_property`, `x.setter`, …"""
    names = [ast.unparse(decorator).split("(")[0].split(".")[-1] for decorator in function.decorator_list]
    return any(name in ("setter", "deleter", "getter") or name.endswith("property") for name in names)
