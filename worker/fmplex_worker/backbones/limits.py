"""How many tokens a text may have: what positions, their scaling and the tokenizer say, and what the operator says."""

from __future__ import annotations

import logging
from typing import Any

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.families import Family, rope_rows

log = logging.getLogger(__name__)
_USUAL = 512  # of models that know no positions but distances (T5), which have no end
_UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30


def max_tokens(spec: BackboneSpec, family: Family, config: Any, tokenizer: Any) -> int:
    """Return the most tokens of one text: what the spec says, else `usual_max_tokens`.

    Raises `InvalidInput` where the spec says more than there are positions. Scaled ones (RoPE) go on as far as wanted: whether
    the model still makes sense there is for the operator to know.
    """
    if spec.max_tokens is None:
        return usual_max_tokens(family, config, tokenizer)
    _, most = _positions(family, config)
    if spec.max_tokens > most:
        if all(row["rope_type"] in ("default", "longrope") for row in rope_rows(config)) and _table(config):
            raise InvalidInput(
                f"{spec.model!r} takes {most} tokens at most; lower max_tokens", field="backbone.max_tokens"
            )
        log.warning("backbone.max_tokens is %d, and %r says that it takes %d tokens", spec.max_tokens, spec.model, most)
    return spec.max_tokens


def usual_max_tokens(family: Family, config: Any, tokenizer: Any) -> int:
    """Return the most tokens of one text, as the checkpoint says: what positions and tokenizer both take. A tokenizer that was
    made for the positions before they were stretched says nothing of how far."""
    trained, reach = _positions(family, config)
    stated = int(tokenizer.model_max_length)
    return min(stated if stated < trained else reach, _UNLIMITED)


def _positions(family: Family, config: Any) -> tuple[int, int]:
    """Return how many positions the model was trained with, and how many it has: with YaRN (Peng et al. 2023) its factor times as
    many."""
    most = _table(config) or int(getattr(config, "n_positions", None) or _USUAL)
    for row in rope_rows(config):
        if row["rope_type"] == "yarn" and row.get("factor"):
            trained = int(row.get("original_max_position_embeddings") or most)
            return trained, int(trained * row["factor"])
        if row["rope_type"] == "longrope":  # beyond, its frequencies depend on the longest text of the pass
            most = min(most, int(row.get("original_max_position_embeddings") or most))
    plain = most - family.first_position(config)
    return plain, plain


def _table(config: Any) -> int | None:
    """Return how many positions the config says that there are; None if the model has distances only."""
    return getattr(config, "max_position_embeddings", None)
