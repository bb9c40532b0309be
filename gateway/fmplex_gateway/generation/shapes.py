"""Texts as OpenAI's objects. Pure."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from fmplex_broker.wire.streaming import Delta

Output = dict[str, Any]  # of a worker
_LOWEST_LOGPROB = -9999.0  # OpenAI's word for `never`, which JSON has no number for


class ChatShape:
    """The objects of /v1/chat/completions."""

    prefix, whole_object, part_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, output: Output) -> dict[str, Any]:
        """Return a whole text as the choice at `index`."""
        message = {"role": "assistant", "content": output["text"], "refusal": None}
        logprobs = _chat_logprobs(output.get("logprobs"))
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": output["finish_reason"]}

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Return the parts that come before a text's first one."""
        return [self._part(index, {"role": "assistant", "content": ""})]

    def part(self, index: int, delta: Delta) -> dict[str, Any]:
        """Return a piece of a text as a part of the choice at `index`."""
        return self._part(index, {"content": delta.text}, _chat_logprobs(delta.logprobs or None))

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """Return a text's last part, with the reason why it ended."""
        return self._part(index, {}, reason=reason)

    def _part(
        self, index: int, delta: dict[str, str], logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class CompletionShape:
    """The objects of /v1/completions. Parts have the shape of the whole; see `ChatShape` for the methods."""

    prefix, whole_object, part_object = "cmpl", "text_completion", "text_completion"

    def choice(self, index: int, output: Output) -> dict[str, Any]:
        """Return a whole text as the choice at `index`."""
        return _completion(index, output["text"], _logprobs(output.get("logprobs")), output["finish_reason"])

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Return no parts: nothing comes before a text's first one."""
        return []

    def part(self, index: int, delta: Delta) -> dict[str, Any]:
        """Return a piece of a text as a part of the choice at `index`."""
        return _completion(index, delta.text, _logprobs(delta.logprobs or None), None)

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """Return a text's last part, with the reason why it ended."""
        return _completion(index, "", None, reason)


def _completion(index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


Shape = ChatShape | CompletionShape


def envelope(shape: Shape, model: str, version: str, *, part: bool) -> dict[str, Any]:
    """Return what is around the choices; the same around every part of one answer."""
    return {
        "id": f"{shape.prefix}-{secrets.token_hex(12)}",
        "object": shape.part_object if part else shape.whole_object,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": version,
    }


def usage(outputs: Sequence[Output], n: int) -> dict[str, Any]:
    """Sum the tokens of all the texts of a call. A prompt counts once, however many of `n` texts go on from it."""
    firsts = outputs[::n]
    prompt = sum(output["prompt_tokens"] for output in firsts)
    completion = sum(output["completion_tokens"] for output in outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(output["cached_tokens"] for output in firsts)},
    }


def _chat_logprobs(entries: Sequence[dict[str, Any]] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    content = [
        _token_entry(entry) | {"top_logprobs": [_token_entry(other) for other in entry["top"]]} for entry in entries
    ]
    return {"content": content, "refusal": None}


def _token_entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {"token": entry["token"], "logprob": _logprob(entry), "bytes": list(_bytes(entry))}


def _logprobs(entries: Sequence[dict[str, Any]] | None) -> dict[str, Any] | None:
    """Return log-probabilities in the shape of /v1/completions."""
    if entries is None:
        return None
    return {
        "tokens": [_token_text(entry) for entry in entries],
        "token_logprobs": [_logprob(entry) for entry in entries],
        "top_logprobs": [_by_text(entry) for entry in entries],
        "text_offset": [entry["at"] for entry in entries],
    }


def _by_text(entry: dict[str, Any]) -> dict[str, float]:
    """Return the best tokens of a position, and the chosen one, by their texts. Where two read alike, as a letter and its byte do
    in some vocabularies, the second is written in bytes."""
    alike: dict[str, float] = {}
    for other in {e["id"]: e for e in [*entry["top"], entry]}.values():
        text = _token_text(other)
        alike.setdefault(text if text not in alike else _escaped(_bytes(other)), _logprob(other))
    return alike


def _logprob(entry: dict[str, Any]) -> float:
    logprob: float = entry["logprob"]
    return max(logprob, _LOWEST_LOGPROB)


def _bytes(entry: dict[str, Any]) -> bytes:
    return bytes(entry["bytes"]) if "bytes" in entry else entry["token"].encode()


def _token_text(entry: dict[str, Any]) -> str:
    return _escaped(_bytes(entry)) if "bytes" in entry else str(entry["token"])


def _escaped(data: bytes) -> str:
    """Write the bytes of a token that is no text, as OpenAI does."""
    return "bytes:" + "".join(chr(b) if 0x20 <= b < 0x7F and b != 0x5C else f"\\x{b:02x}" for b in data)
