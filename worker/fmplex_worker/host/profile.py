"""A short profile at start: warms the device up and gives the cost model its first idea."""

from __future__ import annotations

from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.protocol import Engine, Work
from fmplex_worker.scheduling import CostModel

_FILLS = (0.02, 0.1, 0.25, 0.5, 1.0)  # of a full pass


def profile(engine: Engine, pass_units: int) -> CostModel:
    """Run passes of the bare backbone from nearly empty to full. Takes the time of three full passes."""
    cost = CostModel(pass_units)
    version = engine.fit(bare(VfmSpec(name="profile", backbone=engine.info.name, head=Embedding())))
    engine.load(version)
    try:
        # What is initialised lazily is paid for before anything is measured: on a CPU that depends little on the size.
        for fill in _FILLS[:3] if engine.info.device == "cpu" else _FILLS:
            _pass(engine, version.digest, max(1, int(fill * pass_units)))
        # A full pass takes as long as all the others: it is measured once, and these twice.
        for fill in (*_FILLS, *_FILLS[:-1]):
            units, seconds = _pass(engine, version.digest, max(1, int(fill * pass_units)))
            if units:
                cost.observe(units, 0, 0, seconds)
    finally:
        engine.unload(version.digest)
    return cost


def _pass(engine: Engine, version: str, units: int) -> tuple[int, float]:
    length = min(32, engine.info.max_tokens)
    request = Request("a " * length, {"truncate": True})
    prepared = engine.prepare([(version, request)] * max(1, units // length))
    good = [p for p in prepared if not isinstance(p, FmplexError)]
    return sum(p.units for p in good), engine.step([Work(p, p.units) for p in good]).seconds
