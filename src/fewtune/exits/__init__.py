"""The table of criteria: when a row may leave the stack."""

from fewtune.exits.criteria import Confidence, Criterion, Entropy, Margin, Patience
from fewtune.registry import Table

CRITERIA: Table[Criterion] = Table("criterion", {"entropy": Entropy, "margin": Margin, "patience": Patience, "confidence": Confidence})
