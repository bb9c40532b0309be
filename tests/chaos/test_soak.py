"""A minute of callers who come and go as they like. `FMPLEX_SOAK_MINUTES` makes it longer, `FMPLEX_SOAK_SEED` repeats a run."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from benchmarks.soak import soak

MINUTES = float(os.environ.get("FMPLEX_SOAK_MINUTES") or 1)
SEED = int(os.environ.get("FMPLEX_SOAK_SEED") or random.randrange(1_000_000))


@pytest.mark.timeout(60 * MINUTES + 300)
async def test_when_all_callers_have_gone_nothing_of_them_is_left(tmp_path: Path) -> None:
    print(f"FMPLEX_SOAK_SEED={SEED}")
    found = await soak(tmp_path, MINUTES, seed=SEED)
    print(dict(found.did), found.worker_mb, found.most_waiting)
    assert found.wrong == []
    assert found.keys == []
    assert {name: number for name, number in found.left.items() if number} == {}
    assert found.most_waiting > 0, "there was too little memory for all"
    assert min(found.did[act] for act in ("whole", "streamed", "left_midway", "given_up", "hung_up", "guest")) >= 5
