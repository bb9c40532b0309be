"""Making vFM packages from what a team already has: arrays, a PEFT adapter, a model of sentence-transformers or scikit-learn.
(`fmplex.fit` trains one.)

Nothing here imports torch or scikit-learn; numpy is asked for only where numbers must be computed.
"""

from fmplex.construct.adapters import from_peft
from fmplex.construct.building import WrittenPackage, write_package
from fmplex.construct.scikit import from_sklearn
from fmplex.construct.sentences import from_sentence_transformers

__all__ = ["WrittenPackage", "from_peft", "from_sentence_transformers", "from_sklearn", "write_package"]
