"""Files of ``torch.save`` whose dicts make the search for a state dict go in circles, or on for ever."""

from __future__ import annotations

import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from convert.formats.candidate import Candidate
from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError
from tests.attacks.assembler import Raw, finish, legacy_file, storage, tensor, value, zip_file

DATA = np.arange(4, dtype="<f4").tobytes()
GOOD = {"wte.weight": tensor(storage()), "wpe.weight": tensor(storage()), "h.0.ln_1.bias": tensor(storage())}
MANY = 1_000_001


def get(memo: int) -> Raw:
    return Raw(b"h" + bytes([memo]))


def put(item: object, memo: int) -> Raw:
    return Raw(value(item) + b"q" + bytes([memo]))


def in_itself(*keys: str, **entries: object) -> Raw:
    """A dict that contains itself under ``keys``."""
    items = b"".join(value(key) + b"h\0" for key in keys) + b"".join(value(k) + value(v) for k, v in entries.items())
    good = b"".join(value(k) + value(v) for k, v in GOOD.items())
    return Raw(b"}q\0(" + good + items + b"u")


def nested(depth: int, key: object, inner: object) -> Raw:
    return Raw(b"".join(b"}" + value(key) for _ in range(depth)) + value(inner) + b"s" * depth)


def twice_the_last(depth: int, first: str, second: str) -> Raw:
    """Dicts that each hold the one before under two keys: 2**depth paths to the weights."""
    code = value(GOOD)
    for _ in range(depth):
        code += b"q\0" + b"0}(" + value(first) + b"h\0" + value(second) + b"h\0" + b"u"
    return Raw(code)


def many_keys(count: int, entry: bytes, key: bytes = b"X\7\0\0\0%07d") -> Raw:
    return Raw(b"}(" + b"".join((key % number) + entry for number in range(count)) + b"u")


def names_longer_than_the_file() -> Raw:
    """Twenty dicts in each other under keys of 100 kB, with many entries inside: joined, they would take gigabytes."""
    inner = Raw(b"}(" + b"".join(value(f"{number}.wte.weight") + b"h\1" for number in range(20_000)) + b"u")
    code = value("t") + value(tensor(storage())) + b"q\1" + value("d") + nested(15, "k" * 100_000, inner).code
    return Raw(b"}(" + code + b"u")


def numbers() -> Raw:
    return Raw(value({0: tensor(storage()), 1: {2: tensor(storage()), None: GOOD}, (1, 2): GOOD, 2.5: 1, b"x": GOOD}))


def long_number() -> Raw:
    return Raw(b"}(\x8b" + struct.pack("<i", 2000) + b"\x7f" * 2000 + value(GOOD) + b"u")


COSTLY = "more names than a model has"
HOSTILE: dict[str, Raw] = {
    "a state dict in itself": in_itself("self"),
    "a model in itself": in_itself("model"),
    "a model in itself under every name": in_itself("model", "module", "state_dict", "state"),
    "two models that hold each other": Raw(
        b"}q\0(" + value("model") + b"}q\1(" + value("module") + b"h\0" + value("w") + value(GOOD) + b"u" + b"u"
    ),
    "models in models": nested(3000, "model", GOOD),
    "models in models, each with weights": Raw(
        b"".join(b"}(" + value("wte.weight") + value(tensor(storage())) + value("model") for _ in range(900))
        + value(GOOD) + b"u" * 900
    ),
    "dicts in dicts": nested(100_000, "a", GOOD),
    "dicts under names with dots": nested(15, "." * 1000, GOOD),
    "twice the last": twice_the_last(40, "a", "b"),
    "twice the last as a model": twice_the_last(40, "model", "module"),
    COSTLY: many_keys(MANY, b"N"),
    "names longer than the file": names_longer_than_the_file(),
    "keys that are no texts": numbers(),
    "a number of 5,000 digits as key": long_number(),
    "a name of 1 MB": Raw(value({"wte.weight" + "x" * (1 << 20): tensor(storage()), **GOOD})),
    "a name of 100,000 parts": Raw(value({"a." * 100_000 + "wte.weight": tensor(storage()), **GOOD})),
    "names with line ends": Raw(value({"wte.weight\nerror: all is well": tensor(storage()), **GOOD})),
    "lists of state dicts": Raw(value({"models": [GOOD, GOOD], "model": [[GOOD]]})),
    "nothing but weights that are no tensors": Raw(value(dict.fromkeys(GOOD, 1))),
    "args that are no dict": Raw(value({"model": GOOD, "model_args": [1], "args": "x", "config": 7})),
}  # fmt: skip


FILES = [
    pytest.param(name, case, marks=[pytest.mark.slow] if case == COSTLY else [])
    for name in ("last.ckpt", "model.pt")
    for case in HOSTILE
    if (name, case) != ("model.pt", COSTLY)
]


@pytest.mark.parametrize(("name", "case"), FILES)
def test_the_search_ends_soon_with_one_line(case: str, name: str, tmp_path: Path) -> None:
    code = finish(HOSTILE[case])
    if name.endswith(".pt"):
        file = legacy_file(tmp_path / name, code, {"0": (4, DATA)} if b"FloatStorage" in code else {})
    else:
        file = zip_file(tmp_path / name, code, {"0": DATA})
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(file, heads=2)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # in kB
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.replace(str(tmp_path), "")) < 600


def test_a_dict_that_holds_itself_next_to_a_model_is_no_harm(tmp_path: Path) -> None:
    code = Raw(b"}q\0(" + value("model") + value(GOOD) + value("trainer") + b"h\0u")
    weights = Candidate(zip_file(tmp_path / "x.ckpt", finish(code), {"0": DATA})).weights
    assert weights is not None
    assert {name.removeprefix("model.") for name in weights.tensors} >= set(GOOD)
