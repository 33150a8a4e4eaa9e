"""``python -m exports``: see ``exports/cli.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code. Ctrl-C is one line from the first moment on, imports included."""
    try:
        from exports import cli

        return cli.main(argv)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
