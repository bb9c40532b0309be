"""Workers of a tiny BERT that tune, and that die, or stand still, where a test says; each a process of its own.

They are forked from one process that has loaded the backbone, for loading takes longer than what is tested: `Nursery` starts it,
and this module, run as a program, is it. Where they die, files in one folder say (`Points`).
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.specs.fleet import BackboneSpec, TuningSpec, WorkerSpec
from fmplex_broker.streams.tune_owner import TuneOwner
from fmplex_worker.host import training as training_task
from fmplex_worker.host import tune_checkpoints, tune_course
from fmplex_worker.host.service import Worker
from fmplex_worker.host.tune_publishing import Publisher
from fmplex_worker.training import MemoryNeed, RunProgress, Snapshot, Training, TuneOrder, Unit

NAME = "tiny"
STILL = "hold"  # the units of a training stand still from a step on
OPENING = "opening"  # what opens a training stands still
DEADLY = "deadly"  # every process aborts that runs a unit of a training
_LOOK_S = 0.002


class Points:
    """Files that say what happens where; what they hold is a step, from which on that is so.

    Of the name of a unit's kind (`backward`), or of a place: `state`, `package` (of a checkpoint, once it is written, before the
    broker knows), `put` (in the store, not offered), `offered`, `finished`: the first process that comes by takes it away and is
    killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def set(self, name: str, step: int = 0) -> None:
        """Make a point, or move it."""
        written = self._folder / f".{name}"
        written.write_text(str(step))
        written.rename(self._folder / name)

    def clear(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def clear_all(self) -> None:
        for path in self._folder.iterdir():
            path.unlink()

    def at(self, name: str, step: int = 0) -> bool:
        """Whether a point is there, and this step is one of its."""
        try:
            return step >= int((self._folder / name).read_text())
        except FileNotFoundError:
            return False

    def stand_still(self, name: str, step: int = 0) -> None:
        while self.at(name, step):
            time.sleep(_LOOK_S)

    def die(self, name: str, step: int = 0) -> None:
        """End this process, if that is said here."""
        if self.at(name, step):
            with suppress(FileNotFoundError):  # another one has died of it
                (self._folder / name).unlink()
                os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """A training of which units can kill."""

    def __init__(self, run: Training, points: Points) -> None:
        self._run, self._points = run, points

    def next(self) -> Unit | None:
        unit = self._run.next()
        return None if unit is None else unit._replace(run=functools.partial(self._go, unit))

    def _go(self, unit: Unit) -> None:
        step = self._run.progress.step
        self._points.stand_still(STILL, step)
        if self._points.at(DEADLY):
            os.abort()
        self._points.die(unit.kind, step)
        unit.run()

    @property
    def progress(self) -> RunProgress:
        return self._run.progress

    @property
    def needs(self) -> MemoryNeed:
        return self._run.needs

    @property
    def holds(self) -> int:
        return self._run.holds

    def limit(self, nbytes: int) -> None:
        self._run.limit(nbytes)

    @property
    def checkpoint_due(self) -> bool:
        return self._run.checkpoint_due

    def snapshot(self) -> Snapshot:
        return self._run.snapshot()

    def package(self) -> dict[str, bytes]:
        return self._run.package()


def _after(owner: type, call: str, name: Callable[..., str], points: Points) -> None:
    """Let a process die at a point once it has called a method."""
    real = getattr(owner, call)

    @functools.wraps(real)
    async def told(*args: Any, **kwargs: Any) -> Any:
        answer = await real(*args, **kwargs)
        points.die(name(*args, **kwargs))
        return answer

    @functools.wraps(real)
    def written(*args: Any, **kwargs: Any) -> Any:
        answer = real(*args, **kwargs)
        points.die(name(*args, **kwargs))
        return answer

    setattr(owner, call, told if asyncio.iscoroutinefunction(real) else written)


def _install(points: Points) -> None:
    _after(CheckpointStore, "put", lambda _self, _job, _name, part, _data: str(part), points)
    _after(ArtifactStore, "put", lambda *_: "put", points)
    _after(Publisher, "publish", lambda *_: "offered", points)
    _after(TuneOwner, "finish", lambda *_, **__: "finished", points)
    for module, name in ((tune_course, "SAVE_S"), (tune_course, "_AGAIN_S"), (training_task, "_CLAIM_S")):
        setattr(module, name, 0.1)
    setattr(tune_checkpoints, "_LEAST_S", 0.05)  # noqa: B010


def _backbone(model: str, lease_ms: int) -> BackboneSpec:
    tuning = TuningSpec(enabled=True)
    worker = WorkerSpec(device="cpu", threads=1, lease_ms=lease_ms, drain_s=30, tuning=tuning)
    return BackboneSpec(name=NAME, model=model, pass_units=256, worker=worker)


def _nurse(model: str, points: Points, lease_ms: int) -> None:
    """Load the backbone, and fork a worker for each line of standard input: where its broker, its store and its log are."""
    import torch

    from fmplex_worker.backbones.backbone import Backbone
    from fmplex_worker.engine.opening import open_engine
    from fmplex_worker.host.profile import profile
    from fmplex_worker.tuning.opening import open_run

    def trained(order: TuneOrder, hosted: Backbone, state: bytes | None) -> Mortal:
        points.stand_still(OPENING)
        return Mortal(open_run(order, hosted, state), points)

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _install(points)
    backbone = _backbone(model, lease_ms)
    engine = open_engine(backbone, backbone.worker, trained)
    cost = profile(engine, backbone.pass_units)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who has died is gone at once
    print("ready", flush=True)
    for line in sys.stdin:
        said = json.loads(line)
        if (pid := os.fork()) == 0:
            try:
                _log_to(said["log"])
                store = ArtifactStore(said["store"])
                asyncio.run(_serve(Worker(said["broker"], backbone, backbone.worker, engine, store, cost)))
            except BaseException:
                logging.exception("the worker ends")
            finally:
                os._exit(0)
        print(pid, flush=True)


def _log_to(path: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


async def _serve(worker: Worker) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


class Nursery:
    """The process that forks workers. Use as a context manager."""

    def __init__(self, model: Path, points: Path, lease_ms: int) -> None:
        command = [sys.executable, "-m", "tests.support.mortal", str(model), str(points), str(lease_ms)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._ready = False

    def fork(self, broker: str, store: Path, log: Path) -> int:
        """Start a worker; return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._ready:
            self._ready = self._process.stdout.readline() == "ready\n"
            assert self._ready, "it has not loaded the backbone"
        said = json.dumps({"broker": broker, "store": str(store), "log": str(log)})
        print(said, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    _nurse(sys.argv[1], Points(Path(sys.argv[2])), int(sys.argv[3]))
