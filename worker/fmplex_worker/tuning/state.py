"""The state of a training between two steps, in memory and as bytes: a safetensors file whose header has what is no tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fmplex_broker.errors import InvalidInput

_KEY = "fmplex"


@dataclass(frozen=True, slots=True)
class State:
    """`tensors`, which nobody changes in place, and `values`, plain ones that JSON can hold. `step`: after how many it was
    taken."""

    step: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix` and a dot, by the rest of their names."""
        start = f"{prefix}."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """`fmplex_worker.training.Snapshot` of the training that `order` names; `files`: makes the package of a state of it."""

    order: str
    state: State
    files: Callable[[State], dict[str, bytes]]

    @property
    def step(self) -> int:
        """The step that it was taken after."""
        return self.state.step

    def dump(self) -> bytes:
        """Serialise it: the same state gives the same bytes."""
        said = {"order": self.order, "step": self.state.step, "values": self.state.values}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.state.tensors.items()}
        return safetensors.torch.save(tensors, {_KEY: json.dumps(said, sort_keys=True)})

    def package(self) -> dict[str, bytes]:
        """Return the files of the package as of this state; see `Snapshot.package`."""
        return self.files(self.state)


def read_state(data: bytes, order: str) -> State:
    """Read a dumped snapshot. Raises `InvalidInput` (field `state`): damaged, or of another training than `order`."""
    try:
        size = int.from_bytes(data[:8], "little")
        said = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_KEY])
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise InvalidInput(f"not a whole checkpoint of a training ({e}); use an earlier one", field="state") from e
    if said["order"] != order:
        raise InvalidInput(
            "the checkpoint belongs to another training: other settings or other examples; start anew, or give it what it "
            "was made with",
            field="state",
        )
    return State(said["step"], tensors, said["values"])


def named(prefix: str, tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], copy: bool) -> dict[str, Tensor]:
    """Put `prefix` and a dot before the names of tensors, which are copied if they will be changed in place."""
    return {
        f"{prefix}.{name}": tensor.detach().clone() if copy else tensor.detach()
        for name, tensor in dict(tensors).items()
    }
