"""The command line: `tahoe demo`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tahoe.errors import TahoeError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, or 1 after an error of one line."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except TahoeError as error:
        if options.debug:
            raise
        print(f"tahoe: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tahoe", description="Tahoe-x1 embeddings for single-cell RNA-seq.")
    parser.add_argument("--debug", action="store_true", help="show where an error was raised")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="embed 700 real cells with the built-in model",
        description="Embed 700 blood cells with the small model that ships with the package, and compare with PCA."
        " Writes tahoe-demo.png and tahoe-demo.h5ad. Needs no download; takes about a minute on two cores.",
    )
    demo.add_argument("-o", "--output", default=".", metavar="FOLDER", help="where to write them (default: here)")
    demo.set_defaults(run=_demo)
    return parser


def _demo(options: argparse.Namespace) -> None:
    # Imported here, so that --help does not wait for torch and scanpy.
    from tahoe._demo import run

    run(options.output)


if __name__ == "__main__":
    sys.exit(main())
