"""A failed pass costs the vFM that broke it, and nobody beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fmplex_broker.errors import JobFailed
from fmplex_broker.specs import heads as specs
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.isolation import run_isolated
from fmplex_worker.heads.loading import Layer, LoadedHead
from tests.support import tiny

pytestmark = pytest.mark.broken_pass


@dataclasses.dataclass(frozen=True)
class EncodeJob:
    digest: str
    tokens: int
    name: int = 0


def jobs_of(owners: str) -> list[EncodeJob]:
    return [EncodeJob(owner, 10, i) for i, owner in enumerate(owners)]


class Passes:
    """A pass that fails when it holds a vFM of `bad`, or more units than `memory`; remembers what it was given."""

    def __init__(self, bad: str = "", memory: int = 10**9, oom: type[Exception] = torch.OutOfMemoryError) -> None:
        self.bad, self.memory, self.oom = bad, memory, oom
        self.seen: list[str] = []
        self.told: list[int] = []

    def run(self, jobs: Sequence[EncodeJob]) -> list[Any]:
        self.seen.append("".join(job.digest for job in jobs))
        if sum(job.tokens for job in jobs) > self.memory:
            raise self.oom("DefaultCPUAllocator: not enough memory: you tried to allocate")
        if any(job.digest in self.bad for job in jobs):
            raise ValueError("broken head")
        return [job.name for job in jobs]

    def __call__(self, jobs: Sequence[EncodeJob]) -> list[Any]:
        return run_isolated(jobs, self.run, self.told.append)


def test_culprit_is_found() -> None:
    passes = Passes(bad="c")
    results = passes(jobs_of("abcabc"))
    assert [r for r in results if not isinstance(r, JobFailed)] == [0, 1, 3, 4]
    assert isinstance(results[2], JobFailed)
    assert "broken head" in results[5].message
    assert passes.seen == ["abcabc", "aa", "bb", "cc"]


def test_one_vfm_is_not_tried_again() -> None:
    passes = Passes(bad="a")
    assert [type(r) for r in passes(jobs_of("aaa"))] == [JobFailed] * 3
    assert passes.seen == ["aaa"]


@pytest.mark.parametrize("oom", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_halves(oom: type[Exception]) -> None:
    passes = Passes(memory=20, oom=oom)
    assert passes(jobs_of("abcdefg")) == list(range(7))
    assert passes.seen == ["abcdefg", "abc", "a", "bc", "defg", "de", "fg"]
    assert passes.told == [70, 30, 40]


def test_a_job_that_never_fits() -> None:
    results = Passes(memory=5)(jobs_of("ab"))
    assert [type(r) for r in results] == [JobFailed] * 2
    assert "one job of 10 tokens does not fit" in results[0].message


def test_out_of_memory_beside_a_culprit() -> None:
    results = Passes(bad="b", memory=20)(jobs_of("abab"))
    assert results[0::2] == [0, 2]
    assert all(isinstance(r, JobFailed) for r in results[1::2])


def test_a_broken_device_is_raised() -> None:
    def run(jobs: Sequence[EncodeJob]) -> list[Any]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="CUDA error"):
        run_isolated(jobs_of("ab"), run, lambda units: None)


def test_broken_head_in_an_engine(bert: PackedEngine, tmp_path: Path) -> None:
    """A head whose weight is of a wrong shape, as only a bug could make it, among good ones of its own shape."""
    head = specs.Classification(labels=("a", "b"))
    good, other, bad = (tiny.load(bert, head, weights=tiny.head_file(tmp_path / str(i), 2, seed=i)) for i in range(3))
    jobs: list[Any] = bert.prepare([(digest, Request("the cat", {})) for digest in (good, bad, other, good)])
    alone = tiny.step(bert, [jobs[0], jobs[2]])
    broken = LoadedHead(jobs[1].head, head, (Layer(torch.ones(2, 5), torch.ones(2)),))
    jobs[1] = dataclasses.replace(jobs[1], head_request=jobs[1].head_request._replace(heads={"": broken}))
    results = tiny.step(bert, jobs)
    assert isinstance(results[1], JobFailed)
    for i, want in ((0, alone[0]), (2, alone[1]), (3, alone[0])):
        assert results[i]["scores"] == pytest.approx(want["scores"], rel=1e-5)


def test_room_shrinks_and_grows_again(engine_of: Callable[[str], PackedEngine], monkeypatch: Any) -> None:
    engine = engine_of("electra")
    budget = engine.capacity.units
    digest = tiny.load(engine, specs.Embedding())
    jobs: list[Any] = engine.prepare([(digest, Request({"input_ids": ids}, {})) for ids in tiny.ids(30, 30, 30, 30)])
    encode = type(engine._backbone).encode

    def small(self: Any, pack: Any, texts: Any) -> Any:
        if pack.tokens > 60:
            raise torch.OutOfMemoryError
        return encode(self, pack, texts)

    monkeypatch.setattr(type(engine._backbone), "encode", small)
    assert all("embedding" in result for result in tiny.step(engine, jobs))
    assert engine.capacity.units == 60
    for _ in range(40):
        tiny.step(engine, jobs[:1])
    assert engine.capacity.units == budget


def test_an_empty_pass(bert: PackedEngine) -> None:
    assert tiny.step(bert, []) == []
