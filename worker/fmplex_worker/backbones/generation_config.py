"""What a checkpoint says about the texts that its model writes: where they end, and how tokens are drawn."""

from __future__ import annotations

from typing import Any

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.sampling import SAMPLING, GenerationParams
from fmplex_broker.specs.schema import parse


def end_tokens(generation_config: Any, tokenizer: Any, vocabulary: int) -> frozenset[int]:
    """Return the tokens that end a text: those of generation_config.json and the tokenizer's. Fine-tuned chat models often give
    their turns another end in the tokenizer alone."""
    said = getattr(generation_config, "eos_token_id", None)
    ends = [*(said if isinstance(said, list | tuple) else [said]), tokenizer.eos_token_id]
    # Benchmarks write -1 for none; a tokenizer may know more tokens than the model.
    return frozenset(int(end) for end in ends if end is not None and 0 <= end < vocabulary)


def sampling_defaults(generation_config: Any) -> dict[str, float]:
    """Return what generation_config.json says of `SAMPLING`. Raises `InvalidInput` (field `backbone.model`) for a value
    that cannot be one."""
    said = {name: getattr(generation_config, name, None) for name in SAMPLING}
    found = {name: value for name, value in said.items() if value is not None}
    try:
        parse(GenerationParams, found)
    except InvalidInput as e:
        raise InvalidInput(f"generation_config.json: {e.message}; mend it there", field="backbone.model") from e
    return found
