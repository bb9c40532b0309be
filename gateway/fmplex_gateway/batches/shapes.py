"""The bodies of requests for batches, in OpenAI's shape."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.batches import Metadata, Order, Window, new_batch_id
from fmplex_broker.specs.files import LEAST_LIFE_S, LIFE_S, MOST_LIFE_S, FileId
from fmplex_gateway.access import Principal
from fmplex_gateway.answers import ENDPOINTS, vfm_of
from fmplex_gateway.schemas import Body


class ExpiresAfter(Body):
    """When the files of a batch expire: so many seconds after they were made."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=LEAST_LIFE_S, le=MOST_LIFE_S)


class BatchBody(Body):
    """The body that orders a batch."""

    input_file_id: FileId
    endpoint: str
    completion_window: Window = "24h"
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None

    def order(self, who: Principal) -> Order:
        """Return what is ordered, by whom. Raises `InvalidInput` for an endpoint of which there are no batches."""
        if self.endpoint not in ENDPOINTS and vfm_of(self.endpoint) is None:
            raise InvalidInput(
                f"endpoint: {self.endpoint[:64]!r} has no batches; there are {', '.join(ENDPOINTS)}; of the last, as it "
                "stands here, each line's url names its vFM",
                field="endpoint",
            )
        life = self.output_expires_after.seconds if self.output_expires_after else LIFE_S
        return Order(
            id=new_batch_id(),
            owner=who.name,
            models=("*",) if who.uses_all else who.models,
            endpoint=self.endpoint,
            input_file_id=self.input_file_id,
            completion_window=self.completion_window,
            metadata=self.metadata,
            output_life_s=life,
        )
