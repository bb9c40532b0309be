"""How much memory a piece of work has at most at a time, of tensors that it makes."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """`most`: bytes of the tensors made inside it that were there at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage(), given)
        return out

    def _note(self, memory: torch.UntypedStorage, given: set[int]) -> None:
        at = memory.data_ptr()
        if at in self._known or at in given:
            return
        nbytes = memory.nbytes()
        self._known.add(at)
        self.now += nbytes
        self.most = max(self.most, self.now)
        weakref.finalize(memory, self._gone, at, nbytes)

    def _gone(self, at: int, nbytes: int) -> None:
        self._known.discard(at)
        self.now -= nbytes
