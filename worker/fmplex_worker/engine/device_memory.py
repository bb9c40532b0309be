"""What a device has, and what a pass takes of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

from fmplex_worker.backbones.backbone import Backbone

# Of a container: control groups of version 2, and of version 1.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# Activations of a token, in widths of the hidden states and of the widest linear: a stream, its norm, queries, keys, values and
# what comes of them, a layer's inner states. Where attention keeps scores, they are there twice.
# tests/unit/compute/test_memory.py measures families.
_HIDDEN, _WIDE, _SCORES, _LOGITS = 9, 4, 2, 3


def device_memory(device: torch.device) -> int:
    """Return the bytes that a device has for this process, with what it has taken already; on a CPU those of the machine, or of
    the container that it is in."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return min([int(psutil.virtual_memory().total), *_container_limits()])


def _container_limits() -> list[int]:
    found = []
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # there is no such file, or no limit ("max")
            found.append(int(path.read_text()))
    return found


def pass_bytes(backbone: Backbone, units: int) -> int:
    """Predict the bytes that a pass of so many tokens takes while it runs, at most: its widest layer, or the logits of as many
    texts."""
    config = backbone.model.config
    wide = max((max(target.inputs, target.outputs) for target in backbone.targets.values()), default=backbone.hidden)
    token = _HIDDEN * backbone.hidden + _WIDE * wide
    if backbone.family.adapt is not None or getattr(config, "attn_logit_softcapping", None):
        token += _SCORES * int(getattr(config, "num_attention_heads", 1)) * min(units, backbone.max_tokens)
    logits = 0 if backbone.lm_head is None else _LOGITS * units * backbone.lm_head.vocabulary * 4
    return max(units * token * backbone.dtype.itemsize, logits)
