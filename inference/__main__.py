"""``python -m inference``: see ``inference/cli.py``."""

from __future__ import annotations

import sys

from support.entry_point import entry_point

main = entry_point("inference.cli", "interrupted")

if __name__ == "__main__":
    sys.exit(main(None))
