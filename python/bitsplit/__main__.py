"""``python -m bitsplit``: the command line."""

from bitsplit.cli import main

main()
