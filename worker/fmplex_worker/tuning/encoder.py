"""The backbone while training: texts to tokens, tokens to the hidden states that a head sees.

It is serving's own code, packed rows and all, so that training sees what will be served, and never pays for padding (which
cost 1.2 to 2.2 times the tokens on the demo data). Only the adapter is PEFT's, which can be differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_broker.errors import InvalidInput, TextTooLong
from fmplex_broker.examples.reading import listed
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_broker.specs.heads import Pooling
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.backbones.texts import Raw, Text
from fmplex_worker.heads.pooling import pool
from fmplex_worker.packed.row import TokenSpan, pack, packed_order

FORWARD = 32  # items in one forward without gradients


@dataclass(frozen=True, slots=True)
class EncodedExample:
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


def targets(items: Sequence[EncodedExample]) -> Tensor:
    """Join all targets, one after the other."""
    return torch.cat([item.target for item in items])


def visible(text: Text) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which tokens cover characters, so that tagging counts them: [tokens]. Special tokens do not."""
    assert text.offsets is not None
    covers: np.ndarray[Any, np.dtype[np.bool_]] = text.offsets[:, 0] < text.offsets[:, 1]
    return covers


@dataclass(frozen=True, slots=True)
class Encoder:
    """A backbone that can be differentiated: serving's own, without the wrappers through which it applies adapters."""

    backbone: Backbone

    def with_model(self, model: nn.Module) -> Encoder:
        """Return the same encoder around another model."""
        return Encoder(replace(self.backbone, model=model))

    @property
    def model(self) -> nn.Module:
        """The backbone's model."""
        return self.backbone.model

    @property
    def device(self) -> torch.device:
        """The device on which the model is."""
        return self.backbone.device

    def tokenize(self, raws: Sequence[Raw], lines: Sequence[str], offsets: bool, truncate: bool = False) -> list[Text]:
        """Tokenize texts or pairs, as serving does; with `truncate` those that are too long are cut. `lines`: where each came
        from. Raises `InvalidInput` that names the lines."""
        tokenizer = self.backbone.tokenizer
        texts = (tokenizer.encode_cut if truncate else tokenizer.encode)(raws, offsets)
        sizes = [(line, text.tokens) for line, text in zip(lines, texts, strict=True)]
        limit = self.backbone.max_tokens
        if long := [f"{line} ({tokens})" for line, tokens in sizes if tokens > limit]:
            raise TextTooLong(
                f"the backbone takes {limit} tokens; shorten or split the text of {listed(long, ', ')}, or cut them "
                "with truncate",
                field="data",
            )
        if nothing := [line for line, tokens in sizes if not tokens]:
            raise InvalidInput(f"gives no tokens that this backbone knows: {listed(nothing, ', ')}", field="data")
        return texts

    def rows(self, items: Sequence[EncodedExample], pooling: Pooling | None) -> Tensor:
        """Compute what heads see, item after item: one pooled row a sequence or, without pooling, one row a visible token.

        Shape [rows, hidden]. One forward of one packed row, as in serving; gradients flow.
        """
        texts = [text for item in items for text in item.sequences]
        spans = [TokenSpan(text.tokens, None) for text in texts]
        order = packed_order(spans)
        row = pack([spans[at] for at in order], self.device, None)
        hidden = self.backbone.encode(row, [texts[at] for at in order])
        place = sorted(range(len(order)), key=order.__getitem__)  # where text i lies in the row
        if pooling is not None:
            return pool(hidden, row.starts, row.lengths, [pooling] * len(texts))[place]
        seen = [np.flatnonzero(visible(text)) + row.starts[at] for text, at in zip(texts, place, strict=True)]
        return hidden[torch.from_numpy(np.concatenate(seen)).to(self.device)].float()

    @torch.no_grad()
    def features(self, items: Sequence[EncodedExample], pooling: Pooling | None) -> Tensor:
        """Compute `rows` of any number of items, without gradients. On the CPU."""
        parts = [self.rows(items[at : at + FORWARD], pooling).cpu() for at in range(0, len(items), FORWARD)]
        return torch.cat(parts)


def load(spec: FitSpec) -> Encoder:
    """Load the backbone of a training, frozen, as it is hosted; the last one stays cached.

    Raises `InvalidInput` (field `model`, `max_tokens`): no such folder, cannot be loaded, not served, weights missing, no fast
    tokenizer, more tokens than it takes.
    """
    hosted = BackboneSpec(
        name="tuned", model=spec.model, revision=spec.revision, dtype=spec.dtype, max_tokens=spec.max_tokens
    )
    try:
        return Encoder(_load(hosted))
    except InvalidInput as e:  # a fleet file calls it backbone.model
        raise InvalidInput(e.message, field=(e.field or "model").removeprefix("backbone.")) from e


@lru_cache(maxsize=1)
def _load(spec: BackboneSpec) -> Backbone:
    return load_backbone(spec, plain=True)
