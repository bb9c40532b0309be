"""A loaded backbone: ids in, hidden states out, for one packed row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_broker.packages.sentences import SentenceModel
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.families import Family
from fmplex_worker.backbones.texts import Ids, Text, Tokenizer
from fmplex_worker.kvcache.pool import KvShape
from fmplex_worker.packed.linear import Target, adapted
from fmplex_worker.packed.row import Pack, running
from fmplex_worker.packed.segments import Adapter, Segments


@dataclass(frozen=True, slots=True, eq=False)
class LmHead:
    """Language-model head of a model that generates text. `head`: the layer from hidden states to logits; `path`: its name in the
    whole model; `ends`: tokens that end a text; `templates`: the transformers tokenizer, for its chat template; `kv`: what a
    token's keys and values take; logits are divided by `divisor` (Granite), and approach `cap` and never pass it (Gemma 2);
    `sampling`: the model's own parameters, for calls and vFMs that do not say."""

    head: nn.Module
    path: str
    ends: frozenset[int]
    templates: Any
    kv: KvShape
    divisor: float = 1.0
    cap: float | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)

    def logits(self, hidden: Tensor, adapters: Segments, slot: int) -> Tensor:
        """Compute logits: hidden `[rows, width]` → `[rows, vocabulary]` float32, with what the adapters of the rows make of the
        head, linear number `slot` to them. Call it inside inference mode, or to train."""
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        made = adapted(hidden.unsqueeze(0), weight, bias, adapters, slot)  # type: ignore[arg-type]
        return self._scaled(made[0].float())

    def _scaled(self, logits: Tensor) -> Tensor:
        if self.divisor != 1.0:
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary: columns of the logits."""
        return int(self.head.weight.shape[0])  # type: ignore[index]


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """One model on one device. `targets`: module path → linear that adapters may change; `lm_head`: its language-model
    head, if it generates text; `sentence`: what sentence-transformers has written beside it, if anything."""

    spec: BackboneSpec
    family: Family
    model: nn.Module
    tokenizer: Tokenizer
    targets: Mapping[str, Target]
    device: torch.device
    first_position: int
    max_tokens: int
    lm_head: LmHead | None = None
    sentence: SentenceModel | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return next(self.model.parameters()).dtype

    @property
    def hidden(self) -> int:
        """Width of the hidden states that heads read."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def embeddings(self) -> nn.Embedding:
        """The token embeddings; their width can differ from `hidden` (ELECTRA)."""
        table: nn.Embedding = self.model.get_input_embeddings()  # type: ignore[operator]
        return table

    @property
    def embeddings_path(self) -> str:
        """Module path of the token embeddings."""
        table = self.embeddings
        path: str = next(path for path, module in self.model.named_modules() if module is table)
        return path

    @property
    def slots(self) -> int:
        """Number of linears that adapters may change; the language-model head is the last of them."""
        return len(self.targets) + (self.lm_head is not None)

    def target(self, path: str) -> Target | None:
        """Return the linear at a module path that adapters may change, the language-model head too; None if there is none."""
        if self.lm_head is None or path != self.lm_head.path:
            return self.targets.get(path)
        return Target(len(self.targets), self.hidden, self.lm_head.vocabulary)

    def logits(self, hidden: Tensor, adapters: Sequence[Adapter | None]) -> Tensor:
        """Compute the logits of rows that are in packed order: hidden `[rows, width]` → `[rows, vocabulary]` float32. `adapters`:
        of each row. Call it inside inference mode, or to train."""
        assert self.lm_head is not None
        # Each has as many columns as there are tokens: to stack them for the grouped kernel would copy them in every pass.
        segments = Segments.of_rows(adapters, self.device)
        return self.lm_head.logits(hidden, segments, len(self.targets))

    @property
    def prefix(self) -> str:
        """Prefix that a task class of transformers gives this model: keys made with one start with it (`bert.`, `model.`)."""
        return f"{self.model.base_model_prefix}."

    @property
    def memory_bytes(self) -> int:
        """Bytes of all weights and buffers, shared ones once."""
        held = [*self.model.parameters(), *self.model.buffers()]
        if self.lm_head is not None:
            held += self.lm_head.head.parameters()
        return sum(t.nbytes for t in {t.data_ptr(): t for t in held}.values())  # the head may be the embeddings (tied)

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory that this process holds; 0 on a CPU."""
        return int(torch.cuda.memory_allocated(self.device)) if self.device.type == "cuda" else 0

    def encode(self, pack: Pack, texts: list[Text]) -> Tensor:
        """Compute hidden states `[tokens, hidden]` of texts in packed order, virtual tokens included. Call it on the device
        thread, inside inference mode, or to train.

        A prompt's virtual tokens are the first of their text: positions count them, and their token type is 0, as in PEFT.
        """
        rows = {"input_ids": _row(pack, [text.ids for text in texts])}
        if self.family.places:
            rows["position_ids"] = _positions(pack) + self.first_position
        if self._has_types:
            rows["token_type_ids"] = _row(pack, [text.types for text in texts])
        grid = torch.from_numpy(np.stack([*rows.values()]))  # one copy to the device
        inputs: dict[str, Tensor] = dict(zip(rows, grid.to(self.device).unsqueeze(1), strict=True))
        if pack.embedded or any(text.embeds is not None for text in texts):
            inputs["inputs_embeds"] = self._embed(inputs.pop("input_ids"), pack, texts)
        with running(pack):
            hidden: Tensor = self.model(**inputs).last_hidden_state[0]
        return hidden

    @property
    def _has_types(self) -> bool:
        return self.family.token_types and bool(self.model.config.type_vocab_size > 1)  # type: ignore[union-attr, operator]

    def _embed(self, ids: Tensor, pack: Pack, texts: list[Text]) -> Tensor:
        """Look up token embeddings `[1, tokens, width]`, with the callers' own where they sent them, adapters' prompts and
        updates.

        A caller's own embeddings are taken as they are: an update of the table is not for them, as in PEFT.
        """
        table: Tensor = self.embeddings(ids)
        for start, length, adapter, text in zip(pack.starts, pack.lengths, pack.adapters, texts, strict=True):
            first, end = start + length - text.tokens, start + length
            if first > start and adapter is not None and adapter.prompt is not None:
                table[0, start:first] = adapter.prompt
            if text.embeds is not None:
                table[0, first:end] = torch.from_numpy(text.embeds).to(table)
            elif adapter is not None and adapter.tokens is not None:
                table[0, first:end] += adapter.tokens.down[ids[0, first:end]] @ adapter.tokens.up
        return table


def _positions(pack: Pack) -> Ids:
    """Return the position of each token in its text."""
    return np.concatenate([np.arange(past, past + n) for past, n in zip(pack.pasts, pack.lengths, strict=True)])


def _row(pack: Pack, parts: list[Ids]) -> Ids:
    """Join the texts' rows to one, with zeros where virtual tokens are."""
    if not pack.embedded:
        return np.concatenate(parts)
    row = np.zeros(pack.tokens, dtype=np.int64)
    for start, length, part in zip(pack.starts, pack.lengths, parts, strict=True):
        row[start + length - len(part) : start + length] = part
    return row
