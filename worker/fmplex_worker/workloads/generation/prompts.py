"""Prompts: the input of a generating vFM (a text, token ids, or the messages of a chat) as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fmplex_broker.errors import FmplexError, InvalidInput
from fmplex_broker.specs.heads import Generation, InputSpec
from fmplex_broker.specs.sampling import GenerationParams
from fmplex_broker.wire.tensors import Tensor
from fmplex_worker.workloads.generation.sandboxes import Sandboxes


class Prompts:
    """Turns inputs into tokens. Any thread. `tokenizer`: a transformers tokenizer, used for its chat template only;
    `encode(text, special)`: token ids, with the special tokens that the tokenizer adds or without."""

    def __init__(
        self, tokenizer: Any, sandbox: Sandboxes, encode: Callable[[str, bool], list[int]], vocabulary: int
    ) -> None:
        self._tokenizer = tokenizer
        self._sandbox = sandbox
        self._encode = encode
        self._vocabulary = vocabulary

    def tokens(self, value: Any, head: Generation, around: InputSpec, params: GenerationParams) -> list[int]:
        """Return the tokens of an input. Raises `InvalidInput`."""
        if isinstance(value, dict) and "messages" in value:
            tokens = self._encode(self._chat(value["messages"], head, params), bool(params.add_special_tokens))
        elif isinstance(value, dict) and "input_ids" in value:
            tokens = _ids(value["input_ids"])
        else:
            text = value["text"] if isinstance(value, dict) else value
            tokens = self._encode(around.text(text), params.add_special_tokens is not False)
        if not tokens or max(tokens) >= self._vocabulary or min(tokens) < 0:
            raise InvalidInput("input: gives no tokens that this model knows; send another text", field="input")
        return tokens

    def _chat(self, messages: Sequence[dict[str, str]], head: Generation, params: GenerationParams) -> str:
        if not head.chat_template and not getattr(self._tokenizer, "chat_template", None):
            raise InvalidInput(
                "this backbone's tokenizer has no chat template: give the vFM a head.chat_template, or send a text "
                "(/v1/completions)",
                field="input.messages",
            )
        if head.system and not any(message["role"] == "system" for message in messages):
            messages = [{"role": "system", "content": head.system}, *messages]
        go_on, begin = params.continue_final_message, params.add_generation_prompt
        how = {
            "add_generation_prompt": not go_on if begin is None else begin,
            "continue_final_message": go_on,
        }
        try:
            if head.chat_template or params.chat_template_kwargs:
                template = head.chat_template or self._tokenizer.get_chat_template()
                variables = self._tokenizer.special_tokens_map | params.chat_template_kwargs
                return self._sandbox.render(template, messages, variables | how)
            # The tokenizer's own is the operator's.
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **how))
        except FmplexError:
            raise
        except Exception as e:  # whatever a template raises: they check the order of roles by raising
            raise InvalidInput(f"messages: the chat template refuses them ({e})", field="input.messages") from e


def _ids(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        return [int(n) for n in np.frombuffer(value.data, dtype=value.dtype)]
    return [int(n) for n in value]
