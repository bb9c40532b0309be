"""(IA)³ (Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"), as
PEFT writes it: one vector a linear layer that scales its output or, in feed-forward blocks, its input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar

from fmplex_broker.packages.name_patterns import MAX_LENGTH, MAX_PATTERNS, NamePatterns, check_patterns
from fmplex_broker.packages.peft_config import (
    HARMLESS,
    MODULES_TO_SAVE,
    AdapterConfig,
    check_names,
    rejected,
    whole_weight,
)
from fmplex_broker.specs.schema import at_most

# The vector of one linear layer: [1, in] where it scales the input, else [out, 1].
IA3_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.ia3_l")


class Ia3Config(AdapterConfig):
    """Config of an (IA)³ adapter. `feedforward_modules`: endings of module names or, as one text, a regular expression of whole
    names."""

    refused: ClassVar[Mapping[str, str]] = {"modules_to_save": MODULES_TO_SAVE}
    harmless: ClassVar[frozenset[str]] = HARMLESS | {"target_modules", "exclude_modules", "init_ia3_weights"}

    feedforward_modules: Annotated[str | tuple[str, ...] | None, at_most(MAX_PATTERNS)] = None

    def feedforward(self, module: str) -> bool:
        """Tell whether the input of this linear is scaled, not its output; by the name in the model that PEFT wrapped
        (PEFT 0.21 `IA3Model._check_target_module_feedforward`)."""
        if isinstance(self.feedforward_modules, str):
            return self._expression.first(module) is not None
        return module.endswith(self.feedforward_modules or ())

    @cached_property
    def _expression(self) -> NamePatterns:
        return NamePatterns([self.feedforward_modules] if isinstance(self.feedforward_modules, str) else [])

    def check(self) -> None:
        """Check the options; see `AdapterConfig.check`."""
        super().check()
        if self.feedforward_modules is None:  # PEFT writes down what it chose
            raise rejected("feedforward_modules: must be given, if need be empty; save it with PEFT's save_pretrained")
        if isinstance(self.feedforward_modules, str):
            check_patterns("feedforward_modules", [self.feedforward_modules])
        elif any(len(name) > MAX_LENGTH for name in self.feedforward_modules):
            raise rejected(f"feedforward_modules: a name has {MAX_LENGTH} characters at most")

    def check_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the tensors; see `AdapterConfig.check_tensors`."""
        check_names(shapes, (IA3_TENSOR,), _unknown)


def _unknown(key: str) -> str:
    about = "not an (IA)³ vector of a linear layer; save it with PEFT's save_pretrained"
    return f"{key!r}: {about}" if "ia3_" in key else whole_weight(key)
