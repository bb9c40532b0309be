"""Texts as tokens, and batches of like lengths, so that little is padding. Every text is a row of its own, as it is served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.texts import PlainText, Record

_POOL = 32  # batches whose texts are sorted by length together
IGNORED = -100  # as a target


class TextExample(NamedTuple):
    """A text as tokens. `learn`: the first token that the model is to find by itself."""

    tokens: list[int]
    learn: int


class Batch(NamedTuple):
    """Inputs and targets of one step, [rows, tokens] both; targets are the next tokens, `IGNORED` where there is nothing to
    learn."""

    inputs: Tensor
    targets: Tensor


def encode(records: Sequence[Record], tokenizer: Any, limit: int) -> list[TextExample]:
    """Turn records into tokens. Of a conversation nothing but the last message is learnt: nobody can know what will be asked.
    Texts are cut to `limit` tokens.

    Raises `InvalidInput` (field `data`) when cutting leaves some text nothing to learn.
    """
    end = tokenizer.eos_token_id
    made = []
    for number, record in enumerate(records, 1):
        if isinstance(record, PlainText):
            made.append(TextExample([*_ids(tokenizer, record.text), end][:limit], 1))
            continue
        messages = [message.model_dump() for message in record.messages]
        asked = _ids(tokenizer, _render(tokenizer, messages[:-1], True))
        said = [*_ids(tokenizer, messages[-1]["content"]), end]
        made.append(TextExample([*asked, *said][:limit], len(asked)))
        if len(asked) >= limit:
            raise InvalidInput(
                f"text {number} asks with {len(asked)} tokens, of {limit} in all; shorten it", field="data"
            )
    return made


def question(tokenizer: Any, text: str) -> list[int]:
    """Encode a user's message as the model is asked."""
    return _ids(tokenizer, _render(tokenizer, [{"role": "user", "content": text}], True))


def batches(examples: Sequence[TextExample], budget: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches of about `budget` tokens, without end: each epoch takes all examples once, in another order."""
    size = max(1, _POOL * budget * len(examples) // sum(len(e.tokens) for e in examples))
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        cut = []
        for at in range(0, len(order), size):
            cut += _cut(sorted((examples[i] for i in order[at : at + size]), key=lambda e: len(e.tokens)), budget)
        for i in torch.randperm(len(cut), generator=generator).tolist():
            yield batch(cut[i])


def _cut(examples: Sequence[TextExample], budget: int) -> list[list[TextExample]]:
    """Cut examples, in order of their lengths, into batches of as many as the budget takes."""
    out: list[list[TextExample]] = []
    for example in examples:
        if not out or (len(out[-1]) + 1) * len(example.tokens) > budget:
            out.append([])
        out[-1].append(example)
    return out


def in_order(examples: Sequence[TextExample], budget: int) -> list[Batch]:
    """Make batches of all examples once, in order of their lengths."""
    return [batch(part) for part in _cut(sorted(examples, key=lambda e: len(e.tokens)), budget)]


def batch(examples: Sequence[TextExample]) -> Batch:
    """Make one batch, padded on the right, where a causal model does not see it."""
    longest = max(len(e.tokens) for e in examples) - 1
    inputs = torch.zeros(len(examples), longest, dtype=torch.long)
    targets = torch.full_like(inputs, IGNORED)
    for i, (tokens, learn) in enumerate(examples):
        inputs[i, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        targets[i, learn - 1 : len(tokens) - 1] = torch.tensor(tokens[learn:])
    return Batch(inputs, targets)


def _render(tokenizer: Any, messages: Sequence[dict[str, str]], asking: bool) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asking))


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids
