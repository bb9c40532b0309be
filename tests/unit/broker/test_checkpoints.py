"""Checkpoints in the artifact store."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmplex_broker.errors import InvalidInput, StoreUnavailable, UnknownFile
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.specs.tuning import new_tune_id


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")


def test_what_is_put_is_there_until_it_is_deleted(store: CheckpointStore) -> None:
    job, other = new_tune_id(), new_tune_id()
    store.put(job, "10-w1", "state", b"s" * 100_000)
    store.put(job, "10-w1", "package", b"p")
    store.put(job, "20-w1", "state", b"t")
    store.put(other, "10-w1", "state", b"o")
    assert store.get(job, "10-w1", "state") == b"s" * 100_000
    assert store.get(job, "10-w1", "package") == b"p"
    for _ in range(2):
        store.delete(job, "10-w1")
    with pytest.raises(UnknownFile, match="10-w1"):
        store.get(job, "10-w1", "state")
    assert (store.get(job, "20-w1", "state"), store.get(other, "10-w1", "state")) == (b"t", b"o")
    assert store.jobs() == sorted([job, other])
    for _ in range(2):
        store.forget(job)
    assert store.jobs() == [other]


@pytest.mark.parametrize(
    ("job", "name"), [("..", "a"), ("ftjob-1", "a"), ("", "a"), (new_tune_id(), "../a"), (new_tune_id(), "")]
)
def test_what_is_no_checkpoint_is_refused(store: CheckpointStore, job: str, name: str) -> None:
    with pytest.raises(InvalidInput):
        store.put(job, name, "state", b"")
    with pytest.raises(InvalidInput):
        store.get(job, name, "state")
    store.forget("..")


def test_checkpoints_are_no_artifacts(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.put(new_tune_id(), "1", "package", b"p")
    assert ArtifactStore(str(tmp_path)).prune(set(), 0.0) == []
    assert len(store.jobs()) == 1


def test_a_store_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("no folder")
    store = CheckpointStore(str(tmp_path))
    with pytest.raises(StoreUnavailable):
        store.put(new_tune_id(), "1", "state", b"")
