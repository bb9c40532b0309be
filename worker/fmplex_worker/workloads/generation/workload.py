"""The generation workload: prompts in pieces, then a token a pass for every sequence, until each has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from fmplex_broker.errors import FmplexError, JobFailed, NonFiniteOutput
from fmplex_broker.specs.heads import Generation
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone, LmHead
from fmplex_worker.backbones.texts import Text
from fmplex_worker.kvcache.pool import KvPool
from fmplex_worker.kvcache.prefix_cache import CachedPrefix, PrefixCache
from fmplex_worker.packed.row import TokenSpan
from fmplex_worker.protocol import Kind, Prepared, Progress, Work
from fmplex_worker.versions import Version
from fmplex_worker.workloads.base import MemoryUse, PassOutput, PassText, PlacedWork, short
from fmplex_worker.workloads.generation.job import GenerationJob, GenerationPreparer
from fmplex_worker.workloads.generation.pricing import pricing_of
from fmplex_worker.workloads.generation.sampling import SampledToken, draw

_LEAST_PART = 8  # tokens of a prompt
_MOST_SAID = 500  # characters of an error


class GenerationWorkload:
    """`fmplex_worker.workloads.base.Workload` of decoders with a language-model head; `kv_bytes` for keys and values.

    A reading is the token that was drawn, a `NonFiniteOutput`, or None for a prompt that is not computed to its end.
    """

    kind: Kind = "generate"
    head_kinds = frozenset({"generation"})

    def __init__(self, backbone: Backbone, lm_head: LmHead, kv_bytes: int) -> None:
        self._backbone = backbone
        self._pool = KvPool(lm_head.kv, backbone.device, kv_bytes)
        self._prefixes = PrefixCache(self._pool)
        self._pricing = pricing_of(backbone, lm_head)
        self._preparer = GenerationPreparer(backbone, lm_head, self._pricing, self._pool.slabs)

    @property
    def memory(self) -> MemoryUse:
        """Bytes of keys and values; see `Workload.memory`."""
        cached = self._prefixes.nbytes
        return MemoryUse(self._pool.budget, self._pool.used - cached, cached)

    def aim(self, units: int) -> None:
        """Cut prompts accordingly; see `Workload.aim`."""
        self._pricing.aim(units)

    def accept(self, version: Version) -> None:
        """Take all memory for keys and values from the system; check the chat template. See `Workload.accept`."""
        self._pool.warm_up()
        self._preparer.check(version)

    def forget(self, digest: str) -> None:
        """Free the cached prefixes of a version; see `Workload.forget`."""
        self._prefixes.forget(digest)

    def prepare(self, batch: Sequence[tuple[Version, Request]]) -> list[Prepared | FmplexError]:
        """Validate and tokenise requests, one by one; see `Workload.prepare`."""
        return [self._preparer.prepare(version, request) for version, request in batch]

    def quick(self, version: Version, request: Request) -> bool:
        """Tell whether the prompt is short, and there is neither a schema to compile nor a template to render in the sandbox; see
        `Workload.quick`."""
        chat = isinstance(request.input, dict) and "messages" in request.input
        own = any(isinstance(head.spec, Generation) and head.spec.chat_template for head in version.heads.values())
        own = own or "chat_template_kwargs" in request.params
        return "schema" not in request.params and not (chat and own) and short(request.input)

    def lay_out(self, work: Work) -> Sequence[PassText]:
        """Return the next tokens of a sequence, with a slab for their keys and values; see `Workload.lay_out`."""
        job = cast(GenerationJob, work.prepared)
        sequence = job.sequence
        if sequence.slab is None:
            self._allocate(job)
        elif sequence.slab.capacity < sequence.length:
            sequence.slab = self._pool.grow(sequence.slab, sequence.length, sequence.computed)
            if sequence.prefix is not None:
                sequence.prefix.slab = sequence.slab
        first = max(sequence.computed - sequence.virtual, 0)
        end = sequence.reach(work.tokens) - sequence.virtual
        ids = np.array(sequence.tokens[first:end], dtype=np.int64)
        return (PassText(Text.of_ids(ids), TokenSpan(len(ids), job.version.adapter, sequence.computed, sequence.slab)),)

    def read(self, output: PassOutput, placed: Sequence[PlacedWork]) -> list[Any]:
        """Draw a token for every sequence that the pass computed to its end; see `Workload.read`."""
        readings: list[SampledToken | NonFiniteOutput | None] = [None] * len(placed)
        sequences = [cast(GenerationJob, work.prepared).sequence for work, _ in placed]
        ready = [i for i, s in enumerate(sequences) if s.reach(placed[i].work.tokens) == s.length]
        if not ready:
            return readings
        ready.sort(key=lambda i: placed[i].places[0])  # in packed order, so that those of an adapter are neighbours
        places = [placed[i].places[0] for i in ready]
        row = output.row
        ends = [row.starts[at] + row.lengths[at] - 1 for at in places]
        logits = self._backbone.logits(output.hidden[ends], [row.adapters[at] for at in places])
        for i, sampled in zip(ready, draw(logits, [sequences[i].sampler for i in ready]), strict=True):
            readings[i] = _non_finite() if sampled is None else sampled
        return readings

    def commit(self, work: Work, reading: Any) -> Any:
        """Advance a sequence by what the pass computed of it and the token that was drawn; see `Workload.commit`."""
        job = cast(GenerationJob, work.prepared)
        sequence = job.sequence
        if isinstance(reading, NonFiniteOutput):
            # The prefix cache gets what earlier tokens came from, and nothing that may be broken.
            sequence.computed = sequence.computed if sequence.generated else 0
            return reading
        sequence.computed = sequence.reach(work.tokens)
        return Progress(None) if reading is None else self._append(job, reading)

    def halve(self, work: Work) -> Work | None:
        """Return the work with half as many tokens of the prompt, a soft prompt's virtual tokens all at once."""
        sequence = cast(GenerationJob, work.prepared).sequence
        whole = sequence.virtual if sequence.computed < sequence.virtual else 0
        now = min(work.tokens, sequence.left)
        less = max(now // 2, whole + _LEAST_PART)
        return work._replace(tokens=less) if less < now else None

    def drop(self, prepared: Prepared) -> None:
        """Leave the slab of a job to the prefix cache, for whoever comes with the same beginning; see `Workload.drop`."""
        job = cast(GenerationJob, prepared)
        sequence = job.sequence
        if sequence.slab is None:
            return
        prefix = sequence.prefix or CachedPrefix(job.scope, sequence.slab)
        self._prefixes.store(prefix, sequence.tokens[: max(sequence.computed - sequence.virtual, 0)])
        sequence.slab, sequence.prefix, sequence.computed = None, None, 0

    def _allocate(self, job: GenerationJob) -> None:
        """Give a sequence a slab, with what others have computed of the same prompt."""
        sequence = job.sequence
        sequence.slab, found = self._prefixes.allocate(job.scope, sequence.tokens, sequence.virtual)
        sequence.computed = sequence.virtual + found if found else 0
        if found and not sequence.generated:
            sequence.cached = min(found, sequence.prompt)

    def _append(self, job: GenerationJob, sampled: SampledToken) -> Any:
        """Append a token to a sequence whose prompt is computed; return the result of its job."""
        sequence = job.sequence
        if sequence.prefix is None and sequence.slab is not None:
            sequence.prefix = self._prefixes.publish(job.scope, sequence.tokens[: sequence.prompt], sequence.slab)
        try:
            sequence.append(sampled)
        except FmplexError as e:
            return e
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # a tokenizer or a grammar, whose panic is no Exception: nobody else's misfortune
            return JobFailed(f"the text could not go on ({type(e).__name__}: {e})"[:_MOST_SAID])
        if not sequence.finish:
            return Progress(sequence.take_delta())
        self.drop(job)
        return sequence.output()


def _non_finite() -> NonFiniteOutput:
    return NonFiniteOutput("the model's output for this input is NaN or infinite; check the input and the adapter")
