"""The program `alchemy`: a subcommand per module, exit statuses, and errors in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pytest_alchemy.cli import checkpoints, command
from pytest_alchemy.cli.printing import complain, visible
from pytest_alchemy.cli.trouble import Status, Trouble

__all__ = ["SUBCOMMANDS", "main"]

SUBCOMMANDS = (checkpoints, command)
"""Each has `add(subparsers)`; the parser it adds has `execute` set, from the arguments to an exit status."""

_EPILOG = """\
exit status: 0 done; 1 bad news (something is broken, refused, failed or over); 2 usage; 3 no answer in time;
4 no such run, or its directory can't be read or written
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status.

    Raises:
        SystemExit: By argparse, for --help and for what it can't read.
    """
    arguments = _parse(argv)
    try:
        status: int = arguments.execute(arguments)
        sys.stdout.flush()
    except Trouble as trouble:
        complain(str(trouble))
        for choice in trouble.choices:
            sys.stderr.write(f"  {visible(choice)}\n")
        return trouble.status
    except BrokenPipeError:
        # So that the interpreter, which flushes at its end, does not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.CUT_SHORT
    except KeyboardInterrupt:
        return Status.INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}; the run root must be readable from here (--root)")
        return Status.NO_RUN
    return status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; values may also stand behind options, which argparse alone does not take."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and hasattr(arguments, "values") and not any(text.startswith("-") for text in rest):
        arguments.values += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alchemy",
        description="Look at runs of experiments, and speak with them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(metavar="SUBCOMMAND", required=True)
    for subcommand in SUBCOMMANDS:
        subcommand.add(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
