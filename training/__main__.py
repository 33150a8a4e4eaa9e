"""``python -m training``: see ``training/cli.py``."""

from __future__ import annotations

import os
import sys

try:
    from training.cli import main
except KeyboardInterrupt:  # before there is anything that could print a line of its own
    os.write(2, b"error: interrupted\n")
    os._exit(130)

if __name__ == "__main__":
    sys.exit(main())
