"""The generator engine: whole texts for heads, pieces of prompts and single tokens of growing texts, in one packed row a pass.

`step` shows the machine: lay out the row, run the backbone, draw a token for every text whose prompt is computed, run the
heads. A pass changes no row before all of it has run, so a pass that failed can run again in parts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from fmplex_broker.errors import FmplexError, JobFailed, NonFiniteOutput
from fmplex_broker.packages.package import Package
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone, LmHead
from fmplex_worker.backbones.texts import Text
from fmplex_worker.engine.isolation import PassUnits, run_isolated
from fmplex_worker.heads.running import run_heads
from fmplex_worker.kvcache.pool import KvPool
from fmplex_worker.kvcache.prefix_cache import Kept, PrefixCache
from fmplex_worker.packed.grouping import group_from
from fmplex_worker.packed.row import TokenSpan, pack, packed_order
from fmplex_worker.protocol import Capacity, EngineInfo, Fitted, Outcome, Prepared, Progress, Work
from fmplex_worker.versions import Version, Versions
from fmplex_worker.workloads.encoding.preparing import EncodeJob, EncodePreparer
from fmplex_worker.workloads.generation.job import GenerationJob, GenerationPreparer
from fmplex_worker.workloads.generation.pricing import pricing_of
from fmplex_worker.workloads.generation.sampling import Drawn, draw
from fmplex_worker.workloads.generation.sequence import TokenSequence

_LEAST_PART = 8  # tokens of a prompt


class _Turn(NamedTuple):
    """A job in a pass, as `run_isolated` wants it."""

    prepared: EncodeJob | GenerationJob
    tokens: int

    @property
    def digest(self) -> str:
        return self.prepared.digest

    @property
    def units(self) -> int:
        return self.tokens

    def half(self) -> _Turn | None:
        """With half as many tokens of its prompt: the others can come in later passes."""
        if isinstance(self.prepared, EncodeJob):
            return None
        row = self.prepared.row
        whole = row.virtual if row.computed < row.virtual else 0  # a soft prompt goes in at once
        now = min(self.tokens, row.left)
        less = max(now // 2, whole + _LEAST_PART)
        return self._replace(tokens=less) if less < now else None


@dataclass(slots=True)
class _Laid:
    """A text of the row: whose turn it is, and for a growing one which of its tokens."""

    turn: int
    text: Text
    owned: TokenSpan
    row: TokenSequence | None = None
    upto: int = 0


class GeneratorEngine:
    """`fmplex_worker.protocol.Engine` for decoders with a language-model head."""

    def __init__(self, backbone: Backbone, kv_bytes: int) -> None:
        assert backbone.lm_head is not None
        self._backbone = backbone
        self._lm_head: LmHead = backbone.lm_head
        self._versions = Versions(backbone)
        self._texts = EncodePreparer(backbone, self._versions)
        self._pool = KvPool(self._lm_head.kv, backbone.device, kv_bytes)
        self.prefixes = PrefixCache(self._pool)
        self._pricing = pricing_of(backbone, self._lm_head)
        self._prompts = GenerationPreparer(backbone, self._lm_head, self._pricing, self._pool.slabs)
        self._group_from = group_from(backbone.device, getattr(torch, backbone.spec.dtype), backbone.hidden)
        self._units = PassUnits(backbone.spec.pass_units, backbone.device)

    @property
    def info(self) -> EngineInfo:
        b = self._backbone
        return EngineInfo(b.spec.name, "text", b.hidden, b.max_tokens, str(b.device), b.memory_bytes)

    @property
    def capacity(self) -> Capacity:
        cached = self.prefixes.nbytes
        return Capacity(self._units.now, self._pool.budget, self._pool.used - cached, cached)

    @property
    def loaded(self) -> Mapping[str, int]:
        return self._versions.sizes()

    @property
    def device_bytes(self) -> int:
        return self._backbone.device_bytes

    def aim(self, units: int) -> None:
        self._pricing.aim(units)

    def fit(self, package: Package) -> Version:
        version = self._versions.fit(package)
        if "generation" in version.kinds:
            self._pool.warm_up()
            self._prompts.expect(version)
        return version

    def load(self, fitted: Fitted) -> None:
        self._versions.load(cast(Version, fitted))

    def unload(self, digest: str) -> None:
        self._versions.unload(digest)
        self.prefixes.forget(digest)

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        out: list[Prepared | FmplexError | None] = [None] * len(batch)
        others: list[int] = []
        for i, (digest, request) in enumerate(batch):
            version = self._versions.get(digest)
            if version is not None and "generation" in version.kinds:
                out[i] = self._prompts.prepare(version, digest, request)
            else:
                others.append(i)
        for i, made in zip(others, self._texts.prepare([batch[i] for i in others]), strict=True):
            out[i] = made
        return cast(list[Prepared | FmplexError], out)

    def drop(self, prepared: Prepared) -> None:
        if isinstance(prepared, GenerationJob):
            self._retire(prepared)

    def step(self, work: Sequence[Work]) -> Outcome:
        begun = time.perf_counter()
        self._units.regrow()
        turns = [_Turn(cast("EncodeJob | GenerationJob", w.prepared), w.tokens) for w in work]
        results = run_isolated(turns, self._run, self._units.halve, _Turn.half) if turns else []
        return Outcome(time.perf_counter() - begun, results)

    # ---- one pass ----

    @torch.inference_mode()
    def _run(self, turns: Sequence[_Turn]) -> list[Any]:
        """Results in the order of `turns`; raises whatever goes wrong."""
        laid = [text for i, turn in enumerate(turns) for text in self._lay(i, turn)]
        order = packed_order([text.owned for text in laid])
        row = pack([laid[at].owned for at in order], self._backbone.device, self._group_from)
        hidden = self._backbone.encode(row, [laid[at].text for at in order])
        place = {at: i for i, at in enumerate(order)}
        growing = [(text, place[at]) for at, text in enumerate(laid) if text.row is not None]
        ready = [at for at, (text, _) in enumerate(growing) if text.row is not None and text.upto == text.row.length]
        ends = [row.starts[growing[at][1]] + row.lengths[growing[at][1]] - 1 for at in ready]
        drawn = self._draw(hidden, ends, [cast(TokenSequence, growing[at][0].row) for at in ready])
        results: list[Any] = [None] * len(turns)
        self._heads(hidden, *row.own(), turns, laid, place, results)
        tokens = dict(zip(ready, drawn, strict=True))
        for at, (text, _) in enumerate(growing):
            job = cast(GenerationJob, turns[text.turn].prepared)
            results[text.turn] = self._advance(job, text.upto, tokens.get(at), at in tokens)
        return results

    def _lay(self, i: int, turn: _Turn) -> list[_Laid]:
        job = turn.prepared
        if isinstance(job, EncodeJob):
            return [_Laid(i, text, TokenSpan(text.tokens, job.version.adapter)) for text in job.texts]
        row = job.row
        if row.slab is None:
            self._seat(job)
        elif row.slab.capacity < row.length:
            row.slab = self._pool.grown(row.slab, row.length, row.computed)
            if row.kept is not None:
                row.kept.slab = row.slab
        upto = min(row.computed + turn.tokens, row.length)
        first = max(row.computed - row.virtual, 0)
        ids = np.array(row.tokens[first : upto - row.virtual], dtype=np.int64)
        owned = TokenSpan(len(ids), job.version.adapter, row.computed, row.slab)
        return [_Laid(i, Text.of_ids(ids), owned, row, upto)]

    def _seat(self, job: GenerationJob) -> None:
        """A slab, with what others have computed of the same prompt."""
        row = job.row
        row.slab, found = self.prefixes.take(job.scope, row.tokens, row.virtual)
        row.computed = row.virtual + found if found else 0
        if found and not row.generated:
            row.cached = min(found, row.prompt)

    def _draw(self, hidden: Tensor, at: Sequence[int], rows: Sequence[TokenSequence]) -> list[Drawn | None]:
        if not rows:
            return []
        return draw(self._lm_head.logits(hidden[list(at)]), [row.sampler for row in rows])

    def _heads(
        self,
        hidden: Tensor,
        starts: Sequence[int],
        lengths: Sequence[int],
        turns: Sequence[_Turn],
        laid: Sequence[_Laid],
        place: Mapping[int, int],
        results: list[Any],
    ) -> None:
        """What the jobs of vFMs with heads get."""
        places: dict[int, tuple[int, ...]] = {}
        for at, text in enumerate(laid):
            if text.row is None:
                places[text.turn] = (*places.get(text.turn, ()), place[at])
        asks = [cast(EncodeJob, turns[i].prepared).ask for i in places]
        for i, result in zip(
            places, run_heads(hidden, starts, lengths, asks, [*places.values()]) if asks else (), strict=True
        ):
            results[i] = result

    def _advance(self, job: GenerationJob, upto: int, drawn: Drawn | None, ready: bool) -> Any:
        """The row goes on; what became of its job."""
        row = job.row
        if ready and drawn is None:
            # The cache of prefixes gets what earlier tokens came from, and nothing that may be broken.
            row.computed = row.computed if row.generated else 0
            return NonFiniteOutput(
                "the model's output for this input is NaN or infinite; check the input and the adapter"
            )
        row.computed = upto
        if drawn is None:
            return Progress(None)
        if row.kept is None and row.slab is not None:
            row.kept = self.prefixes.lend(job.scope, row.tokens[: row.prompt], row.slab)
        try:
            row.take_token(drawn)
        except FmplexError as e:
            return e
        except Exception as e:  # a tokenizer or a grammar: nobody else's misfortune
            return JobFailed(f"the text could not go on ({type(e).__name__}: {e})")
        if not row.finish:
            return Progress(row.news())
        self._retire(job)
        return row.output()

    def _retire(self, job: GenerationJob) -> None:
        """Its slab becomes the cache's, for whoever comes with the same beginning; until a row needs the bytes."""
        row = job.row
        if row.slab is None:
            return
        kept = row.kept or Kept(job.scope, row.slab)
        self.prefixes.keep(kept, row.tokens[: max(row.computed - row.virtual, 0)])
        row.slab, row.kept, row.computed = None, None, 0
