"""The backbone while training: texts to tokens, tokens to the hidden states that a head sees.

It computes what serving computes, from the same tokens and position ids: pooling over all real tokens with the special
ones, no dropout. Serving packs; here rows are padded on the right and masked, which gives the same within rounding and can
be differentiated by PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from fmplex_broker.errors import InvalidInput, TextTooLong
from fmplex_broker.specs import Pooling
from fmplex_worker.backbones.families import Family, family_of
from fmplex_worker.backbones.texts import Raw, Text, Tokenizer
from fmplex_worker.tuning.data import listed

FORWARD_ITEMS = 32  # per forward without gradients
_UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30


@dataclass(frozen=True, slots=True)
class Item:
    """One example ready for the backbone.

    `target`: [1] class, value or group; [1, labels] for multi-label; [tokens] for tagging. `gold`: the set that must be
    found (labels, spans), where the score is by sets. `stratum`: examples of one stratum spread evenly over slices.
    `text`: what spans are parts of, for tagging.
    """

    sequences: tuple[Text, ...]
    target: Tensor
    gold: frozenset[Any] = frozenset()
    stratum: str = ""
    text: str = ""

    def __len__(self) -> int:
        """Tokens of the longest sequence, which is what a padded batch costs."""
        return max(text.tokens for text in self.sequences)


def targets(items: Sequence[Item]) -> Tensor:
    """All targets, one after the other."""
    return torch.cat([item.target for item in items])


def visible(text: Text) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[tokens]: which tokens cover characters, so that tagging counts them. Special tokens do not."""
    assert text.offsets is not None
    covers: np.ndarray[Any, np.dtype[np.bool_]] = text.offsets[:, 0] < text.offsets[:, 1]
    return covers


@dataclass(frozen=True, slots=True)
class Backbone:
    """`limit`: tokens in one sequence. `types`: whether the model tells the texts of a pair apart by token types."""

    model: nn.Module
    tokenizer: Tokenizer
    family: Family
    limit: int
    first_position: int
    types: bool

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def tokenize(self, raws: Sequence[Raw], lines: Sequence[int], offsets: bool) -> list[Text]:
        """Texts or pairs to tokens. `lines`: where each came from. Raises `InvalidInput` that names the lines."""
        texts = self.tokenizer.encode(raws, offsets)
        sizes = [(line, text.tokens) for line, text in zip(lines, texts, strict=True)]
        if long := [f"line {line} ({tokens})" for line, tokens in sizes if tokens > self.limit]:
            raise TextTooLong(
                f"the backbone takes {self.limit} tokens; shorten or split the text of {listed(long, ', ')}",
                field="data",
            )
        if nothing := [f"line {line}" for line, tokens in sizes if not tokens]:
            raise InvalidInput(f"gives no tokens that this backbone knows: {listed(nothing, ', ')}", field="data")
        return texts

    def rows(self, items: Sequence[Item], pooling: Pooling | None) -> Tensor:
        """What heads see, item after item: one pooled row a sequence or, without pooling, one row a visible token.

        Shape [rows, hidden]. One forward; gradients flow.
        """
        texts = [text for item in items for text in item.sequences]
        width = max(text.tokens for text in texts)
        mask = torch.tensor([[1] * text.tokens + [0] * (width - text.tokens) for text in texts], device=self.device)
        inputs = {"input_ids": self._padded([text.ids for text in texts], width), "attention_mask": mask}
        inputs["position_ids"] = (torch.arange(width, device=self.device) + self.first_position).expand_as(mask)
        if self.types:
            inputs["token_type_ids"] = self._padded([text.types for text in texts], width)
        states: Tensor = self.model(**inputs).last_hidden_state
        if pooling is not None:
            return pool(states, mask, pooling)
        return torch.cat([states[i, np.flatnonzero(visible(text))] for i, text in enumerate(texts)])

    @torch.no_grad()
    def features(self, items: Sequence[Item], pooling: Pooling | None) -> Tensor:
        """`rows` of any number of items, in batches of like length, without gradients. On the CPU."""
        order = sorted(range(len(items)), key=lambda i: len(items[i]))
        parts: list[Tensor] = [torch.empty(0)] * len(items)
        for at in range(0, len(order), FORWARD_ITEMS):
            chosen = order[at : at + FORWARD_ITEMS]
            rows = self.rows([items[i] for i in chosen], pooling).cpu()
            for i, part in zip(chosen, torch.split(rows, [_rows_of(items[i], pooling) for i in chosen]), strict=True):
                parts[i] = part
        return torch.cat(parts)

    def _padded(self, arrays: Sequence[np.ndarray[Any, np.dtype[np.int64]]], width: int) -> Tensor:
        # Zeros: any id will do where the mask is 0.
        return torch.from_numpy(np.stack([np.pad(a, (0, width - len(a))) for a in arrays])).to(self.device)


def _rows_of(item: Item, pooling: Pooling | None) -> int:
    return len(item.sequences) if pooling is not None else sum(int(visible(text).sum()) for text in item.sequences)


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """[n, width, hidden] to [n, hidden] over the real tokens, those where `mask` [n, width] is 1; padding is on the right."""
    if pooling == "mean":
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)
    if pooling == "cls":
        return states[:, 0]
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


@lru_cache(maxsize=1)
def load(model: str) -> Backbone:
    """Load a folder or hub id, frozen, in float32; the last one stays cached.

    Raises `InvalidInput` (field `model`): cannot be loaded, not served, weights missing, no fast tokenizer.
    """
    try:
        # Only configs, safetensors and tokenizer files: no pickles, no code of the model's own.
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        family = family_of(config)
        net, info = AutoModel.from_pretrained(
            model,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **({"add_pooling_layer": False} if family.pooler else {}),
        )
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        fast = Tokenizer.of(tokenizer, model, _UNLIMITED)
    except InvalidInput as e:
        raise InvalidInput(e.message, field="model") from None
    except (OSError, ValueError, ImportError, KeyError, TypeError) as e:
        raise InvalidInput(f"model {model!r} cannot be loaded: {e}", field="model") from e
    if missing := sorted(info["missing_keys"]):
        raise InvalidInput(f"model {model!r} lacks {len(missing)} weights, for example {missing[0]!r}", field="model")
    first = family.first_position(config)
    limit = min(tokenizer.model_max_length, config.max_position_embeddings - first, _UNLIMITED)
    net.config.use_cache = False
    net.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    types = family.token_types and config.type_vocab_size > 1
    return Backbone(net, fast, family, limit, first, types)
