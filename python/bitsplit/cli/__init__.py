"""The command line: ``bitsplit quantize | plan | mixed | distill | evaluate | demo | info``."""

from bitsplit.cli.main import main

__all__ = ["main"]
