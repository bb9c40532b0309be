"""Texts and conversations as they are learnt: the tokens that a call would be answered from, and those of the answer."""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_broker.errors import InvalidInput, TextTooLong
from fmplex_broker.examples.reading import listed
from fmplex_broker.examples.texts import PlainText, Record
from fmplex_broker.specs.heads import Generation, InputSpec
from fmplex_broker.specs.sampling import GenerationParams
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.tuning.decoder.examples import TextExample
from fmplex_worker.workloads.generation.prompts import Prompts
from fmplex_worker.workloads.generation.sandboxes import Sandboxes


class Answers:
    """Turns records into tokens as a vFM with this head is asked, and as it is to answer. Use it in a `with` block."""

    def __init__(self, backbone: Backbone, head: Generation) -> None:
        lm_head = backbone.lm_head
        if lm_head is None:
            raise InvalidInput(
                f"{backbone.spec.model!r} has no language-model head, so it generates no text; train a head", field="model"
            )
        self._backbone, self._head = backbone, head
        self._sandboxes = Sandboxes()
        self._prompts = Prompts(lm_head.templates, self._sandboxes, backbone.tokenizer.ids, lm_head.vocabulary)
        own = lm_head.templates.eos_token_id
        self._ends = lm_head.ends
        self._end = own if own in lm_head.ends else min(lm_head.ends, default=None)
