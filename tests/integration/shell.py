"""`fmplex`, as somebody types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FMPLEX = Path(sys.prefix) / "bin" / "fmplex"


def clean_environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("FMPLEX_")} | more


class Shell:
    """Runs `fmplex` in a folder, told by the environment where the gateway is."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environment = clean_environment(FMPLEX_URL=url)

    def run(self, *args: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [FMPLEX, *args], cwd=self.folder, env=self.environment, input=stdin, capture_output=True, text=True, timeout=120
        )  # fmt: skip

    def __call__(self, *args: str | Path, stdin: str = "") -> str:
        done = self.run(*args, stdin=stdin)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def fails(self, *args: str | Path, stdin: str = "") -> str:
        """One line on stderr, nothing on stdout, exit code 1."""
        done = self.run(*args, stdin=stdin)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr
