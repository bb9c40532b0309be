"""What each target of the Makefile installs: a demo needs no linters, and packages of others stay out of our environment."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
OTHERS = {"instructor", "langchain-openai", "litellm", "llama-index-embeddings-openai"}


def installed(folder: Path, target: str) -> list[str]:
    """Return what a target would install in a folder: where, and what pip is told."""
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "tests/clients/requirements.txt",
        "tests/clients/constraints.txt",
    ):
        copy = folder / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((REPO / name).read_bytes())
    (folder / "benchmarks").mkdir(exist_ok=True)
    printed = subprocess.run(["make", "-n", target], cwd=folder, capture_output=True, text=True, check=True).stdout
    return [f"{where}: {what}" for where, what in re.findall(r"(?m)^(\S+)/bin/python -m pip install (.*)$", printed)]


def extra(name: str) -> set[str]:
    """Return the packages of an extra, and of those that it names."""
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = set()
    for wanted in extras[name]:
        if inner := re.fullmatch(r"fmplex\[(.*)\]", wanted):
            found |= set[str]().union(*map(extra, inner[1].split(",")))
        else:
            found.add(re.match(r"[\w.-]+", wanted)[0])  # type: ignore[index]
    return found


def test_the_demo_installs_its_extra_alone(tmp_path: Path) -> None:
    [one] = installed(tmp_path, "demo")
    assert re.fullmatch(r'\.venv: .* -c constraints\.txt -e "\.\[demo\]"', one)
    tools = extra("dev") - extra("demo")
    assert tools >= {"ruff", "mypy", "pytest", "hypothesis", "import-linter", "scikit-learn"}


def test_what_has_been_installed_is_not_installed_again(tmp_path: Path) -> None:
    installed(tmp_path, "setup")
    (tmp_path / ".venv").mkdir()
    for stamp in (".installed-demo", ".installed"):  # as `make setup` leaves them
        (tmp_path / ".venv" / stamp).touch()
    assert installed(tmp_path, "setup") == installed(tmp_path, "demo") == []
    (tmp_path / ".venv" / ".installed").unlink()
    assert len(installed(tmp_path, "setup")) == 1, "a demo's environment lacks the tools"


@pytest.mark.parametrize("target", ["setup", "demo", "test", "check"])
def test_packages_of_others_come_with_no_other_target(tmp_path: Path, target: str) -> None:
    assert all(line.startswith(".venv: ") and "clients" not in line for line in installed(tmp_path, target))
    assert not OTHERS & extra("dev")


def test_packages_of_others_have_an_environment_and_pins_of_their_own(tmp_path: Path) -> None:
    _, clients = [*dict.fromkeys(installed(tmp_path, "test-all"))]
    assert clients.startswith(".venv-clients: ")
    assert clients.endswith(" -c tests/clients/constraints.txt -r tests/clients/requirements.txt")
    pinned = {
        line.split("==")[0] for line in (REPO / "tests/clients/constraints.txt").read_text().split() if "==" in line
    }
    assert pinned >= OTHERS | {"openai", "pytest", "pydantic", "httpx"}
