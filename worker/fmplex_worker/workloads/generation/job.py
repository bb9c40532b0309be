"""Jobs of generating vFMs, as the scheduler and a pass see them; and how they are made from requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fmplex_broker.errors import FmplexError, InvalidInput, PackageRejected, TextTooLong
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.sampling import GenerationParams
from fmplex_broker.specs.schema import parse
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone, LmHead
from fmplex_worker.kvcache.pool import KvBudget
from fmplex_worker.kvcache.prefix_cache import Scope
from fmplex_worker.protocol import Kind, Piece
from fmplex_worker.versions import Version
from fmplex_worker.workloads.generation.constraints import Schemas
from fmplex_worker.workloads.generation.detokenizer import Detokenizer, StopMatcher
from fmplex_worker.workloads.generation.pricing import Pricing
from fmplex_worker.workloads.generation.prompts import Prompts
from fmplex_worker.workloads.generation.sampling import Sampler
from fmplex_worker.workloads.generation.sandbox import Refused, Sandbox
from fmplex_worker.workloads.generation.sandboxes import Sandboxes
from fmplex_worker.workloads.generation.sequence import TokenSequence
from fmplex_worker.workloads.generation.token_bytes import TokenBytes

_MOST_SAID = 500  # characters of an error


@dataclass(slots=True, eq=False)
class GenerationJob:
    """`protocol.Prepared`. It asks for its prompt in pieces, a pass's worth at a time, and then for one token a pass."""

    version: Version
    vfm: str
    sequence: TokenSequence
    kv: KvBudget
    pricing: Pricing

    @property
    def kind(self) -> Kind:
        """The generation workload."""
        return "generate"

    @property
    def digest(self) -> str:
        """Digest of its version."""
        return self.version.digest

    @property
    def scope(self) -> Scope:
        """Version and vFM, within which it may share prefixes."""
        return self.version.digest, self.vfm

    @property
    def units(self) -> int:
        """Units until it can draw its next token."""
        return self.pricing.units(self.sequence.computed, self.sequence.left)

    @property
    def adapter(self) -> int:
        """Number of its adapter segment; see `Prepared.adapter`."""
        return self.version.segment

    @property
    def head(self) -> int:
        """0: the language-model head is the backbone's, and every pass pays for it."""
        return 0

    @property
    def memory(self) -> int:
        """Bytes of the slab that its next token needs; see `Prepared.memory`."""
        return self.kv.slab_bytes(self.sequence.length)

    def pieces(self) -> Sequence[Piece]:
        """List the pieces of its prompt, or its next token; none once it has finished. See `Prepared.pieces`."""
        sequence = self.sequence
        if sequence.finish:
            return ()
        if sequence.left == 1:
            return (self.pricing.decode(sequence.computed),)
        return tuple(self.pricing.prefill(sequence.virtual, sequence.computed, sequence.length))


