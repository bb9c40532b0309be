"""`fmplex demo --generation`, with a training of seconds: everything happens, though nobody can tell what the vFMs say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmplex.demo.generation.voices import VOICES

CLI = Path(sys.executable).parent / "fmplex"
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]
Told = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Told]:
    """Runs the demo, with a cache of the tests' own: what it prints, and its report."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}

    def run() -> Told:
        report = folder / "report.json"
        command = [CLI, "demo", "--generation", "--quick", "--seconds", "1", "--report", report]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout, json.loads(report.read_text())

    return run


@pytest.fixture(scope="module")
def first(demo: Callable[[], Told]) -> Told:
    return demo()


def test_everything_is_trained_and_every_voice_speaks(first: Told) -> None:
    printed, report = first
    assert report["ok"], report["failures"]
    assert report["trained"] == len(VOICES)  # the decoder, and a LoRA for all but one
    for voice in VOICES:
        told = report["vfms"][voice.name]
        assert len(told["texts"]) == 2
        assert told["tokens"] > 0
        assert told["ttft_ms"] > 0
        assert f"{voice.name:9} | " in printed
    assert len({text for told in report["vfms"].values() for text in told["texts"]}) > len(VOICES)


def test_what_sharing_gives_is_told(first: Told) -> None:
    printed, report = first
    assert all(ratio > 0 for ratio in report["ratios"].values())
    assert report["memory"]["weights_shared"] < report["memory"]["weights_copies"]
    assert "one shared decoder" in printed


def test_the_second_time_it_starts_at_once_and_says_the_same(demo: Callable[[], Told], first: Told) -> None:
    printed, report = demo()
    assert report["trained"] == 0
    assert "trained before" in printed
    assert [told["texts"] for told in report["vfms"].values()] == [told["texts"] for told in first[1]["vfms"].values()]
