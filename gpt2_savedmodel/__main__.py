"""``python -m gpt2_savedmodel``: see ``gpt2_savedmodel/cli.py``."""

from __future__ import annotations

import sys

from gpt2_savedmodel.cli import main

if __name__ == "__main__":
    sys.exit(main())
