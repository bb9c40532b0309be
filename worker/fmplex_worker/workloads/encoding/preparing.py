"""Preparing encode jobs: requests are validated, tokenised in batches and priced. No device, any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fmplex_broker.errors import FmplexError, InvalidInput, TextTooLong
from fmplex_broker.specs.heads import InputSpec, outputs
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.texts import Raw, Text
from fmplex_worker.heads.running import HeadRequest
from fmplex_worker.protocol import OnePass
from fmplex_worker.versions import Version
from fmplex_worker.workloads.encoding import inputs

_MOST_SAID = 500  # characters of an error
_Encode = Callable[[Sequence[Raw], bool], list[Text]]


@dataclass(frozen=True, slots=True, eq=False)
class EncodeJob(OnePass):
    """`protocol.Prepared`: a job that a pass can take. `texts`: one, or both sides of a similarity."""

    version: Version
    texts: tuple[Text, ...]
    head_request: HeadRequest
    units: int

    @property
    def digest(self) -> str:
        """Digest of its version."""
        return self.version.digest

    @property
    def adapter(self) -> int:
        """Number of its adapter segment; see `Prepared.adapter`."""
        return self.version.segment

    @property
    def head(self) -> int:
        """Number of its head; of several heads the first: they come together or not at all."""
        return next(iter(self.version.heads.values())).number


@dataclass(slots=True)
class _ValidatedRequest:
    """A validated job; `sides` become `Text`s, or the error of one, as they are tokenised. `room`: the most tokens of each, cut
    if `truncate`; `raw`: what the caller sent, if spans must be found in it."""

    version: Version
    options: inputs.Options
    room: int
    truncate: bool
    sides: list[inputs.Side | FmplexError]
    raw: str | None


class EncodePreparer:
    """Turns batches of requests into jobs for one backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self._tokenizer = backbone.tokenizer
        self._max_tokens = backbone.max_tokens
        table = backbone.embeddings
        self._limits = inputs.InputLimits(backbone.hidden, table.embedding_dim, table.num_embeddings)

    def prepare(self, batch: Sequence[tuple[Version, Request]]) -> list[EncodeJob | FmplexError]:
        """Validate and tokenise requests. Aligned with `batch`; see `protocol.Engine.prepare` for the errors.

        A text that is too long is cut at its end, after the vFM's template was put around it.
        """
        validated = [self._validate(version, request) for version, request in batch]
        for tagging in (False, True):  # only tagging pays for offsets
            self._tokenize(
                [d for d in validated if isinstance(d, _ValidatedRequest) and (d.raw is not None) is tagging], tagging
            )
        return [self._finish(d) if isinstance(d, _ValidatedRequest) else d for d in validated]

    def _validate(self, version: Version, request: Request) -> _ValidatedRequest | FmplexError:
        kinds, around = version.kinds, version.input
        try:
            options = inputs.read_options(request.params, kinds, replace(self._limits, hidden=self._vector(version)))
            sides = inputs.read_input(request.input, kinds, self._limits)
        except InvalidInput as e:
            return e
        raw = sides[0] if "tagging" in kinds and isinstance(sides[0], str) else None
        room = min(self._max_tokens - version.virtual, around.max_tokens or self._max_tokens)
        truncate = around.truncate if options.truncate is None else options.truncate
        made = _ValidatedRequest(version, options, room, truncate, [*templated(around, sides)], raw)
        if options.special:
            made.sides = [self._with_special(side, room if truncate else None) for side in made.sides]
        return made

    def _vector(self, version: Version) -> int:
        """Return the most numbers of an embedding."""
        heads = (head for head in version.heads.values() if head.spec.kind == "embedding")
        return max((outputs(head.spec) for head in heads), default=0) or self._limits.hidden

    def _with_special(self, side: inputs.Side | FmplexError, limit: int | None) -> inputs.Side | FmplexError:
        if not isinstance(side, Text) or side.embeds is not None:
            return side
        return Text.of_ids(self._tokenizer.with_special(side.ids, limit))

    def _tokenize(self, validated: Sequence[_ValidatedRequest], offsets: bool) -> None:
        """Tokenise all texts of all requests in one call; those too long, and allowed to be cut, in another (one for each length
        to which they are cut)."""
        places = [(d, i, side) for d in validated for i, side in enumerate(d.sides) if isinstance(side, str | tuple)]
        if not places:
            return
        raws = self._shorten([(raw, request.truncate) for request, _, raw in places])
        encoded = _each(self._tokenizer.encode, raws, offsets)
        long: dict[int, list[int]] = {}
        for n, (request, _, _) in enumerate(places):
            if request.truncate and _too_long(encoded[n], request.room):
                long.setdefault(request.room, []).append(n)
        for room, at in long.items():
            cut = partial(self._tokenizer.encode_cut, spare=self._max_tokens - room)
            for n, text in zip(at, _each(cut, [raws[n] for n in at], offsets), strict=True):
                encoded[n] = text
        for (request, i, _), text in zip(places, encoded, strict=True):
            request.sides[i] = text

    def _shorten(self, raws: Sequence[tuple[Raw, bool]]) -> list[Raw]:
        """Return texts, or what is enough of those that are too long; with each comes whether it is to be cut. Of a pair that is
        to be cut the longer text loses more, so both have to be whole."""
        sides = [_sides(raw, cut) for raw, cut in raws]
        try:
            short = iter(self._tokenizer.shorten([text for texts in sides for text in texts], self._max_tokens))
        except Exception:  # of which text, encoding them says
            return [raw for raw, _ in raws]
        taken = [tuple(next(short) for _ in texts) for texts in sides]
        return [
            raw if not texts else texts[0] if isinstance(raw, str) else (texts[0], texts[1])
            for (raw, _), texts in zip(raws, taken, strict=True)
        ]

    def _finish(self, request: _ValidatedRequest) -> EncodeJob | FmplexError:
        version, options = request.version, request.options
        texts: list[Text] = []
        for side in request.sides:
            if isinstance(side, FmplexError):
                return side
            assert isinstance(side, Text)
            text = side.cut(request.room) if request.truncate else side
            if _too_long(text, request.room):
                return self._text_too_long(text.tokens, version)
            if not text.tokens or int(text.ids.max()) >= self._limits.vocabulary:
                return InvalidInput("input: gives no tokens that this model knows; send another text", field="input")
            texts.append(text)
        wanted = HeadRequest(version.heads, options.dimensions, options.top_k)
        if request.raw is not None:
            offsets = within(texts[0].offsets, version.input.lead, len(request.raw))
            wanted = wanted._replace(text=request.raw, offsets=offsets)
        return EncodeJob(version, tuple(texts), wanted, sum(text.tokens + version.virtual for text in texts))

    def _text_too_long(self, tokens: int, version: Version) -> TextTooLong:
        virtual, most = version.virtual, version.input.max_tokens or self._max_tokens
        prompt = f" and {virtual} of this vFM's prompt" if virtual else ""
        more = "at least " if tokens > 2 * self._max_tokens else ""  # so much of it was looked at
        return TextTooLong.over(
            min(self._max_tokens, most),
            f'the input has {more}{tokens} tokens{prompt}; shorten it, or send the parameter "truncate": true',
            field="input",
        )


