"""From a body to its answer: the same for a call that somebody waits for, and for a line of a batch."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fmplex_broker.errors import Busy, Cancelled, FmplexError, InvalidInput, PackageRejected, Unavailable
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.streams.catalog import unknown_vfm
from fmplex_broker.streams.producer import StoredReply
from fmplex_broker.streams.queue_client import QueueClient, gather_replies, raise_first_error
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Reply
from fmplex_broker.wire.tensors import Tensor
from fmplex_gateway.access import Principal
from fmplex_gateway.dialect import callers_words
from fmplex_gateway.generation.bodies import ChatBody, CompletionBody, TextBody
from fmplex_gateway.generation.shapes import ChatShape, CompletionShape, Shape, envelope, usage
from fmplex_gateway.generation.text_calls import TextCall, translated_errors
from fmplex_gateway.kinds import require_kind
from fmplex_gateway.parsing import validate
from fmplex_gateway.schemas import EmbeddingsBody, InferBody, as_inputs

EMBEDDINGS, CHAT, COMPLETIONS = "/v1/embeddings", "/v1/chat/completions", "/v1/completions"
INFER = "/v1/vfms/{name}/infer"
ENDPOINTS = (EMBEDDINGS, CHAT, COMPLETIONS, INFER)
_INFER = re.compile(r"/v1/vfms/([A-Za-z0-9._-]{1,128})/infer")


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, and how the jobs are to run: in which class, within how many ms (None: as the vFM says), and under which name
    they are known to whoever asks for them again (None: nobody does). `taken` is called once they wait in their queue."""

    principal: Principal
    cls: str = INTERACTIVE
    timeout_ms: float | None = None
    idempotency_key: str | None = None
    taken: Callable[[], None] | None = None


class Answer(NamedTuple):
    """An answer: the `body` that its endpoint has for it (tensors in it as `wire.dump` writes them), the `version` that gave it,
    and where the replies of its jobs are stored."""

    body: dict[str, Any]
    version: str
    jobs: list[StoredReply]


def vfm_of(url: str) -> str | None:
    """Return the vFM that an infer URL names, None for any other URL."""
    found = _INFER.fullmatch(url)
    return found[1] if found else None


def may_pass(error: FmplexError) -> bool:
    """Tell whether what keeps a call from being answered may pass by itself: whoever has time asks again, after `retry_after`."""
    return isinstance(error, Busy | Unavailable | Cancelled)


async def answer(queue: QueueClient, url: str, body: dict[str, Any], asking: Asking) -> Answer:
    """Answer a decoded body as the endpoint at `url` does, never in parts.

    Raises what `embed`, `generate` and `infer` raise, and `InvalidInput` naming the field for what the endpoint does not take.
    """
    if url == EMBEDDINGS:
        return await embed(queue, validate(EmbeddingsBody, body), asking)
    if url == CHAT:
        return await generate(queue, validate(ChatBody, body), ChatShape(), asking)
    if url == COMPLETIONS:
        return await generate(queue, validate(CompletionBody, body), CompletionShape(), asking)
    if (name := vfm_of(url)) is None:
        raise InvalidInput(f"nothing is answered at {url[:128]!r}, but at {', '.join(ENDPOINTS)}", field="url")
    return await infer(queue, name, validate(InferBody, body), asking)


async def embed(queue: QueueClient, body: EmbeddingsBody, asking: Asking) -> Answer:
    """Embed texts, as OpenAI does. Raises the first error among the replies, what `QueueClient.submit` raises, `InvalidInput` for
    a vFM of another kind, and `UnknownVfm` for one that who asks may not use."""
    vfm = (await _usable(queue, body.model, asking)).spec
    require_kind(vfm, "embedding")
    params = body.params(vfm)
    with callers_words(_embeddings_field):
        replies, jobs = await _replies(queue, asking, body.model, as_inputs(body.input), params)
        raise_first_error(replies)
    tokens = sum(reply.units for reply in replies)
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(reply.output["embedding"], body.encoding_format)}
        for i, reply in enumerate(replies)
    ]
    use = {"prompt_tokens": tokens, "total_tokens": tokens}
    around = {"object": "list", "model": body.model, "usage": use}
    return Answer(around | {"data": data}, replies[0].version, jobs)


def _embeddings_field(path: Sequence[str]) -> Sequence[str]:
    """Return the path in the caller's body of a path in the job."""
    match path:
        case ["params", *rest]:
            return rest
        case ["inputs", *rest]:
            return ["input", *rest[:1]]
    return path


