"""Two minutes in which everything that can go wrong goes wrong. `FMPLEX_STORM_SEED` repeats a storm, `FMPLEX_STORM_SECONDS` makes
it longer."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from benchmarks.storm import Settings, storm
from benchmarks.storm_faults import KINDS
from benchmarks.storm_record import Record, words_of

SECONDS = float(os.environ.get("FMPLEX_STORM_SECONDS") or 120)
SEED = int(os.environ.get("FMPLEX_STORM_SEED") or random.randrange(1_000_000))


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 600)
async def test_a_storm_loses_doubles_and_spoils_nothing_and_ends_no_process(tmp_path: Path) -> None:
    print(f"FMPLEX_STORM_SEED={SEED}")
    record = Record()
    await storm(tmp_path, Settings(SEED, SECONDS), record)
    print(dict(record.found.did), dict(record.found.errors), record.sizes, record.recovery())
    assert words_of(record.found) == []
    assert {kind for kind, recovery in record.recovery().items() if recovery["times"] >= 2} == set(KINDS)
    assert record.found.did["answered again"] >= 50, "who asks again gets the same answer"
    assert record.found.errors, "callers have noticed that there was a storm"
