"""Mixed precision: which layer gets how many bits."""

from bitsplit.mixed.choose import Answer, Question, exact, genetic

__all__ = ["Answer", "Question", "exact", "genetic"]
