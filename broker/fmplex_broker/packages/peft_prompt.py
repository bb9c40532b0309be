"""Soft prompts as PEFT writes them: trained embeddings of virtual tokens that are put before every text.

Prompt tuning (Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning") and P-tuning (Liu et al. 2021),
whose encoder has run when PEFT saves it, so that both files hold `prompt_embeddings` [virtual tokens, width].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from fmplex_broker.packages.peft_config import (
    HARMLESS,
    MODULES_TO_SAVE,
    AdapterConfig,
    rejected,
    rejected_tensor,
    whole_weight,
)

PROMPT = "prompt_embeddings"
_TRAINING = """
    encoder_dropout encoder_hidden_size encoder_num_layers encoder_reparameterization_type num_attention_heads num_layers
    prompt_tuning_init prompt_tuning_init_state_dict_path prompt_tuning_init_text token_dim tokenizer_kwargs
    tokenizer_name_or_path
"""


class PromptConfig(AdapterConfig):
    """Config of a soft prompt. `num_transformer_submodules`: 2 for models of an encoder and a decoder, each with a prompt of
    its own."""

    refused: ClassVar[Mapping[str, str]] = {"modules_to_save": MODULES_TO_SAVE}
    harmless: ClassVar[frozenset[str]] = HARMLESS | frozenset(_TRAINING.split())

    num_virtual_tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    num_transformer_submodules: PositiveInt | None = None

    def check(self) -> None:
        """Check the options; see `AdapterConfig.check`."""
        super().check()
        if self.num_transformer_submodules not in (None, 1):
            raise rejected("num_transformer_submodules: encoder-decoder prompts are not served; train on the encoder")

    def check_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the tensors; see `AdapterConfig.check_tensors`."""
        for name in shapes:
            if name != PROMPT:
                raise rejected_tensor(whole_weight(name))
        shape = shapes.get(PROMPT)
        if shape is None or len(shape) != 2 or shape[0] != self.num_virtual_tokens:
            held = "no prompt_embeddings" if shape is None else f"prompt_embeddings {shape}"
            raise rejected_tensor(
                f"{held}; needed: ({self.num_virtual_tokens}, hidden size), as num_virtual_tokens says"
            )