def _vector(tensor: Tensor, encoding: str) -> Any:
    return base64.b64encode(tensor.data).decode() if encoding == "base64" else tensor.tolist()


async def generate(queue: QueueClient, body: TextBody, shape: Shape, asking: Asking) -> Answer:
    """Answer a chat or complete prompts, as OpenAI does. Raises as `embed` does."""
    await writer(queue, body, asking)
    with translated_errors(body):
        call = TextCall.of(body)
        replies, jobs = await _replies(queue, asking, call.vfm, call.inputs, call.params, call.n)
        outputs = [call.check(at, reply).output for at, reply in enumerate(replies)]
    choices = [shape.choice(at, output) for at, output in enumerate(outputs)]
    around = envelope(shape, body.model, replies[0].version, part=False)
    return Answer(around | {"choices": choices, "usage": usage(outputs, call.n)}, replies[0].version, jobs)


async def writer(queue: QueueClient, body: TextBody, asking: Asking) -> VfmStatus:
    """Return the vFM that is to write a text. Raises `UnknownVfm`, and `InvalidInput` for one that generates none."""
    status = await _usable(queue, body.model, asking)
    require_kind(status.spec, "generation")
    return status


async def infer(queue: QueueClient, name: str, body: InferBody, asking: Asking) -> Answer:
    """Run every input through the vFM. What `body` says of time and repetition holds where `asking` says nothing. Raises as
    `embed` does."""
    await _usable(queue, name, asking)
    replies, jobs = await _replies(queue, _completed(asking, body), name, body.inputs, body.params)
    raise_first_error(replies)
    return Answer(infer_body(name, replies), replies[0].version, jobs)


def infer_body(name: str, replies: Sequence[Reply]) -> dict[str, Any]:
    """Return the body of an answer: the outputs in the order of the inputs, and for each of them a run: which version it was, its
    units and times."""
    around = {"vfm": name, "version": replies[0].version, "usage": {"units": sum(reply.units for reply in replies)}}
    return around | {"runs": [_run(reply) for reply in replies], "outputs": [reply.output for reply in replies]}


def _run(reply: Reply) -> dict[str, Any]:
    return {
        "version": reply.version,
        "units": reply.units,
        "queue_ms": reply.queue_ms,
        "run_ms": reply.run_ms,
        "load_ms": reply.load_ms,
    }


def _completed(asking: Asking, body: InferBody) -> Asking:
    """Return how jobs are to run, with what a body says of it."""
    if body.idempotency_key is not None:
        if asking.idempotency_key is not None:
            raise InvalidInput("a batch names its jobs by itself; leave it out", field="idempotency_key")
        asking = replace(asking, idempotency_key=body.idempotency_key)
    if body.timeout_ms is not None:
        most = body.timeout_ms if asking.timeout_ms is None else asking.timeout_ms
        asking = replace(
            asking, timeout_ms=min(body.timeout_ms, most)
        )  # in this order: what is no number is refused later
    return asking


async def _usable(queue: QueueClient, vfm: str, asking: Asking) -> VfmStatus:
    """Return a vFM that who asks may use. Raises `UnknownVfm`, whether or not there is one; offline also `PackageRejected` for
    one that has nothing to serve, for which it makes no sense to wait."""
    if not asking.principal.may_use(vfm):
        raise unknown_vfm(vfm)
    status = await queue.vfm(vfm)
    if asking.cls == OFFLINE and status.known is None:
        raise PackageRejected(f"vFM {vfm!r} has no accepted version; deploy one")
    return status


async def _replies(
    queue: QueueClient, asking: Asking, vfm: str, inputs: Sequence[Any], params: dict[str, Any], n: int = 1
) -> tuple[list[Reply], list[StoredReply]]:
    """Run jobs; return their replies, and where these are stored. If it is cancelled, so are the jobs."""
    pending = await queue.submit(
        vfm,
        inputs,
        params,
        cls=asking.cls,
        timeout_ms=asking.timeout_ms,
        idempotency_key=asking.idempotency_key,
        n=n,
    )
    if asking.taken is not None:
        asking.taken()
    replies = await gather_replies(pending)
    if asking.cls == OFFLINE:
        # Whoever asks again must not be given the same refusal.
        passing = [p.stored for p, reply in zip(pending, replies, strict=True) if reply.error and may_pass(reply.error)]
        await queue.forget_results(passing)
    return replies, [p.stored for p in pending]
