"""What a vFM leaves to its backbone: pooling, length 1 and the prompt, as the sentence-transformers files beside it say."""

from __future__ import annotations

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.sentences import SentenceModel
from fmplex_broker.specs.heads import Embedding, Head, InputSpec
from fmplex_broker.specs.vfm import VfmSpec

_OF_EMBEDDINGS = frozenset({"embedding", "similarity"})


def with_defaults(name: str, head: Head, own: SentenceModel | None) -> Head:
    """Return a head with all that it does not say. `name`: its own, empty for a single one; `own`: what the backbone's files say.

    Raises `PackageRejected`: they say what is not served, or what a head must say itself.
    """
    if getattr(head, "pooling", "") is None:
        _refuse_unserved(f"heads.{name}.pooling" if name else "head.pooling", head, own)
        head = head.model_copy(update={"pooling": "mean" if own is None else own.pooling})
    if isinstance(head, Embedding) and head.normalize is None:
        head = head.model_copy(update={"normalize": own is None or own.normalize})
    return head


def _refuse_unserved(field: str, head: Head, own: SentenceModel | None) -> None:
    if own is not None and own.unserved:
        raise PackageRejected(
            f"the backbone is a model of sentence-transformers that is not served as it is: {own.unserved}; say "
            f"{field} (mean, cls or last) to have the hidden states pooled so instead",
            field=field,
        )
    if own is not None and own.dense and head.kind in _OF_EMBEDDINGS and not getattr(head, "projection", ()):
        raise PackageRejected(
            f"the backbone is a model of sentence-transformers with a dense layer ({own.dense[0].path}), which is part of a "
            f"package: make it with fmplex.from_sentence_transformers, or say {field} to do without",
            field=field,
        )


def input_of(spec: VfmSpec, own: SentenceModel | None, most: int) -> InputSpec:
    """Return what is done with the texts of a vFM: what it says, else the backbone's own prompt. `most`: tokens that the backbone
    takes.

    Raises `PackageRejected`: it would cut texts where the backbone already has, or must say itself which head the prompt is for.
    """
    made = spec.input
    if made.max_tokens is not None and made.max_tokens > most:
        raise PackageRejected(
            f"input.max_tokens is {made.max_tokens}, this backbone takes {most}: raise backbone.max_tokens in the fleet file, or "
            "lower it",
            field="input.max_tokens",
        )
    if own is None or not own.default_prompt or made.template is not None or spec.kinds.isdisjoint(_OF_EMBEDDINGS):
        return made
    if not spec.kinds <= _OF_EMBEDDINGS or not own.prompt_pooled:
        raise PackageRejected(
            "the backbone's sentence-transformers files have a prompt for every text, which cannot be put there for this vFM; "
            'say input.template ("{text}": none)',
            field="input.template",
        )
    prompt = own.default_prompt
    pair = prompt + "{text_pair}" if made.pair_template is None else made.pair_template
    return made.model_copy(update={"template": prompt + "{text}", "pair_template": pair})
