"""What ``python -m convert`` and ``python -m inference`` do before anything else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

_OWN = ("convert", "demo", "inference", "inference", "support", "tf_model", "tokenization")

Main = Callable[[Sequence[str] | None], int]


def entry_point(module: str, interrupted: str) -> Main:
    """The ``main`` of ``module``, imported when it is called: Ctrl-C is one line then, too, and exit code 130."""

    def main(argv: Sequence[str] | None = None) -> int:
        try:
            code: int = importlib.import_module(module).main(argv)
            return code
        except KeyboardInterrupt:
            print("error:", interrupted, file=sys.stderr)
            return 130
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] in _OWN:
                raise
            print(
                f"error: {error.name} is not installed for {sys.executable}: use .venv/bin/python, "
                "which `make demo` sets up",
                file=sys.stderr,
            )
            return 2

    return main
