"""Training a LoRA adapter, and the head with it, by PEFT on a private copy of the backbone.

The model stays in evaluation mode, as it is served; only LoRA's own dropout is switched on, if asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fmplex_broker.errors import InvalidInput
from fmplex_broker.fitting import FitSpec, LoraSpec
from fmplex_worker.tuning.backbone import Backbone, Item, targets
from fmplex_worker.tuning.data import Record
from fmplex_worker.tuning.tasks import Loss, Part, Task
from fmplex_worker.tuning.training import Head, Report, Slices, Stopper, finite

LEARNING_RATE = 1e-3
HEAD_LEARNING_RATE = 3e-3  # times learning_rate / LEARNING_RATE, if that is given
WARM_UP = 0.1  # of all planned steps
LAST_RATE = 0.1  # of the learning rate, in the last planned step
CLIP = 1.0


class Adapted(NamedTuple):
    """`backbone.model` is the PEFT model."""

    backbone: Backbone
    head: Head | None
    epochs: int


def adapt(backbone: Backbone, lora: LoraSpec, name: str) -> Backbone:
    """A private copy of the backbone with a fresh adapter. `name` goes into the adapter's configuration. Raises
    `InvalidInput` (field `lora.targets`)."""
    model = copy.deepcopy(backbone.model)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.r,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=_targets(model, lora),
    )
    peft = get_peft_model(model, config)
    peft.peft_config["default"].base_model_name_or_path = name
    return replace(backbone, model=peft)


def _targets(model: nn.Module, lora: LoraSpec) -> list[str]:
    """Full names of the linear layers of the encoder blocks, of those that `lora.targets` names (whole or by last parts)."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise InvalidInput("this backbone has no stack of blocks to put LoRA on", field="lora")
    # The stack of blocks is the largest list: poolers and embeddings lie outside of it.
    prefix, blocks = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()))
    linears = [f"{prefix}.{name}" for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise InvalidInput("the blocks of this backbone have no linear layers to put LoRA on", field="lora")
    if lora.targets is None:
        return linears
    for target in lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linears):
            known = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise InvalidInput(
                f"lora.targets: no linear layer of the blocks is called {target!r}; there are {known}",
                field="lora.targets",
            )
    return [name for name in linears if any(f".{name}".endswith(f".{target}") for target in lora.targets)]


def fit_lora(
    adapted: Backbone,
    head: Head | None,
    task: Task[Record],
    items: Sequence[Item],
    chosen: Slices,
    spec: FitSpec,
    report: Report,
) -> Adapted:
    """Train adapter and head; the best state on the validation slice is restored. `head` None: a head without weights."""
    learn, check = [items[i] for i in chosen.fit], [items[i] for i in chosen.validate]
    loss_of, stopper = task.loss(targets(learn)), Stopper(spec.patience)
    generator = torch.Generator().manual_seed(spec.seed)
    trained = _Trained(adapted, head.to(adapted.device) if head is not None else None)
    optimizer, schedule = _optimizer(trained, spec, steps=spec.epochs * -(-len(learn) // spec.batch_size))
    epoch = 0
    for epoch in range(1, spec.epochs + 1):
        losses, seen = 0.0, []
        for batch in batches(learn, spec.batch_size, task.outputs == 0, generator):
            outputs = trained(batch, task, dropout=True)
            loss = loss_of(outputs, targets(batch).to(outputs.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            losses += finite(loss, epoch) * len(batch)
            seen.append(Part(outputs.detach().cpu(), batch))
        score, checked = _validate(trained, task, seen, check, loss_of)
        report(epoch, losses / len(learn), score)
        if stopper.stop(epoch, score, finite(torch.tensor(checked), epoch), trained.state()):
            break
    trained.restore(stopper.state)
    return Adapted(adapted, head, epoch)


def _validate(
    trained: _Trained, task: Task[Record], seen: list[Part], check: list[Item], loss_of: Loss
) -> tuple[float, float]:
    """Score and loss on the validation slice. What the epoch saw while training serves as reference: slightly stale, but free."""
    with torch.no_grad():
        parts = [Part(trained(check[at : at + 32], task).cpu(), check[at : at + 32]) for at in range(0, len(check), 32)]
        outputs = torch.cat([part.outputs for part in parts])
        reference = Part(torch.cat([part.outputs for part in seen]), [item for part in seen for item in part.items])
        return task.score(reference, Part(outputs, check)), float(loss_of(outputs, targets(check)))


class _Trained:
    """Adapter and head as one thing to train."""

    def __init__(self, backbone: Backbone, head: Head | None) -> None:
        self._backbone, self._head = backbone, head
        self._dropouts = [m.lora_dropout for m in backbone.model.modules() if isinstance(m, LoraLayer)]

    def __call__(self, items: Sequence[Item], task: Task[Record], dropout: bool = False) -> Tensor:
        for module in self._dropouts:
            module.train(dropout)
        rows = self._backbone.rows(items, task.pooling)
        return rows if self._head is None else self._head(rows)

    def state(self) -> dict[str, Tensor]:
        trained = [(f"adapter.{n}", p) for n, p in self._backbone.model.named_parameters() if p.requires_grad]
        if self._head is not None:
            trained += [(f"head.{n}", p) for n, p in self._head.named_parameters()]
        return dict(trained)

    def parameters(self) -> list[Tensor]:
        return list(self.state().values())

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.state().items():
            parameter.copy_(state[name])
        for module in self._dropouts:
            module.eval()


def _optimizer(
    trained: _Trained, spec: FitSpec, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    rate = spec.learning_rate or LEARNING_RATE
    named = trained.state()
    groups = [
        {"params": [p for name, p in named.items() if name.startswith("adapter.")], "lr": rate, "weight_decay": 0.0},
        {
            "params": [p for name, p in named.items() if name.startswith("head.")],
            "lr": rate / LEARNING_RATE * HEAD_LEARNING_RATE,
            "weight_decay": 0.1,
        },
    ]
    warm = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 1 - (1 - LAST_RATE) * (step - warm) / max(1, steps - warm)

    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def batches(items: Sequence[Item], size: int, partners: bool, generator: torch.Generator) -> list[list[Item]]:
    """One epoch's batches in random order.

    By like length, so that little is padding, with some noise so that batches differ between epochs; with `partners`, for
    losses that compare, instead such that items of one stratum come in twos.
    """
    order = torch.randperm(len(items), generator=generator).tolist()
    if partners:
        order = _in_twos(order, items, generator)
    else:
        noise = (0.8 + 0.4 * torch.rand(len(items), generator=generator)).tolist()
        order.sort(key=lambda i: len(items[i]) * noise[i])
    cut = [order[at : at + size] for at in range(0, len(order), size)]
    return [[items[i] for i in cut[at]] for at in torch.randperm(len(cut), generator=generator).tolist()]


def _in_twos(order: list[int], items: Sequence[Item], generator: torch.Generator) -> list[int]:
    waiting: dict[str, int] = {}
    twos: list[tuple[int, ...]] = []
    for i in order:
        if items[i].stratum in waiting:
            twos.append((waiting.pop(items[i].stratum), i))
        else:
            waiting[items[i].stratum] = i
    twos += [(i,) for i in waiting.values()]
    return [i for at in torch.randperm(len(twos), generator=generator).tolist() for i in twos[at]]
