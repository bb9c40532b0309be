"""Messages between a client and the process that trains models of text: one spec a line in, one event a line out (JSON).

The client starts `python -m fmplex_worker.tuning.decoder`, writes specs to its standard input and reads events from its standard
output until each spec has ended in `done` or `failed`.

Texts are a JSONL file: `{"text": …}`, or `{"messages": [{"role": "user", "content": …}, {"role": "assistant", …}]}`, as the chat
template puts them. Their last `held_out` share, by line order, is not trained on; the score is the share of its tokens (of the
assistant's words, where a LoRA is trained) that the model finds most likely.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fmplex_broker.specs.fitting import Factor, FitDone, FitFailed, Ia3Spec, LoraSpec
from fmplex_broker.specs.fleet import Dtype
from fmplex_broker.specs.schema import Name, Spec


class _Training(Spec):
    """Common part of trainings: `steps` of about `batch_tokens` tokens each (of a decoder padding included); `learning_rate` at
    the highest. `ask`: a question (a user's message) whose answer is reported now and then, of a decoder."""

    name: Name
    data: Path
    out: Path
    steps: int = Field(default=300, ge=1, le=1_000_000)
    batch_tokens: int = Field(default=2048, ge=16, le=1_000_000)
    learning_rate: Factor = 2e-3
    held_out: float = Field(default=0.02, gt=0, lt=1)
    ask: str = ""
    seed: int = 0
    threads: int | None = Field(default=None, ge=1)


class DecoderSpec(_Training):
    """Train a decoder (a Llama) from nothing, and a byte-level BPE tokenizer with a chat template for it. `out`: a folder that
    transformers loads."""

    kind: Literal["decoder"] = "decoder"
    vocabulary: int = Field(default=2048, ge=300, le=65_536)
    width: int = Field(default=256, ge=16, le=4096)
    inner: int = Field(default=688, ge=16, le=16_384)
    layers: int = Field(default=4, ge=1, le=64)
    heads: int = Field(default=4, ge=1, le=64)
    kv_heads: int = Field(default=2, ge=1, le=64)
    positions: int = Field(default=512, ge=32, le=65_536)


class TextLoraSpec(_Training):
    """Train a LoRA, or with `ia3` an (IA)³, on the decoder `model` and write the package of a generating vFM on `backbone`.

    `revision`, `dtype` and `positions` (of a text in all) are those with which it is hosted. `epochs`: how often each text is
    learnt, instead of `steps`; `batch_size`: texts of a step, instead of `batch_tokens`. `system`, `chat_template`: as the vFM
    will have them; conversations are put in the same way. `truncate`: texts that are too long are cut. `patience`: evaluations
    without a better loss before it stops early, where there is something to validate on. `learning_rate_multiplier`: of the
    learning rate.
    """

    kind: Literal["text_lora"] = "text_lora"
    backbone: Name
    model: str
    revision: str | None = None
    dtype: Dtype = "float32"
    positions: int | None = Field(default=None, ge=1)
    lora: LoraSpec = LoraSpec()
    ia3: Ia3Spec | None = None
    epochs: int | None = Field(default=None, ge=1, le=10_000)
    max_tokens: int = Field(default=256, ge=1)
    system: str = Field(default="", max_length=65_536)
    chat_template: str | None = Field(default=None, min_length=1, max_length=65_536)
    truncate: bool = False
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    patience: int = Field(default=5, ge=1)
    learning_rate_multiplier: float = Field(default=1.0, gt=0, le=1e6)


TextSpec = Annotated[DecoderSpec | TextLoraSpec, Field(discriminator="kind")]


class TextStarted(Spec):
    """Training begins. `parameters`: of the model; `trained`: how many of them are."""

    event: Literal["started"] = "started"
    name: str
    texts: int
    tokens: int
    parameters: int
    trained: int


class TextStep(Spec):
    """Progress after a step. `loss`: mean since the last report; `tokens`: trained on so far; `sample`: an answer to `ask`, as
    far as it can by now."""

    event: Literal["step"] = "step"
    name: str
    step: int
    steps: int
    loss: float
    tokens: int
    sample: str = ""


TextEvent = Annotated[TextStarted | TextStep | FitDone | FitFailed, Field(discriminator="event")]
