"""``python -m convert``: see ``convert/cli.py``."""

from __future__ import annotations

import sys

from support.entry_point import entry_point

main = entry_point("convert.cli", "interrupted; nothing was left behind")

if __name__ == "__main__":
    sys.exit(main(None))
