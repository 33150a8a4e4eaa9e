"""``python -m exports``: see ``exports/cli.py``."""

from __future__ import annotations

import sys

from exports.entry_point import entry_point

main = entry_point("exports.cli", "interrupted")

if __name__ == "__main__":
    sys.exit(main(None))
