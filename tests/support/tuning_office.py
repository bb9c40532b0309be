"""A gateway behind a real socket, over a backbone with a worker that tunes, which tests play by hand."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmplex_broker.specs.tune_records import TuneError
from fmplex_broker.streams.tune_owner import HeldTune
from tests.support.tunes import Hand, at, checkpoint
from tests.unit.gateway.serving import serving
from tests.unit.gateway.site import BACKBONE, Site, spec

STEPS = 100


class TuningOffice:
    """The gateway's `url`, and what its worker does."""

    def __init__(self, url: str, hand: Hand, do: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self.url = url
        self._hand = hand
        self._do = do

    def take(self) -> HeldTune:
        """Take the job that waits."""
        held: HeldTune = self._do(self._hand.took())
        return held

    def offered(self) -> HeldTune | None:
        """Take the job that waits, None if none does yet."""
        held: HeldTune | None = self._do(self._hand.take())
        return held

    def train(self, held: HeldTune, *steps: int, best: int = 0) -> None:
        """Train up to these steps, with a checkpoint at each; losses fall."""
        for step in steps:
            loss = round(1 / step, 4)
            data = {
                "step": step,
                "total_steps": STEPS,
                "train_loss": loss,
                "valid_loss": loss + 0.1,
                "tokens": 10 * step,
            }
            held.say(f"Step {step}/{STEPS}: training loss {loss}", data=data)
            progress = at(step, loss=loss, validation=loss + 0.1, tokens_s=800.0, share=0.25)
            self._do(self._hand.save(held, progress, checkpoint(step, best=step == best)))

    def succeed(self, held: HeldTune, vfm: str) -> None:
        """End a job; what it made serves."""
        self._do(
            self._hand.finish(held, "succeeded", progress=at(STEPS, loss=0.01, validation=0.11), published=(vfm, "v1"))
        )

    def fail(self, held: HeldTune, code: str, message: str) -> None:
        """End a job in failure."""
        self._do(self._hand.finish(held, "failed", error=TuneError(code=code, message=message)))


@contextmanager
def tuning_office(folder: Path, *others: str) -> Iterator[TuningOffice]:
    """Run such a gateway, whose vFM `alike` compares texts; there are workers that tune for `others`, backbones, too."""
    with serving(folder, loop="asyncio") as running:
        place = running.place
        hand = running.do(_begin(place))
        for backbone in others:
            running.do(_hand(place, backbone))
        yield TuningOffice(f"http://127.0.0.1:{running.port}", hand, running.do)


async def _begin(place: Site) -> Hand:
    await place.serve(spec("alike", head={"kind": "similarity"}))
    return await _hand(place, BACKBONE)


async def _hand(place: Site, backbone: str) -> Hand:
    consumer = await place.worker(f"tunes-{backbone}", backbone)
    hand = Hand(place.queue.redis, place.queue.scripts, backbone, consumer.worker)
    assert await hand.take() is None
    return hand
