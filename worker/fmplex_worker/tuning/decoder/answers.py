"""Texts and conversations as they are learnt: the tokens that a call would be answered from, and those of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fmplex_broker.errors import FmplexError, InvalidInput, TextTooLong
from fmplex_broker.examples.files import Row, read_rows
from fmplex_broker.examples.reading import listed
from fmplex_broker.examples.texts import Conversation, PlainText, TextParser
from fmplex_broker.specs.heads import Generation, InputSpec
from fmplex_broker.specs.sampling import GenerationParams
from fmplex_worker.backbones.backbone import Backbone, LmHead
from fmplex_worker.tuning.decoder.examples import TextExample
from fmplex_worker.workloads.generation.prompts import Prompts
from fmplex_worker.workloads.generation.sandbox import Sandbox
from fmplex_worker.workloads.generation.sandboxes import Sandboxes

_ASKED = GenerationParams()
_SAID = GenerationParams(add_generation_prompt=False)


class Answers:
    """Turns examples into tokens, as a vFM with this head is asked and as it is to answer."""

    def __init__(self, backbone: Backbone, lm_head: LmHead, head: Generation) -> None:
        self._backbone, self._head = backbone, head
        tokenizer = backbone.tokenizer.whole.to_str()
        sandboxes = Sandboxes(lambda: Sandbox(tokenizer, lm_head.vocabulary, lm_head.ends))
        vocabulary = backbone.embeddings.num_embeddings
        self._prompts = Prompts(lm_head.templates, sandboxes, backbone.tokenizer.ids, vocabulary)
        self._ends = lm_head.ends
        own = lm_head.templates.eos_token_id
        self._end = [own] if own in lm_head.ends else sorted(lm_head.ends)[:1]

    def read(self, path: Path, truncate: bool, least: int) -> list[TextExample]:
        """Read a file. `truncate`: cut texts that are too long; `least`: texts that there must be.

        Raises `InvalidInput` (field `data`) that names up to ten bad examples by their places, `TextTooLong` likewise.
        """
        parser = TextParser()
        rows = [(row, record) for row in read_rows(path) if (record := parser.take(row)) is not None]
        parser.check(str(path), least)
        return self._examples(rows, truncate)

    def _examples(self, rows: Iterable[tuple[Row, PlainText | Conversation]], truncate: bool) -> list[TextExample]:
        made, long, nothing = [], [], []
        limit = self._backbone.max_tokens
        for row, record in rows:
            try:
                example = self._example(record)
            except FmplexError as e:
                raise InvalidInput(f"{row.place}: {e.message}", field="data") from e
            if len(example.tokens) > limit and not truncate:
                long.append(f"{row.place} ({len(example.tokens)})")
            elif len(example.tokens[:limit]) <= example.learn:
                nothing.append(row.place)
            else:
                made.append(TextExample(example.tokens[:limit], example.learn))
        if long:
            raise TextTooLong(
                f"at most {limit} tokens are taken; shorten {listed(long, ', ')}, or cut them with truncate",
                field="data",
            )
        if nothing:
            raise InvalidInput(f"leaves nothing to learn within {limit} tokens: {listed(nothing, ', ')}", field="data")
        return made

    def _example(self, record: PlainText | Conversation) -> TextExample:
        if isinstance(record, PlainText):
            tokens = self._tokens(record.text, _ASKED)
            while tokens and tokens[-1] in self._ends:
                tokens.pop()
            return TextExample([*tokens, *self._end], 1)
        messages = [message.model_dump() for message in record.messages]
        asked = self._tokens({"messages": messages[:-1]}, _ASKED)
        whole = self._tokens({"messages": messages}, _SAID)
        said = whole[len(asked) :]
        end = next((i for i, token in enumerate(said) if token in self._ends), None)
        if (
            whole[: len(asked)] != asked or not end
        ):  # the template does not go on as it begins an answer, or does not end it
            content = self._backbone.tokenizer.ids(messages[-1]["content"], False)
            return TextExample([*asked, *content, *self._end], len(asked))
        return TextExample([*asked, *said[: end + 1]], len(asked))

    def _tokens(self, value: str | dict[str, Sequence[dict[str, str]]], params: GenerationParams) -> list[int]:
        return self._prompts.tokens(value, self._head, InputSpec(), params)
