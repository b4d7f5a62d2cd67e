"""A small trained network with images, to see every method at work in a minute."""

from bitsplit.demo.comparison import run
from bitsplit.demo.results import Result, Widths

__all__ = ["Result", "Widths", "run"]
