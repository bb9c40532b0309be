"""Labels of BIO, BIOES and BILOU are read as tags: each person is one span, and two beside each other are two."""

from __future__ import annotations

import pytest

from fmplex_broker.specs.tag_schemes import read_tags
from fmplex_worker.heads.spans import spans

# Token → characters: one word each.
TEXT = "Anna Bob went to New York"
OFFSETS = [(0, 4), (5, 8), (9, 13), (14, 16), (17, 20), (21, 25)]
BIO = ("B-PER", "I-PER", "B-LOC", "I-LOC")
BIOES = ("B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC")
BILOU = ("B-PER", "I-PER", "L-PER", "U-PER", "B-LOC", "I-LOC", "L-LOC", "U-LOC")
CASES = {
    "two beside each other": (BIO, "B-PER B-PER O O B-LOC I-LOC", ["Anna PER", "Bob PER", "New York LOC"]),
    "one of two tokens": (BIO, "B-PER I-PER O O O O", ["Anna Bob PER"]),
    "another kind goes on": (BIO, "B-PER I-LOC O O O O", ["Anna PER", "Bob LOC"]),
    "inside without a beginning": (BIO, "I-PER I-PER O O O I-LOC", ["Anna Bob PER", "York LOC"]),
    "outside between": (BIO, "B-PER O I-PER O O O", ["Anna PER", "went PER"]),
    "BIOES": (BIOES, "S-PER S-PER O O B-LOC E-LOC", ["Anna PER", "Bob PER", "New York LOC"]),
    "an end closes": (BIOES, "B-PER E-PER I-PER O O O", ["Anna Bob PER", "went PER"]),
    "BILOU": (BILOU, "U-PER U-PER O O B-LOC L-LOC", ["Anna PER", "Bob PER", "New York LOC"]),
    "only inside": (("I-PER", "I-LOC"), "I-PER I-PER O O I-LOC I-LOC", ["Anna Bob PER", "New York LOC"]),
    "underlined": (("B_PER", "I_PER"), "B_PER I_PER B_PER O O O", ["Anna Bob PER", "went PER"]),
    "a dash in the kind": (("B-PER-first", "I-PER-first"), "B-PER-first I-PER-first O O O O", ["Anna Bob PER-first"]),
    "plain names": (("PER", "LOC"), "PER PER O O LOC LOC", ["Anna Bob PER", "New York LOC"]),
    "names that only look like it": (("B-cell", "S-wave"), "B-cell B-cell O O S-wave O", ["Anna Bob B-cell", "New S-wave"]),
    "one that does not": (("B-PER", "I-PER", "other"), "B-PER I-PER O O other O", ["Anna B-PER", "Bob I-PER", "New other"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_tags_are_spans(case: str) -> None:
    labels, tags, wanted = CASES[case]
    best = [0 if tag == "O" else labels.index(tag) + 1 for tag in tags.split()]
    made = spans(TEXT, OFFSETS, best, [0.5] * len(best), labels)
    assert [f"{span['text']} {span['label']}" for span in made] == wanted
    assert all(TEXT[span["start"] : span["end"]] == span["text"] for span in made)


def test_no_labels_are_no_tags() -> None:
    assert read_tags(()) is None
