"""From what a caller sent to what a pass takes: validated, tokenised in batches, priced. No device, any thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fmplex_broker.errors import FmplexError, InvalidInput, TextTooLong, VfmClosed
from fmplex_broker.messages import Request
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.texts import Raw, Text
from fmplex_worker.engines import inputs
from fmplex_worker.engines.versions import Version, Versions
from fmplex_worker.heads.running import Ask

_Encode = Callable[[Sequence[Raw], bool], list[Text]]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """`protocol.Prepared`: a job that a pass can take. `texts`: one, or both sides of a similarity."""

    version: Version
    texts: tuple[Text, ...]
    ask: Ask
    units: int

    @property
    def digest(self) -> str:
        return self.version.digest

    @property
    def adapter(self) -> int:
        return self.version.adapter.number if self.version.adapter is not None else 0

    @property
    def head(self) -> int:
        return self.version.head.number


@dataclass(slots=True)
class _Draft:
    """A validated job; `sides` become `Text`s, or the error of one, as they are tokenised."""

    version: Version
    options: inputs.Options
    sides: list[inputs.Side | FmplexError]
    raw: str

    @property
    def tagging(self) -> bool:
        return self.version.head.spec.kind == "tagging"


class Preparer:
    """Turns batches of requests into jobs for one backbone."""

    def __init__(self, backbone: Backbone, versions: Versions) -> None:
        self._tokenizer = backbone.tokenizer
        self._max_tokens = backbone.max_tokens
        self._versions = versions
        table = backbone.embeddings
        self._limits = inputs.Limits(backbone.hidden, table.embedding_dim, table.num_embeddings)

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Job | FmplexError]:
        """Aligned with `batch`; see `protocol.Engine.prepare` for the errors."""
        drafts = [self._draft(digest, request) for digest, request in batch]
        for tagging in (False, True):  # only tagging pays for offsets
            self._tokenize([d for d in drafts if isinstance(d, _Draft) and d.tagging is tagging], tagging)
        return [self._finish(d) if isinstance(d, _Draft) else d for d in drafts]

    def _draft(self, digest: str, request: Request) -> _Draft | FmplexError:
        version = self._versions.get(digest)
        if version is None:
            return VfmClosed(f"version {digest} is not loaded here; send the request again")
        kind = version.head.spec.kind
        try:
            options = inputs.read_options(request.params, kind, self._limits)
            sides = inputs.read_input(request.input, kind, self._limits)
        except InvalidInput as e:
            return e
        raw = sides[0] if kind == "tagging" and isinstance(sides[0], str) else ""
        return _Draft(version, options, list(sides), raw)

    def _tokenize(self, drafts: Sequence[_Draft], offsets: bool) -> None:
        """Every text of every draft in one call; those too long, and allowed to be cut, in another."""
        places = [(d, i, side) for d in drafts for i, side in enumerate(d.sides) if isinstance(side, str | tuple)]
        if not places:
            return
        encoded = _each(self._tokenizer.encode, [raw for _, _, raw in places], offsets)
        long = [n for n, (d, _, _) in enumerate(places) if d.options.truncate and self._too_long(encoded[n])]
        if long:
            cut = _each(self._tokenizer.encode_cut, [places[n][2] for n in long], offsets)
            for n, text in zip(long, cut, strict=True):
                encoded[n] = text
        for (draft, i, _), text in zip(places, encoded, strict=True):
            draft.sides[i] = text

    def _too_long(self, text: Text | FmplexError) -> bool:
        return isinstance(text, Text) and text.tokens > self._max_tokens

    def _finish(self, draft: _Draft) -> Job | FmplexError:
        texts: list[Text] = []
        for side in draft.sides:
            if isinstance(side, FmplexError):
                return side
            assert isinstance(side, Text)
            text = side.cut(self._max_tokens) if draft.options.truncate else side
            if text.tokens > self._max_tokens:
                return TextTooLong(
                    f"the input has {text.tokens} tokens, this model takes {self._max_tokens}; "
                    'shorten it, or send the parameter "truncate": true',
                    field="input",
                )
            if not text.tokens or int(text.ids.max()) >= self._limits.vocabulary:
                return InvalidInput("input: gives no tokens that this model knows; send another text", field="input")
            texts.append(text)
        options = draft.options
        ask = Ask(draft.version.head, options.dimensions, options.top_k, draft.raw, texts[0].offsets)
        return Job(draft.version, tuple(texts), ask, sum(text.tokens for text in texts))


def _each(encode: _Encode, raws: Sequence[Raw], offsets: bool) -> list[Text | FmplexError]:
    """All texts at once; if the tokenizer trips over one, one by one, so that only that one fails."""
    try:
        return list(encode(raws, offsets))
    except Exception as e:  # the tokenizers library raises bare Exception
        if len(raws) == 1:
            return [InvalidInput(f"input: the tokenizer cannot take it ({e})", field="input")]
        return [result for raw in raws for result in _each(encode, [raw], offsets)]
