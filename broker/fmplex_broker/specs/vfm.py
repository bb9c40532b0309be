"""The specification of a vFM that a team writes down. Pydantic; TOML on disk.

An unknown key is an error that names it. Everything here is immutable: a change is a new value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from fmplex_broker.specs.heads import Head, InputSpec
from fmplex_broker.specs.schema import Name, Spec, at_most

# Parts of a target that one pass may take. A job waits for one pass and runs in the next; the rest is for the way. A text's next
# token waits for one pass only.
_OF_LATENCY, _OF_GAP = 0.4, 0.8

# Virtual time advances by units / weight: a weight near zero would carry it beyond what a float can tell apart.
Weight = Annotated[float, Field(ge=1e-3, le=1e6)]


class Limits(Spec):
    """Limits of what a vFM may take. `max_pending` counts jobs waiting or running, `max_pending_bytes` their bytes in the broker;
    `max_call_bytes` bounds those of one call, `max_input_bytes` one input (the default: 256 embedded tokens of width 768).
    `rate` is tokens per second, for interactive and offline jobs each: an estimate when a job is sent, put right by what it has
    read and written when it ends. Offline jobs may fill half of `max_pending_bytes`."""

    max_pending: int = Field(default=4096, ge=1, le=1_000_000)
    max_pending_bytes: int = Field(default=256_000_000, ge=1024, le=1_000_000_000_000)
    max_call_bytes: int = Field(default=64_000_000, ge=1024, le=1_000_000_000_000)
    # Of a slower one a token would take hours; and the arithmetic of buckets stays within what numbers can tell apart.
    rate: float | None = Field(default=None, ge=1e-3, le=1e12)
    max_input_bytes: int = Field(default=786_432, ge=1, le=16_777_216)


class Targets(NamedTuple):
    """Targets of a vFM, in ms; 0: none. `latency_ms`: from enqueue to reply, `ttft_ms`: to a text's first token,
    `inter_token_ms`: from each token to the next."""

    latency_ms: float = 0.0
    ttft_ms: float = 0.0
    inter_token_ms: float = 0.0

    @property
    def pass_ms(self) -> float:
        """The longest pass with which all of them can be kept; 0 if there are none."""
        parts = ((self.latency_ms, _OF_LATENCY), (self.ttft_ms, _OF_LATENCY), (self.inter_token_ms, _OF_GAP))
        return min((part * target for target, part in parts if target > 0), default=0.0)


class Slo(Spec):
    """Targets for interactive jobs, while the vFM asks for no more than its share; the workers of its backbone keep their passes
    short enough for them. `latency_ms`: from enqueue to reply; of generated text `ttft_ms`: from enqueue to its first token,
    and `inter_token_ms`: from each token to the next. `deadline_ms`: how long a caller waits if the request does not say
    (default: a minute, for generated text ten); a job that cannot be done by then is answered, not run."""

    latency_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    ttft_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    inter_token_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    deadline_ms: int | None = Field(default=None, ge=1, le=86_400_000)

    @property
    def targets(self) -> Targets:
        """The targets as the broker keeps them."""
        return Targets(self.latency_ms or 0, self.ttft_ms or 0, self.inter_token_ms or 0)


class VfmSpec(Spec):
    """One virtual FM, as in a package's `vfm.toml`. Either `head`, or `heads`: several named outputs of one pass.

    `name`; `backbone`: the one it lives on; `input`: templates around the caller's texts; `weight`: its share of the device
    against the other vFMs; `limits`; `slo`: targets and deadline. The version (content digest) covers `backbone`, the heads,
    `input` and the package's files; weight, limits and SLO can change without making a version.
    """

    name: Name
    backbone: Name
    head: Head | None = None
    heads: Annotated[dict[Name, Head], at_most(64)] = Field(default_factory=dict, max_length=64)
    input: InputSpec = InputSpec()
    weight: Weight = 1.0
    limits: Limits = Limits()
    slo: Slo = Slo()

    @model_validator(mode="after")
    def _heads_fit(self) -> VfmSpec:
        if (self.head is None) == (not self.heads):
            raise ValueError("give either head, or heads (one table a name)")
        kinds = {head.kind for head in self.heads.values()}
        if "similarity" in kinds:
            raise ValueError("heads: a similarity head encodes two texts apart; give it a vFM of its own")
        if "generation" in kinds:
            raise ValueError("heads: generation goes on from a text; give it a vFM of its own (head, not heads)")
        if {"ranking", "tagging"} <= kinds:
            raise ValueError("heads: ranking reads pairs and tagging single texts; give one of them a vFM of its own")
        return self

    @model_validator(mode="after")
    def _input_fits(self) -> VfmSpec:
        if "generation" in self.kinds and (self.input.max_tokens is not None or self.input.truncate):
            raise ValueError(
                "input: max_tokens and truncate are of heads that read whole texts; generation goes on from them"
            )
        if self.input.token_ids and "embedding" not in self.kinds:
            raise ValueError('input: token_ids is of embedding heads; others are asked by text, or by {"input_ids"}')
        return self

    @property
    def outputs(self) -> Mapping[str, Head]:
        """All heads by name; the name of a single one is empty."""
        return {"": self.head} if self.head is not None else self.heads

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of the heads."""
        return frozenset(head.kind for head in self.outputs.values())

    @property
    def deadline_ms(self) -> int:
        """Deadline of a request that names none."""
        return self.slo.deadline_ms or (600_000 if "generation" in self.kinds else 60_000)


class VfmChange(Spec):
    """Operating values that PATCH may change at once; they make no version."""

    weight: Weight | None = None
    limits: Limits | None = None
    slo: Slo | None = None
