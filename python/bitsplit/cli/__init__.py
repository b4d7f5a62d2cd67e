"""The command line: ``bitsplit quantize | plan | evaluate | demo | info``."""

from bitsplit.cli.main import main

__all__ = ["main"]
