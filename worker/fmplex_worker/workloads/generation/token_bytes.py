"""Bytes of tokens: what each token of a tokenizer adds to a text."""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes of the tokens of one tokenizer: of those whose tokens are bytes (GPT-2, Llama 3, Qwen), whose tokens are characters
    with bytes for rare ones (Llama 2, Mistral), and of others that look one token back at most to join or clean words."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder
        kinds = set() if decoder is None else _kinds(json.loads(decoder.__getstate__()))
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        added = tokenizer.get_added_tokens_decoder()
        self._special = {i: token.content for i, token in added.items() if token.special}
        self._by_content = {content: i for i, content in self._special.items()}

    def special(self, token: int) -> str:
        """Return how a special token is written; "" for any other."""
        return self._special.get(token, "")

    def spelt(self, text: str) -> int | None:
        """Return the special token that a text spells; None: it spells none."""
        return self._by_content.get(text)

    def spells(self, text: str) -> bool:
        """Tell whether special tokens are spelt in a text."""
        return any(content in text for content in self._by_content)

    def silent(self, token: int) -> bool:
        """Tell whether a token is no part of any text: special ones, and numbers beyond the tokenizer's (models pad their
        vocabulary)."""
        return token in self._special or self._tokenizer.id_to_token(token) is None

    def name(self, token: int) -> str:
        """Name a token by itself, silent ones too."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def after(self, before: int | None, token: int) -> bytes:
        """Return what a token that is not silent adds to a text that ends with token `before`: characters, or parts of one."""
        piece = self._tokenizer.id_to_token(token) or ""
        if self._byte_level:
            # As the decoder has it: a piece that is not spelt in its alphabet is taken as it is.
            known = [_BYTES.get(character) for character in piece]
            return piece.encode() if None in known else bytes(byte for byte in known if byte is not None)
        if self._byte_fallback and (byte := _BYTE.fullmatch(piece)):
            data = bytes.fromhex(byte[1])
            if before is not None or not data.isascii():  # else decoders may strip it: a space that a text begins with
                return data
        if before is None:
            return str(self._tokenizer.decode([token])).encode()
        both, one = self._tokenizer.decode([before, token]), self._tokenizer.decode([before])
        return str(both[len(one) :]).encode()


def _kinds(decoder: dict[str, Any]) -> set[str]:
    return {decoder["type"]}.union(*map(_kinds, decoder.get("decoders", ())))


def _alphabet() -> dict[str, int]:
    """Build GPT-2's alphabet: bytes that are no printable Latin-1 character take the characters from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()
