"""Documents whose code blocks are run as they stand, and what they need: a fleet from a file that ships, a shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fmplex import Client
from fmplex.local import LocalFleet

REPO = Path(__file__).resolve().parents[2]
_DEFAULT = "http://127.0.0.1:8080"


def copy_fleet_file(folder: Path, name: str) -> None:
    """Copy `configs/NAME` as it ships, but for its port and the place of its artifacts."""
    (folder / "configs").mkdir()
    shipped = (REPO / "configs" / name).read_text()
    config = re.sub(r"(?m)^port = \d+", "port = 0", shipped)
    (folder / "configs" / name).write_text(f'artifacts = "{folder}/artifacts"\n{config}')


@contextmanager
def up(folder: Path, name: str) -> Iterator[LocalFleet]:
    """Start what `fmplex up` starts from `configs/NAME` below the folder."""
    with LocalFleet(folder / "configs" / name, port=0, data=folder / "data") as running:
        with Client(running.gateway_url) as fm:
            for spec in running.spec.vfms:
                fm.vfms.deploy(spec)
        yield running


class Document:
    """A document, named as from docs/, for a reader in a folder with a fleet; see `blocks`, `run`, `shell`."""

    def __init__(self, name: str) -> None:
        self._name = f"docs/{name}"

    def blocks(self, heading: str, language: str = "python") -> list[str]:
        """Return the code blocks below a heading."""
        found = re.findall(rf"(?ms)^```{language}\n(.*?)^```", self.section(heading))
        assert found, f"{self._name} has no {language} below {heading!r}"
        return found

    def section(self, heading: str) -> str:
        """Return the text below a heading."""
        text = (REPO / self._name).read_text()
        return re.split(r"(?m)^## ", text.partition(f"## {heading}\n")[2])[0]

    def run(self, heading: str, fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Run a section's Python from the folder, against this fleet; return the names it leaves."""
        monkeypatch.chdir(folder)
        scope: dict[str, Any] = {"__name__": "docs"}
        for block in self.blocks(heading):
            exec(compile(block.replace(_DEFAULT, fleet.gateway_url), self._name, "exec"), scope)
        return scope


def shell(line: str, fleet: LocalFleet, folder: Path) -> str:
    """Run a line of a shell in the folder, against this fleet; return what it prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(line.replace(_DEFAULT, fleet.gateway_url)), cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "FMPLEX_URL": fleet.gateway_url},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
