"""Tuning jobs as values: what can be ordered, ids, which checkpoints are kept, and how they are shown."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.files import new_file_id
from fmplex_broker.specs.fleet import FleetSpec
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.tune_records import FIELDS, STATUSES, Checkpoint, TuneRecord, kept
from fmplex_broker.specs.tuning import (
    TuneFit,
    TunePlace,
    TuneSpec,
    checkpoint_id,
    is_tune_id,
    new_tune_id,
    oldest_tune_id,
    split_checkpoint_id,
)


def spec(**more: Any) -> TuneSpec:
    given = {
        "id": new_tune_id(), "owner": "me", "backbone": "minilm", "model": "minilm", "training_file": new_file_id(),
        "publish": {"how": "as", "vfm": "new"},
    }  # fmt: skip
    return parse(TuneSpec, given | more)


@pytest.mark.parametrize(
    "more",
    [
        {"id": "ftjob-1"},
        {"training_file": "file-1"},
        {"publish": {"how": "as"}},
        {"publish": {"how": "none", "vfm": "new"}},
        {"hyperparameters": {"n_epochs": 0}},
        {"hyperparameters": {"batch_size": "many"}},
        {"hyperparameters": {"learning_rate_multiplier": 0}},
        {"fit": {"head": "features"}},
        {"fit": {"learning_rat": 1}},
        {"seed": -1},
        {"weight": 0},
        {"suffix": "x" * 65},
        {"metadata": {"k": 1}},
    ],
)
def test_what_cannot_be_ordered(more: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(more))):
        spec(**more)


def test_ids_sort_by_time_and_checkpoints_say_whose_they_are() -> None:
    before = time.time()
    ids = []
    for _ in range(3):
        ids.append(new_tune_id())
        time.sleep(0.002)
    assert sorted(ids) == ids
    assert all(is_tune_id(one) and len(one) == 30 for one in ids)
    assert oldest_tune_id(before) <= ids[0] < oldest_tune_id(time.time() + 1)
    assert split_checkpoint_id(checkpoint_id(ids[0], 12)) == (ids[0], 12)
    for wrong in ("", ids[0], "ftckpt-", "ftckpt-" + "g" * 32, "new@" + checkpoint_id(ids[0], 1)):
        assert split_checkpoint_id(wrong) is None


def test_what_reads_the_same_is_the_same_place() -> None:
    place = TunePlace(hosted="ab12", device="cpu", threads=2)
    others = [place.model_copy(update=one) for one in ({"hosted": "ab13"}, {"device": "cuda"}, {"threads": 1})]
    assert len({place.fingerprint, *(other.fingerprint for other in others)}) == 4


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=12))
def test_the_best_and_the_last_two_are_kept(made: list[tuple[int, bool]]) -> None:
    everything = [Checkpoint(step=step, name=str(i), created_at=1, best=best) for i, (step, best) in enumerate(made)]
    now: tuple[Checkpoint, ...] = ()
    for one in everything:
        now = kept([*now, one])
        assert kept(now) == now, "they stay"
    steps = [one.step for one in now]
    assert steps == sorted(set(steps))
    assert len(now) <= 3
    if everything:
        assert max(step for step, _ in made) == steps[-1]
    if steps == sorted(steps) and [s for s, _ in made] == sorted({s for s, _ in made}):
        assert steps[-2:] == [s for s, _ in made][-2:]
        assert [s for s, best in made if best][-1:] == [one.step for one in now if one.best][-1:]


def test_a_record_of_which_nothing_has_come_yet() -> None:
    raw = {"spec": spec().model_dump_json().encode(), "status": b"validating_files", "created_at": b"1"}
    shown = TuneRecord.parse({**dict.fromkeys(FIELDS), **raw}).shown()
    assert (shown["object"], shown["status"], shown["created_at"]) == ("fine_tuning.job", "validating_files", 1)
    for name in (
        "fine_tuned_model",
        "finished_at",
        "error",
        "trained_tokens",
        "validation_file",
        "estimated_finish",
        "metadata",
    ):
        assert shown[name] is None
    assert shown["hyperparameters"] == dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    assert shown["result_files"] == []
    assert "owner" not in json.dumps(shown)


@pytest.mark.parametrize("status", STATUSES)
def test_only_who_runs_gets_something_now(status: str) -> None:
    now = {"step": 4, "steps": 9, "tokens": 40, "tokens_s": 10.0, "share": 0.5, "finish_at": 99}
    raw = {
        "spec": spec().model_dump_json().encode(),
        "status": status.encode(),
        "created_at": b"1",
        "progress": json.dumps(now).encode(),
    }
    shown = TuneRecord.parse({**dict.fromkeys(FIELDS), **raw}).shown()
    seen = (shown["progress"]["tokens_s"], shown["progress"]["share"], shown["estimated_finish"])
    assert seen == ((10.0, 0.5, 99) if status == "running" else (None, None, None))
    assert shown["progress"]["step"] == 4


def test_an_infinite_rate_is_refused() -> None:
    """JSON would make nothing of it, and the default would be taken."""
    for fit in ('{"learning_rate": 1e999}', '{"lora": {"alpha": 1e999}}'):
        with pytest.raises(ValueError, match="less than or equal"):
            TuneFit.model_validate_json(fit)


def test_a_record_as_it_was_written() -> None:
    error = {"code": "job_failed", "message": "no", "param": None}
    checkpoint = Checkpoint(step=3, name="3", created_at=2, best=True, loss=0.5, tokens=30)
    raw = {
        "spec": spec(weight=2.0, suffix="mine").model_dump_json().encode(), "status": b"failed", "created_at": b"1",
        "finished_at": b"9", "attempts": b"2", "deaths": b"1", "worker": b"", "error": json.dumps(error).encode(),
        "progress": b'{"step": 4, "tokens": 40}', "checkpoints": json.dumps([checkpoint.model_dump()]).encode(),
    }  # fmt: skip
    record = TuneRecord.parse({**dict.fromkeys(FIELDS), **raw})
    assert (record.last, record.ended, record.worker, record.attempts) == (checkpoint, True, None, 2)
    shown = record.shown()
    assert (shown["error"], shown["trained_tokens"], shown["finished_at"], shown["weight"]) == (error, 40, 9, 2.0)
    assert checkpoint.shown(record.spec.id)["metrics"] == {"step": 3, "train_loss": 0.5}


@pytest.mark.parametrize(
    "wrong", [{"spend": 1.5}, {"idle_share": -0.1}, {"unit_ms": 0}, {"trickle": 1.0}, {"bytes": 1}, {"byte": 1}]
)
def test_settings_of_tuning_that_cannot_be(wrong: dict[str, Any]) -> None:
    backbone = {"name": "b", "model": "m"}
    with pytest.raises(InvalidInput, match=rf"worker\.tuning\.{next(iter(wrong))}"):
        parse(FleetSpec, {"backbone": backbone, "worker": {"tuning": wrong}})
    fleet = parse(FleetSpec, {"backbones": [backbone | {"worker": {"tuning": {"enabled": True}}}], "worker": {}})
    tuning = fleet.hosted[0].worker.tuning
    assert (tuning.enabled, tuning.spend, tuning.spend_tokens, tuning.unit_ms, tuning.trickle, tuning.idle_share) == (
        True, 0.5, 0.9, 50.0, 0.02, 0.5,
    )  # fmt: skip
    assert (
        not FleetSpec(backbone=fleet.backbones[0].model_copy(update={"worker": fleet.worker}))
        .hosted[0]
        .worker.tuning.enabled
    )
