"""Mixed precision: which layer gets how many bits."""

from bitsplit.widths.budget import Budget
from bitsplit.widths.choose import Answer, Question, exact, genetic
from bitsplit.widths.measure import mixed, sensitivities
from bitsplit.widths.sensitivities import MixedPlan, Sensitivities

__all__ = [
    "Answer",
    "Budget",
    "MixedPlan",
    "Question",
    "Sensitivities",
    "exact",
    "genetic",
    "mixed",
    "sensitivities",
]