def templated(spec: InputSpec, sides: Sequence[inputs.Side]) -> Iterator[inputs.Side]:
    """Yield texts with the vFM's templates around them; tokens and embeddings as they are."""
    for i, side in enumerate(sides):
        if isinstance(side, str):
            yield spec.text_pair(side) if i else spec.text(side)
        elif isinstance(side, tuple):
            yield spec.text(side[0]), spec.text_pair(side[1])
        else:
            yield side


def _too_long(text: Text | FmplexError, room: int) -> bool:
    return isinstance(text, Text) and text.tokens > room


def _sides(raw: Raw, cut: bool) -> tuple[str, ...]:
    """Return the texts of which a beginning may be enough."""
    if isinstance(raw, str):
        return (raw,)
    return () if cut else raw


def within(offsets: NDArray[np.int64] | None, lead: int, length: int) -> NDArray[np.int64]:
    """Turn offsets in a templated text into offsets in the caller's, which has `length` characters after `lead` others.

    What lies outside becomes empty, as special tokens are; what reaches over an end stops there.
    """
    assert offsets is not None
    special = offsets[:, :1] == offsets[:, 1:]
    moved: NDArray[np.int64] = np.where(special, 0, (offsets - lead).clip(0, length))
    return moved


def _each(encode: _Encode, raws: Sequence[Raw], offsets: bool) -> list[Text | FmplexError]:
    """Encode all texts at once; if the tokenizer trips over one, one by one, so that only that one fails."""
    try:
        return list(encode(raws, offsets))
    except Exception as e:  # the tokenizers library raises bare Exception
        if len(raws) == 1:
            return [InvalidInput(f"input: the tokenizer cannot take it ({str(e)[:_MOST_SAID]})", field="input")]
        return [result for raw in raws for result in _each(encode, [raw], offsets)]
