"""Training a LoRA adapter, and the head with it, by PEFT on a private copy of the backbone.

The model stays in evaluation mode, as it is served; only LoRA's own dropout is switched on, if asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.records import Record
from fmplex_broker.specs.fitting import FitSpec, LoraSpec
from fmplex_worker.tuning.encoder import FORWARD, EncodedExample, Encoder, targets
from fmplex_worker.tuning.tasks import Loss, Predictions, Task
from fmplex_worker.tuning.training import EarlyStopping, Head, Report, ValidationSplit, finite

LEARNING_RATE = 1e-3
HEAD_FACTOR = 3.0  # the head's learning rate, in those of the adapter
HEAD_DECAY = 0.1
WARM_UP = 0.1  # of all planned steps
LAST_RATE = 0.1  # of the learning rate, in the last planned step
CLIP = 1.0


def adapt(encoder: Encoder, lora: LoraSpec, name: str) -> PeftModel:
    """Copy the backbone's model, with a fresh adapter, whose configuration calls the backbone `name`.

    Raises `InvalidInput` (field `lora` or `lora.targets`).
    """
    model = copy.deepcopy(encoder.model)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.r,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=_targets(model, lora),
    )
    peft = get_peft_model(model, config)
    peft.peft_config["default"].base_model_name_or_path = name
    return peft


def _targets(model: nn.Module, lora: LoraSpec) -> list[str]:
    """List the full names of the linear layers of the encoder blocks, or of those that `lora.targets` names, whole or by last
    parts."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    # The stack of blocks is the largest list: embeddings and projections lie outside of it.
    prefix, blocks = max(stacks, key=lambda stack: sum(p.numel() for p in stack[1].parameters()))
    linears = [f"{prefix}.{name}" for name, module in blocks.named_modules() if isinstance(module, nn.Linear)]
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
    encoder: Encoder,
    head: Head | None,
    task: Task[Record],
    items: Sequence[EncodedExample],
    chosen: ValidationSplit,
    spec: FitSpec,
    report: Report,
) -> int:
    """Train the adapter of `encoder` and `head` (None: a head without weights) in place. Returns the number of epochs.

    They end in the best state on the validation slice. Raises `NonFiniteOutput`.
    """
    learn, check = [items[i] for i in chosen.fit], [items[i] for i in chosen.validate]
    loss_of, stopper = task.loss(targets(learn)), EarlyStopping(spec.patience)
    generator = torch.Generator().manual_seed(spec.seed % 2**63)
    trained = _AdaptedModel(encoder, head.to(encoder.device) if head is not None else None)
    optimizer, schedule = _optimizer(trained, spec, steps=spec.epochs * -(-len(learn) // spec.batch_size))
    epoch = 0
    for epoch in range(1, spec.epochs + 1):
        losses, seen = 0.0, []
        for batch in batches(learn, spec.batch_size, task.outputs == 0, generator):
            outputs = trained(batch, task, dropout=True)
            loss = loss_of(outputs, targets(batch).to(outputs.device))
            losses += finite(loss, epoch) * len(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            seen.append(Predictions(outputs.detach().cpu(), batch))
        score, checked = _validate(trained, task, seen, check, loss_of)
        report(epoch, losses / len(learn), score)
        if stopper.stop(epoch, score, finite(checked, epoch), trained.state()):
            break
    trained.restore(stopper.state)
    return epoch


def _validate(
    trained: _AdaptedModel, task: Task[Record], seen: list[Predictions], check: list[EncodedExample], loss_of: Loss
) -> tuple[float, Tensor]:
    """Compute score and loss on the validation slice. What the epoch saw while training is the reference: slightly stale, but
    free."""
    with torch.no_grad():
        parts = [trained(check[at : at + FORWARD], task).cpu() for at in range(0, len(check), FORWARD)]
    outputs = torch.cat(parts)
    reference = Predictions(torch.cat([part.outputs for part in seen]), [item for part in seen for item in part.items])
    return task.score(reference, Predictions(outputs, check)), loss_of(outputs, targets(check))


class _AdaptedModel:
    """Adapter and head together, as one model to train."""

    def __init__(self, encoder: Encoder, head: Head | None) -> None:
        self._encoder, self._head = encoder, head
        self._dropouts = [m.lora_dropout for m in encoder.model.modules() if isinstance(m, LoraLayer)]

    def __call__(self, items: Sequence[EncodedExample], task: Task[Record], dropout: bool = False) -> Tensor:
        for module in self._dropouts:
            module.train(dropout)
        rows = self._encoder.rows(items, task.pooling)
        return rows if self._head is None else self._head(rows)

    def state(self) -> dict[str, Tensor]:
        trained = [(f"adapter.{n}", p) for n, p in self._encoder.model.named_parameters() if p.requires_grad]
        if self._head is not None:
            trained += [(f"head.{n}", p) for n, p in self._head.named_parameters()]
        return dict(trained)

    def parameters(self) -> list[Tensor]:
        return list(self.state().values())

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Back to `state`, with dropout off."""
        for name, parameter in self.state().items():
            parameter.copy_(state[name])
        for module in self._dropouts:
            module.eval()


def _optimizer(
    trained: _AdaptedModel, spec: FitSpec, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Make an AdamW whose rate rises linearly during `WARM_UP` of all steps and then falls linearly to `LAST_RATE`."""
    rate = spec.learning_rate or LEARNING_RATE
    named = trained.state()
    adapter = [p for name, p in named.items() if name.startswith("adapter.")]
    head = [p for name, p in named.items() if name.startswith("head.")]
    groups = [{"params": adapter, "lr": rate, "weight_decay": 0.0}]
    if head:
        groups.append({"params": head, "lr": rate * HEAD_FACTOR, "weight_decay": HEAD_DECAY})
    warm = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 1 - (1 - LAST_RATE) * (step - warm) / max(1, steps - warm)

    optimizer = torch.optim.AdamW(groups)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def batches(
    items: Sequence[EncodedExample], size: int, partners: bool, generator: torch.Generator
) -> list[list[EncodedExample]]:
    """Make one epoch's batches in random order; with `partners`, for losses that compare, items of one stratum come in twos."""
    order = torch.randperm(len(items), generator=generator).tolist()
    if partners:
        order = _in_twos(order, items, generator)
    return [[items[i] for i in order[at : at + size]] for at in range(0, len(order), size)]


def _in_twos(order: list[int], items: Sequence[EncodedExample], generator: torch.Generator) -> list[int]:
    waiting: dict[str, int] = {}
    twos: list[tuple[int, ...]] = []
    for i in order:
        if items[i].stratum in waiting:
            twos.append((waiting.pop(items[i].stratum), i))
        else:
            waiting[items[i].stratum] = i
    twos += [(i,) for i in waiting.values()]
    return [i for at in torch.randperm(len(twos), generator=generator).tolist() for i in twos[at]]
