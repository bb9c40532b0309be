"""The scheduler's terms: flows wait, items are picked, a plan is one pass. Plain values, no behaviour."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, OFFLINE, Flow

__all__ = ["CLASSES", "INTERACTIVE", "OFFLINE", "Flow", "Item", "Phase", "Plan", "Room", "Share"]

Phase = Literal["encode", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Item:
    """One job's work for one pass.

    `units` (packed tokens, patches, points, KV read) carry the cost; `segment` and `head` name the
    adapter and the output layer, each of which costs once a pass however many items share it. Items pack
    together only if their buckets are equal, so None packs with None. `alone` is for a redelivered job,
    which may have killed its pass. `follows`: not the first that its job asks for now, so the first ones of
    its flow's other jobs go before it. `deadline`: in seconds, on the clock of `Scheduler.plan`.
    """

    key: str
    flow: Flow
    phase: Phase
    units: int
    bucket: Hashable | None = None
    segment: Hashable | None = None
    head: Hashable | None = None
    alone: bool = False
    deadline: float | None = None
    follows: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """Room that the engine has now: an item of more units still runs, alone; with no units or no items nothing does. `riders`:
    whether offline items may be in an interactive pass."""

    units: int
    items: int
    riders: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """One pass, in the order picked: items of one bucket, those of its class first, offline ones that ride with interactive ones
    behind them; and the price put down for each. It is expected to take `seconds`.

    `number` tells passes in flight apart: a plan is settled by exactly one `charge`.
    """

    number: int
    cls: str
    bucket: Hashable | None
    items: tuple[Item, ...]
    prices: tuple[float, ...]
    units: int
    seconds: float

    @property
    def units_by_class(self) -> dict[str, int]:
        """Units of the items of each class."""
        units = dict.fromkeys(CLASSES, 0)
        for item in self.items:
            units[item.flow.cls] += item.units
        return units


@dataclass(frozen=True, slots=True)
class Share:
    """The account of a flow as an operator sees it. In seconds; a negative deficit is a debt."""

    weight: float
    charged: float
    deficit: float
    waiting: int
