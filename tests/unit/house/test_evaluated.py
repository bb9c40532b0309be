"""Whatever evaluates a text, and so can take for ever, stands in one place each; there the texts of others have bounds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]
SOURCES = sorted(path for role in ("broker", "worker", "gateway", "client") for path in (REPO / role).rglob("*.py"))
# A call -> the modules that may make it, and why.
PLACES: dict[str, set[str]] = {
    "render_jinja_template": {"sandbox_child.py"},  # in the sandbox
    "apply_chat_template": {"prompts.py", "examples.py"},  # the backbone's own template, which is the operator's
    "from_string": set(),
    "LLMatcher": {"grammars.py"},  # in the sandbox first: `Schemas._compile`
    "fnmatchcase": {"catalog.py", "access.py"},  # in linear time, and short; of the gateway's own file
    "fnmatch": set(),
    "eval": set(),
    "exec": set(),
    "compile": {"name_patterns.py"},  # of a pattern that is no constant: after `_EXPRESSION` has taken it
}
_OF_RE = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer", "template"}


def evaluations(source: str) -> Iterator[str]:
    """Yield the names in `PLACES` that a module calls; `compile` is any use of `re` on a pattern that is no constant of it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id="re"), attr=attr) if attr in _OF_RE:
                if not _is_constant(node.args[0]):
                    yield "compile"
            case ast.Name(id=name) if name in PLACES and name != "compile":
                yield name
            case ast.Attribute(attr=attr) if attr in PLACES and attr not in ("compile", "eval", "exec"):
                yield attr  # methods called eval are torch's and Redis's


def _is_constant(pattern: ast.expr) -> bool:
    """Tell whether a pattern is a literal, or made of nothing but literals and constants of the module."""
    match pattern:
        case ast.Constant():
            return True
        case ast.Name(id=name):
            return name.isupper()
        case ast.FormattedValue(value=value):
            return _is_constant(value)
        case ast.JoinedStr(values=values):
            return all(map(_is_constant, values))
    return False


def test_texts_are_evaluated_where_they_are_bounded() -> None:
    assert len(SOURCES) > 100
    for path in SOURCES:
        for name in evaluations(path.read_text(encoding="utf-8")):
            assert path.name in PLACES[name], f"{path}: {name} evaluates a text; whose is it, and what bounds it?"


def test_json_of_packages_is_read_in_one_place() -> None:
    modules = (REPO / "broker/fmplex_broker/packages").glob("*.py")
    assert [path.name for path in modules if "json.loads(" in path.read_text(encoding="utf-8")] == ["json_object.py"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("re.match(rf'(.*)({key})$', name)", ["compile"]),
        ("re.fullmatch(self.feedforward_modules, name)", ["compile"]),
        ("re.compile(pattern)", ["compile"]),
        ("re.compile('a' + pattern)", ["compile"]),
        ("re.compile(r'a'); re.compile(rf'a{_B}'); re.sub(_A, 'x', text)", []),
        ("render_jinja_template([m], chat_template=t)", ["render_jinja_template"]),
        ("Environment().from_string(t)", ["from_string"]),
        ("eval(text)", ["eval"]),
        ("model.eval()", []),
    ],
)
def test_the_rule_sees(source: str, found: list[str]) -> None:
    assert list(evaluations(source)) == found
