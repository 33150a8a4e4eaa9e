"""``python -m exports``: the old name of ``python -m inference``, for one release."""

from __future__ import annotations

import sys

from inference.cli import main

if __name__ == "__main__":
    print(
        "note: `python -m exports` is now `python -m inference`; the old name goes with the next release",
        file=sys.stderr,
    )
    sys.exit(main())
