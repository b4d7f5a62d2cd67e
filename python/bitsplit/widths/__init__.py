"""Mixed precision: which layer gets how many bits."""

from bitsplit.widths.budget import Budget
from bitsplit.widths.genetic_search import genetic
from bitsplit.widths.integer_program import exact
from bitsplit.widths.measure import mixed, sensitivities
from bitsplit.widths.question import Answer, Question
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
