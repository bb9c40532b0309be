"""Programs that use client packages of others as their documentation says, against a fleet instead of OpenAI.

They are in `programs/`, each a file of tests that runs in the environment which has the packages; here it is one test a package.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fmplex.local import LocalFleet
from tests.clients.conftest import KEY

PROGRAMS = Path(__file__).parent / "programs"
# Nobody is asked for anything but the fleet, and nothing is told to anybody.
QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}


@pytest.mark.long
@pytest.mark.parametrize("program", sorted(path.stem for path in PROGRAMS.glob("*_program.py")))
def test_a_program_that_was_written_for_openai_works(program: str, python: Path, fleet: LocalFleet) -> None:
    told = {"FMPLEX_URL": f"{fleet.gateway_url}/v1", "FMPLEX_KEY": KEY}
    ours = ("PYTHON", "OPENAI", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}
    done = subprocess.run(
        [python, "-m", "pytest", "-c", PROGRAMS / "pytest.ini", PROGRAMS / f"{program}.py"],
        env=inherited | QUIET | told, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
