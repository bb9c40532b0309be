"""(IA)³ (Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"), as
PEFT writes it: one vector a linear layer that scales its output or, in feed-forward blocks, its input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from fmplex_broker.packages.peft_config import (
    HARMLESS,
    MODULES_TO_SAVE,
    AdapterConfig,
    check_pattern,
    rejected,
    rejected_tensor,
    whole_weight,
)

# The vector of one linear layer: [1, in] where it scales the input, else [out, 1].
IA3_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.ia3_l")


class Ia3Config(AdapterConfig):
    """Config of an (IA)³ adapter. `feedforward_modules`: endings of module names or, as one text, a regular expression of whole
    names."""

    refused: ClassVar[Mapping[str, str]] = {"modules_to_save": MODULES_TO_SAVE}
    harmless: ClassVar[frozenset[str]] = HARMLESS | {"target_modules", "exclude_modules", "init_ia3_weights"}

    feedforward_modules: str | tuple[str, ...] | None = None

    def feedforward(self, module: str) -> bool:
        """Tell whether the input of this linear is scaled, not its output; by the name in the model that PEFT wrapped
        (PEFT 0.21 `IA3Model._check_target_module_feedforward`)."""
        if isinstance(self.feedforward_modules, str):
            return re.fullmatch(self.feedforward_modules, module) is not None
        return module.endswith(self.feedforward_modules or ())

    def check(self) -> None:
        """Check the options; see `AdapterConfig.check`."""
        super().check()
        if self.feedforward_modules is None:  # PEFT writes down what it chose
            raise rejected("feedforward_modules: must be given, if need be empty; save it with PEFT's save_pretrained")
        if isinstance(self.feedforward_modules, str):
            check_pattern(self.feedforward_modules)

    def check_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the tensors; see `AdapterConfig.check_tensors`."""
        for name in shapes:
            if IA3_TENSOR.fullmatch(name) is None:
                about = "not an (IA)³ vector of a linear layer; save it with PEFT's save_pretrained"
                raise rejected_tensor(f"{name!r}: {about}" if "ia3_" in name else whole_weight(name))
