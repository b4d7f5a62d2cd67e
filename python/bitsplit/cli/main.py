"""The program ``bitsplit``: its commands, and what a user sees when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from pydantic import ValidationError

from bitsplit.cli.demo import demo
from bitsplit.cli.distill import distill
from bitsplit.cli.evaluate import evaluate
from bitsplit.cli.info import info
from bitsplit.cli.mixed import mixed
from bitsplit.cli.plan import plan
from bitsplit.cli.quantize import quantize
from bitsplit.document import explain
from bitsplit.errors import BitsplitError

USER_ERROR = 2

app = typer.Typer(
    help="Turn a trained vision network into a 2-to-8-bit one, after training.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (quantize, plan, mixed, distill, evaluate, demo, info):
    app.command()(command)

# The base of all complaints about the command line: typer brings its own click, or uses the installed one.
_CommandLineError = typer.BadParameter.__bases__[0].__bases__[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave: status 0 when all is well, 2 after a user's mistake, told in one line."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    sys.exit(_status(given))


def _status(arguments: list[str]) -> int:
    try:
        return app(arguments, prog_name="bitsplit", standalone_mode=False) or 0
    except _CommandLineError as error:
        return _complain(error.format_message())
    except ValidationError as error:
        return _complain(explain(error))
    except BitsplitError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _complain(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return USER_ERROR