class GenerationPreparer:
    """Turns requests into jobs for one backbone. Any thread."""

    def __init__(self, backbone: Backbone, lm_head: LmHead, pricing: Pricing, kv: KvBudget) -> None:
        self._backbone = backbone
        self._lm_head = lm_head
        self._pricing = pricing
        self._kv = kv
        tokenizer = backbone.tokenizer.whole
        self._token_bytes = TokenBytes(tokenizer)
        vocabulary = backbone.embeddings.num_embeddings
        # A tokenizer may have more tokens than the model, or fewer; what the model has no logits for never comes.
        known = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        ends = frozenset(end for end in lm_head.ends if end < lm_head.vocabulary)
        described = tokenizer.to_str(), max(lm_head.vocabulary, known), ends
        self._sandbox = Sandboxes(lambda: Sandbox(*described))
        self._prompts = Prompts(lm_head.templates, self._sandbox, self._ids, vocabulary)
        self._schemas = Schemas(self._sandbox, *described)

    def _ids(self, text: str, special: bool) -> list[int]:
        """Return the tokens of a prompt; of one that is too long, enough to see that."""
        tokenizer = self._backbone.tokenizer
        return tokenizer.ids(tokenizer.shorten([text], self._most)[0], special)

    @property
    def _most(self) -> int:
        """Tokens that a text can have at most, its prompt included."""
        return min(self._backbone.max_tokens, self._kv.tokens)

    def check(self, version: Version) -> None:
        """Check the end tokens and the chat template of a version. Any thread. Raises `PackageRejected`."""
        head = version.heads[""].spec
        assert isinstance(head, Generation)
        if unknown := [token for token in head.stop_token_ids if token >= self._lm_head.vocabulary]:
            raise PackageRejected(
                f"head.stop_token_ids: this model has {self._lm_head.vocabulary} tokens, and none with the number {unknown[0]}",
                field="head.stop_token_ids",
            )
        if head.chat_template:
            try:
                self._sandbox.check(head.chat_template)
            except Refused as e:
                raise PackageRejected(f"head.chat_template: {e}", field="head.chat_template") from e

    def prepare(self, version: Version, request: Request) -> GenerationJob | FmplexError:
        """Make a job of a request; return the error of a wrong one."""
        try:
            return self._prepare(version, request)
        except FmplexError as e:
            return e
        except Exception as e:  # the tokenizers library raises bare Exception
            return InvalidInput(f"input: the tokenizer cannot take it ({str(e)[:_MOST_SAID]})", field="input")

    def _prepare(self, version: Version, request: Request) -> GenerationJob:
        head = version.heads[""].spec
        assert isinstance(head, Generation)
        # What a call does not say is the vFM's to say, and then the model's.
        params = parse(GenerationParams, {**self._lm_head.sampling, **head.sampling, **request.params})
        tokens = self._prompts.tokens(request.input, head, version.input, params)
        limit = self._limit(len(tokens), version.virtual, params.max_tokens, head.max_tokens)
        stops = params.stop if params.ignore_eos else (*head.stop, *params.stop)
        ends = self._ends(head, params, stops)
        constraint = None if params.schema_ is None else self._schemas.constraint(params.schema_, params.strict)
        prompt = frozenset(tokens) if params.repetition_penalty != 1 else frozenset()
        sequence = TokenSequence(
            tokens=tokens,
            prompt=len(tokens),
            virtual=version.virtual,
            limit=limit,
            ends=ends,
            sampler=Sampler(params, params.seed or 0, prompt, constraint, ends),
            detokenizer=Detokenizer(self._token_bytes, tokens, special=not params.skip_special_tokens),
            stopper=StopMatcher(stops, self._token_bytes.spells),
        )
        return GenerationJob(version, request.vfm, sequence, self._kv, self._pricing)

    def _ends(self, head: Generation, params: GenerationParams, stops: Sequence[str]) -> frozenset[int]:
        """Return the tokens that end a text: the model's, the vFM's, the call's, and those that a stop spells."""
        spelt = {token for stop in stops if (token := self._token_bytes.spelt(stop)) is not None}
        own = frozenset() if params.ignore_eos else self._lm_head.ends.union(head.stop_token_ids)
        return own.union(params.stop_token_ids, spelt)

    def _limit(self, prompt: int, virtual: int, wanted: int | None, usual: int) -> int:
        """Return the tokens of the text at most. Raises `TextTooLong` for one that could never be held."""
        begins = prompt + virtual
        most, held = self._backbone.max_tokens - begins, self._kv.tokens - begins
        limit = wanted if wanted is not None else min(usual, most, held)
        if most < 1 or held < 1:
            more = "at least " if prompt > 2 * self._most else ""  # so much of it was looked at
            raise self._too_long(begins + 1, f"the prompt has {more}{begins} tokens; shorten it", "input")
        if limit > min(most, held):
            said = f"you requested {begins + limit} tokens ({begins} in the prompt, {limit} in the completion)"
            raise self._too_long(begins + limit, f"{said}; shorten the prompt or lower max_tokens", "params.max_tokens")
        return limit

    def _too_long(self, tokens: int, said: str, field: str) -> TextTooLong:
        """Make the error of a text of so many `tokens`, more than `_most`; see `TextTooLong.over`."""
        if tokens <= self._backbone.max_tokens:
            said += f", or raise worker.kv_bytes: no more keys and values fit into {self._kv.nbytes} bytes"
        return TextTooLong.over(self._most, said, field=field)
