"""Base of all adapter configs: fields are PEFT's own names; what is not known to be harmless is refused by name.

Ignoring an option that changes outputs would be a guess, so an option is either served, or known to say only how the adapter
was trained or stored, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from fmplex_broker.errors import PackageRejected

_INSTEAD = (
    "put a head into head.safetensors (weight, bias), and train a LoRA on embeddings and lm_head (target_modules)"
)
MODULES_TO_SAVE = f"whole modules beside the adapter are not served; {_INSTEAD}"
# Options of every kind of adapter that change nothing of what is computed from the saved tensors.
_STORED = (
    "auto_mapping base_model_name_or_path fan_in_fan_out inference_mode peft_version revision runtime_config task_type"
)
HARMLESS = frozenset(_STORED.split())


# PEFT stores the embeddings, and the language-model head, beside an adapter on them; they must be those of the backbone.
BASE_WEIGHT = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.weight")


def check_names(names: Iterable[str], own: Sequence[re.Pattern[str]], unknown: Callable[[str], str]) -> None:
    """Check that a file has tensors of these patterns only, each with a group `module`, and weights of the backbone beside them.
    Raises `PackageRejected` that says what is `unknown`."""
    names = list(names)
    changed = {match["module"] for name in names for pattern in own if (match := pattern.fullmatch(name))}
    for name in names:
        if not any(pattern.fullmatch(name) for pattern in own):
            base = BASE_WEIGHT.fullmatch(name)
            if base is None or base["module"] not in changed:
                raise rejected_tensor(unknown(name))


class AdapterConfig(BaseModel):
    """`adapter_config.json` of one kind of adapter.

    `refused`: option → what to do instead; `harmless`: options that may have any value; options that are false, empty or
    null are taken, whatever they are.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    refused: ClassVar[Mapping[str, str]] = {}
    harmless: ClassVar[frozenset[str]] = HARMLESS

    peft_type: str

    def check(self) -> None:
        """Check that every option can be served. Raises `PackageRejected` that names the first that cannot."""
        for option, value in (self.model_extra or {}).items():
            if value and option not in self.harmless:
                advice = self.refused.get(option, "this option is not known here; train without it")
                raise rejected(f"{option}: {advice}")

    def check_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the file holds what this kind has, and nothing else. Raises `PackageRejected`."""
        raise NotImplementedError


def whole_weight(key: str) -> str:
    """Say why a tensor of no adapter at all is refused."""
    return f"{key!r}: a whole weight is not served; {_INSTEAD}"


def rejected(message: str) -> PackageRejected:
    """Make the error for a config that is refused."""
    return PackageRejected(f"adapter_config.json: {message}", field="adapter")


def rejected_tensor(message: str) -> PackageRejected:
    """Make the error for a file of weights that is refused."""
    return PackageRejected(f"adapter_model.safetensors holds {message}", field="adapter")
