"""Keys: everything of one backbone shares one cluster slot, and no two names meet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.streams.keys import Keys
from fmplex_broker.wire.messages import CLASSES, Flow

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")


def all_keys(backbone: str, name: str) -> list[str]:
    keys = Keys(backbone)
    flows = [keys.queue(Flow(name, cls)) for cls in CLASSES] + [keys.ready(cls) for cls in CLASSES]
    per_name = (lambda name: keys.part("v", name), keys.result, keys.blob, keys.inbox, keys.stats, keys.here)
    fixed = [keys.vfms, keys.wake, keys.leases, keys.control, keys.back, keys.offers]
    return [*flows, *(key(name) for key in per_name), *fixed]


@given(names, names)
def test_one_hash_tag(backbone: str, name: str) -> None:
    assert all(key.startswith(f"{{{backbone}}}:") for key in all_keys(backbone, name))
    assert all(key.count("{") == key.count("}") == 1 for key in all_keys(backbone, name))


@given(st.lists(st.tuples(names, names), min_size=2, max_size=2, unique=True))
def test_no_two_names_meet(pair: list[tuple[str, str]]) -> None:
    (b1, n1), (b2, n2) = pair
    shared = set(all_keys(b1, n1)) & set(all_keys(b2, n2))
    assert len(set(all_keys(b1, n1))) == len(all_keys(b1, n1))
    assert all(b1 == b2 and not key.endswith((f":{n1}", f":{n2}")) for key in shared) or b1 == b2
