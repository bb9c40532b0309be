"""The backbone while training: texts to tokens, hidden states to the rows that a head sees.

It is serving's own code, packed rows and all, so that training sees what will be served, and never pays for padding (which
cost 1.2 to 2.2 times the tokens on the demo data).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmplex_broker.errors import InvalidInput, TextTooLong
from fmplex_broker.examples.reading import listed
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_broker.specs.heads import InputSpec, Pooling
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.backbones.texts import Raw, Text
from fmplex_worker.heads.pooling import pool


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


def tokenize(
    backbone: Backbone, raws: Sequence[Raw], lines: Sequence[str], offsets: bool, around: InputSpec
) -> list[Text]:
    """Tokenize texts or pairs, templates already around them, as a vFM with this `input` does. `lines`: where each came from.

    Raises `InvalidInput` that names the lines.
    """
    tokenizer, limit = backbone.tokenizer, min(backbone.max_tokens, around.max_tokens or backbone.max_tokens)
    if around.truncate:
        texts = tokenizer.encode_cut(raws, offsets, spare=backbone.max_tokens - limit)
    else:
        texts = tokenizer.encode(raws, offsets)
    sizes = [(line, text.tokens) for line, text in zip(lines, texts, strict=True)]
    if long := [f"{line} ({tokens})" for line, tokens in sizes if tokens > limit]:
        raise TextTooLong(
            f"at most {limit} tokens are taken; shorten or split the text of {listed(long, ', ')}, or cut them "
            "with truncate",
            field="data",
        )
    if nothing := [line for line, tokens in sizes if not tokens]:
        raise InvalidInput(f"gives no tokens that this backbone knows: {listed(nothing, ', ')}", field="data")
    return texts


def head_rows(hidden: Tensor, texts: Sequence[Text], pooling: Pooling | None) -> Tensor:
    """Compute what heads see: hidden `[tokens, hidden]` of texts, one after the other, to one pooled row a text or, without
    pooling, one row a visible token: `[rows, hidden]` float32. Gradients flow."""
    lengths = [text.tokens for text in texts]
    starts = [0, *accumulate(lengths)][:-1]
    if pooling is not None:
        return pool(hidden, starts, lengths, [pooling] * len(texts))
    seen = [np.flatnonzero(visible(text)) + start for text, start in zip(texts, starts, strict=True)]
    return hidden[torch.from_numpy(np.concatenate(seen)).to(hidden.device)].float()


def hosted(spec: FitSpec | TextLoraSpec) -> Backbone:
    """Load the backbone of a training, frozen, as it is hosted; the last one stays cached.

    Raises `InvalidInput` (field `model`, `max_tokens`): no such folder, cannot be loaded, not served, weights missing, no fast
    tokenizer, more tokens than it takes.
    """
    limit = spec.max_tokens if isinstance(spec, FitSpec) else spec.positions
    as_hosted = BackboneSpec(
        name=spec.backbone, model=spec.model, revision=spec.revision, dtype=spec.dtype, max_tokens=limit
    )
    try:
        return _load(as_hosted)
    except InvalidInput as e:  # a fleet file calls it backbone.model
        raise InvalidInput(e.message, field=(e.field or "model").removeprefix("backbone.")) from e


@lru_cache(maxsize=1)
def _load(spec: BackboneSpec) -> Backbone:
    return load_backbone(spec)
