"""A small trained network with images, to see every method at work in a minute."""

from bitsplit.demo.comparison import Result, Widths, run

__all__ = ["Result", "Widths", "run"]
