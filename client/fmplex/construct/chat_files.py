"""What lies beside an adapter when a chat model was trained: tokenizer, chat template, generation_config.json.

A vFM has a template, end texts and sampling parameters of its own, and the tokenizer of its backbone.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from fmplex.construct.saved_adapters import BaseModel
from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.packages.json_object import read_object
from fmplex_broker.specs.sampling import SAMPLING

_LONGEST = 1 << 28  # bytes; the largest tokenizers have some 30 MB
_TOKENIZER, _SETTINGS, _SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_TEMPLATE, _OLD_TEMPLATE, _SAMPLING = "chat_template.jinja", "chat_template.json", "generation_config.json"


def generation_settings(folder: Path) -> dict[str, Any]:
    """Return the keys of a generation head that the files beside an adapter say: `chat_template`, `stop` (the tokenizer's end),
    `stop_token_ids` and sampling (of generation_config.json). Raises `InvalidInput` for a file that cannot be read."""
    settings = _read(folder / _SETTINGS)
    special = _special_tokens(_read(folder / _SPECIAL) | settings)
    found: dict[str, Any] = {}
    if template := _template(folder, settings):
        found["chat_template"] = _with_tokens(template, special)
    if end := special.get("eos_token"):
        found["stop"] = [end]
    said = _read(folder / _SAMPLING)
    ends = said.get("eos_token_id")
    ends = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
    if ends:
        found["stop_token_ids"] = ends
    return found | {name: said[name] for name in SAMPLING if said.get(name) is not None}


def compare_tokenizers(folder: Path, model: str | None, *, warn: bool) -> None:
    """Refuse an adapter whose tokenizer numbers tokens that its base model's tokenizer does not number alike. `model`: the base
    model's folder; where it is not known, `warn` that nothing was compared. Raises `PackageRejected` or `InvalidInput`."""
    if not (folder / _TOKENIZER).is_file():
        return
    base = BaseModel.of(model).folder
    if base is None or not (base / _TOKENIZER).is_file():
        if warn:
            warnings.warn(
                f"{folder / _TOKENIZER} is not taken: a vFM has the tokenizer of its backbone; give model=, the folder of the "
                "base model with its tokenizer.json, and the two are compared",
                stacklevel=3,
            )
        return
    settings = _read(folder / _SETTINGS)
    own, theirs = _numbers(_read(folder / _TOKENIZER)), _numbers(_read(base / _TOKENIZER))
    unused = _special_tokens(settings).get("pad_token")  # of batches in training; no text holds it
    if new := [token for token, number in own.items() if theirs.get(token) != number and token != unused]:
        raise PackageRejected(
            f"{folder / _TOKENIZER} has {len(new)} tokens that {base / _TOKENIZER} has not, or under other numbers, for example "
            f"{new[0]!r}; a vFM has the tokenizer of its backbone: host the base model with the adapter's tokenizer files, or "
            "remove them from the adapter's folder if it does without these tokens",
            field="adapter",
        )


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file. Raises `InvalidInput`."""
    try:
        return read_object(path.read_bytes(), _LONGEST) if path.is_file() else {}
    except (OSError, ValueError) as e:
        raise InvalidInput(f"{path} cannot be read ({e}); mend or remove it", field="adapter") from e


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Map the names of special tokens (`eos_token`, …) to what is written for them."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str) and text}


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the chat template that lies there: in a file of its own, as transformers writes it now, or in an older place."""
    path = folder / _TEMPLATE
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise InvalidInput(f"{path} cannot be read ({e}); mend or remove it", field="adapter") from e
    said = settings.get("chat_template") or _read(folder / _OLD_TEMPLATE).get("chat_template")
    if isinstance(said, list):  # several with names
        said = {one["name"]: one.get("template") for one in said if isinstance(one, dict) and "name" in one}.get(
            "default"
        )
    return said if isinstance(said, str) else None


def _with_tokens(template: str, special: dict[str, str]) -> str:
    """Set the special tokens that a template writes by name to the adapter's: the backbone's may be others. A line break behind
    a block is not rendered."""
    named = [(name, text) for name, text in special.items() if name in template]
    return "".join(f"{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}\n" for name, text in named) + template


def _numbers(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Map tokens to their numbers. Raises `InvalidInput`."""
    try:
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):  # pieces with their scores
            vocabulary = {piece[0]: number for number, piece in enumerate(vocabulary)}
        return {**vocabulary, **{added["content"]: added["id"] for added in tokenizer.get("added_tokens", ())}}
    except (KeyError, IndexError, TypeError) as e:
        raise InvalidInput(
            f"{_TOKENIZER} of the adapter or of its base model is none ({e!r}); mend it", field="adapter"
        ) from e
