"""The shape of the house: short functions and modules, constructors of few parts, docstrings that begin with a verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.house import shape

REPO = Path(__file__).resolve().parents[3]
PACKAGES = ("broker", "worker", "gateway", "client")
RULES = (shape.long_functions, shape.long_modules, shape.crowded_constructors, shape.verbless_docstrings)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_keeps_to_the_shape(package: str, rule: Callable[[str], list[str]]) -> None:
    modules = sorted((REPO / package).rglob("*.py"))
    assert modules, f"{package} has no modules"
    wrong = [f"{path.relative_to(REPO)}:{found}" for path in modules for found in rule(path.read_text())]
    assert wrong == [], f"{len(wrong)} found\n" + "\n".join(wrong)


def function(lines: int, head: str = "def f():") -> str:
    """A function of so many lines."""
    return "\n".join([head, *["    x = 1"] * (lines - 1)]) + "\n"


@pytest.mark.parametrize("head", ["def f():", "async def f():", "def f(\n    a,\n    b,\n):"])
def test_a_function_may_have_forty_lines(head: str) -> None:
    more = head.count("\n")
    assert shape.long_functions(function(40 - more, head)) == []
    assert shape.long_functions(function(41 - more, head)) == ["1: f has 41 lines"]


def test_lines_of_a_method_a_nested_function_and_a_docstring_count_and_a_decorator_does_not() -> None:
    method = "class C:\n    @property\n    def m(self):\n        '''One.\n\n        Two.'''\n" + "        x = 1\n" * 37
    assert shape.long_functions(method) == ["3: m has 41 lines"]
    assert shape.long_functions(method.replace("        x = 1\n", "", 1)) == []
    inner = "def f():\n    def g():\n" + "        x = 1\n" * 39
    assert shape.long_functions(inner) == ["1: f has 41 lines"]


def test_a_module_may_have_three_hundred_lines() -> None:
    assert shape.long_modules("x = 1\n" * 300) == []
    assert shape.long_modules("x = 1\n" * 301) == ["1: it has 301 lines"]


def made_of(parameters: str) -> list[str]:
    return shape.crowded_constructors(f"class C:\n    def __init__({parameters}):\n        pass\n")


@pytest.mark.parametrize(
    "parameters",
    [
        "self, a, b, c, d, e, f, g",
        "self, a=1, b=2, *, c, d, e: int = 3, f, g",
        "self, a, b, /, c, d, *e, f, **g",
    ],
)
def test_a_constructor_may_have_seven_parameters(parameters: str) -> None:
    assert made_of(parameters) == []
    assert made_of(parameters.replace("self, ", "self, one_more, ")) == ["2: C is made of 8 parameters"]


def test_only_constructors_are_counted_but_those_of_inner_classes_too() -> None:
    eight = "(self, a, b, c, d, e, f, g, h):\n"
    assert shape.crowded_constructors(f"class C:\n    def m{eight}        pass\ndef __init__{eight}    pass\n") == []
    inner = f"def f():\n    class D:\n        def __init__{eight}            pass\n"
    assert shape.crowded_constructors(inner) == ["3: D is made of 8 parameters"]


def documented(docstring: str, decorator: str = "") -> list[str]:
    return shape.verbless_docstrings(f'{decorator}\ndef f():\n    """{docstring}"""\n')


@pytest.mark.parametrize(
    "first",
    ["Of", "of", "The", "A", "It", "Whether", "With", "So", "All", "None", "“Which", "One", "When", "They", "And"],
)
def test_a_docstring_does_not_begin_with_what_is_no_verb(first: str) -> None:
    docstring = f"{first} text, so long after it was enqueued."
    word = first.removeprefix("“")
    assert documented(docstring) == [f"2: f begins with {word!r}: {docstring}"]
    assert documented(f"\n    {docstring}\n    ") == [f"2: f begins with {word!r}: {docstring}"]
    assert documented(docstring, "@staticmethod") != []
    assert shape.verbless_docstrings(f'class C:\n    async def m(self):\n        """{docstring}"""\n') != []


@pytest.mark.parametrize(
    "first", ["Return", "Record", "Tell", "Offer", "Allow", "Until_", "Itemise", "Normalise", "Fork"]
)
def test_a_docstring_that_begins_with_a_verb_is_well(first: str) -> None:
    assert documented(f"{first} a text.") == []


@pytest.mark.parametrize(
    "decorator", ["@property", "@cached_property", "@functools.cached_property", "@f.setter", "@abc.abstractproperty"]
)
def test_a_property_may_be_said_by_a_noun_phrase(decorator: str) -> None:
    assert documented("The text.", decorator) == []


def test_modules_classes_and_functions_without_a_docstring_are_not_asked_for_verbs() -> None:
    assert (
        shape.verbless_docstrings('"""The module."""\nclass C:\n    """A class."""\n    def f(self):\n        pass\n')
        == []
    )
