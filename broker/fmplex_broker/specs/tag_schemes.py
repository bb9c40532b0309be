"""Labels of tokens that say where spans begin and end: BIO, BIOES and BILOU (Ratinov and Roth 2009). Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_TAG = re.compile(r"([BIELSU])[-_](.+)", re.DOTALL)
OPENING, CLOSING = frozenset("BSU"), frozenset("ELSU")


class Tag(NamedTuple):
    """A label as a tag: `place` in the span (B, I, E, L, S, U), and the `kind` of the span."""

    place: str
    kind: str


def read_tags(labels: Sequence[str]) -> tuple[Tag, ...] | None:
    """Read labels as the tags of a scheme; None if they are plain names.

    They are tags if all begin with a place, and show that it is one: some kind has several tags, or all are I of several kinds.
    """
    found = [_TAG.fullmatch(label) for label in labels]
    tags = tuple(Tag(match[1], match[2]) for match in found if match is not None)
    if len(tags) < len(labels):
        return None
    several = max(Counter(tag.kind for tag in tags).values(), default=0) > 1
    inside_only = len(tags) > 1 and all(tag.place == "I" for tag in tags)
    return tags if several or inside_only else None
