"""HDF5 files that refer to other files, claim what is not there, or go in circles: one line, little memory, no reading.

h5py writes what it can be made to write; what it refuses to write is patched into the bytes.
"""

from __future__ import annotations

import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from convert.formats.h5_file import read_h5
from support.errors import CheckpointError

WTE = "transformer/tfgpt2lm_head_model/transformer/wte/weight:0"
WPE = "transformer/tfgpt2lm_head_model/transformer/wpe/embeddings:0"
VALUES = np.arange(40, dtype="<f4").reshape(10, 4) + 0.25
ELSEWHERE = "elsewhere.h5"
"""Next to the file: a pipe, so that whoever opens it is noticed."""


def good(file: Path) -> h5py.File:
    opened = h5py.File(file, "w")
    opened[WTE], opened[WPE] = VALUES, VALUES + 100
    return opened


def patch(file: Path, old: bytes, new: bytes, count: int = -1) -> None:
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, count))


def place_of(file: Path, name: str) -> int:
    with h5py.File(file) as opened:
        return int(opened[name].id.get_offset())


def move(file: Path, place: int) -> None:
    """Make the first weight lie at ``place``, by the message of its layout: version 3, contiguous, address, size."""
    old, new = (b"\3\1" + p.to_bytes(8, "little") for p in (place_of(file, WTE), place))
    patch(file, old, new, 1)


def external_link(file: Path) -> None:
    with good(file) as opened:
        opened["more"] = h5py.ExternalLink(str(file.with_name(ELSEWHERE)), "/x")


def external_link_for_a_weight(file: Path) -> None:
    with good(file) as opened:
        opened["transformer/x/transformer/ln_f/gamma:0"] = h5py.ExternalLink(str(file.with_name(ELSEWHERE)), "/x")


def external_storage(file: Path) -> None:
    with good(file) as opened:
        opened.create_dataset("more", (10, 4), "f4", external=[(str(file.with_name(ELSEWHERE)), 0, 160)])


def virtual(file: Path) -> None:
    layout = h5py.VirtualLayout((10, 4), "f4")
    layout[:] = h5py.VirtualSource(str(file.with_name(ELSEWHERE)), "x", (10, 4))
    with good(file) as opened:
        opened.create_virtual_dataset("more", layout)


def virtual_without_end(file: Path) -> None:
    """Its size is that of the other file, which HDF5 opens when it is asked for the size."""
    layout = h5py.VirtualLayout((10, 4), "f4", maxshape=(None, 4))
    source = h5py.VirtualSource(str(file.with_name(ELSEWHERE)), "x", (10, 4), maxshape=(None, 4))
    layout[: h5py.h5s.UNLIMITED, :] = source[: h5py.h5s.UNLIMITED, :]
    with good(file) as opened:
        opened.create_virtual_dataset("more", layout)


def soft_link(file: Path) -> None:
    with good(file) as opened:
        opened["more"] = h5py.SoftLink(f"/{WTE}")


def soft_link_to_itself(file: Path) -> None:
    with good(file) as opened:
        opened["more"] = h5py.SoftLink("/more")


def group_in_itself(file: Path) -> None:
    with good(file) as opened:
        opened["transformer/again"] = opened["transformer"]


def weight_twice(file: Path) -> None:
    with good(file) as opened:
        opened["more"] = opened[WTE]


def a_thousand_groups_deep(file: Path) -> None:
    with good(file) as opened:
        opened["/".join("g" * 1000) + "/wte/weight:0"] = VALUES


def huge_and_never_written(file: Path) -> None:
    with good(file) as opened:
        opened.create_dataset("more", (10**6, 10**6), "f4")


def huge_with_a_fill_value(file: Path) -> None:
    with good(file) as opened:
        opened.create_dataset("more", (10**6, 10**6), "f4", fillvalue=7.0, chunks=(100, 100))[:10, :10] = 1.0


def huge_pieces(file: Path) -> None:
    with good(file) as opened:
        opened.create_dataset("more", (10, 4), "f4", chunks=(1 << 14, 1 << 12), maxshape=(None, None))


def bomb(file: Path) -> None:
    with good(file) as opened:
        opened.create_dataset("more", (64, 1 << 20), "f4", chunks=(1, 1 << 20), compression=9)[:] = 0


def compressed_by_a_plugin(file: Path) -> None:
    with good(file) as opened:
        opened.create_dataset("more", data=VALUES, chunks=(5, 4), compression="lzf")


def more_rows_than_bytes(file: Path) -> None:
    good(file).close()
    shape = (10).to_bytes(8, "little") + (4).to_bytes(8, "little")
    patch(file, shape, (10**9).to_bytes(8, "little") + (4).to_bytes(8, "little"))


def beyond_the_file(file: Path) -> None:
    good(file).close()
    move(file, 1 << 40)


def at_the_end_of_the_file(file: Path) -> None:
    good(file).close()
    move(file, file.stat().st_size - 8)


def a_piece_beyond_the_file(file: Path) -> None:
    with good(file) as opened:
        opened.create_dataset("more", data=VALUES, chunks=(5, 4))
    with h5py.File(file) as opened:
        place = opened["more"].id.get_chunk_info(1).byte_offset
    patch(file, int(place).to_bytes(8, "little"), (file.stat().st_size - 8).to_bytes(8, "little"))


def two_weights_in_one_place(file: Path) -> None:
    good(file).close()
    move(file, place_of(file, WPE))


def a_slash_in_a_name(file: Path) -> None:
    with good(file) as opened:
        opened["ab_cd"] = VALUES
    patch(file, b"ab_cd", b"ab/cd")


def a_dot_for_a_name(file: Path) -> None:
    with good(file) as opened:
        opened["z"] = VALUES
    patch(file, b"z\0\0\0", b".\0\0\0", 1)


def cut(file: Path) -> None:
    good(file).close()
    file.write_bytes(file.read_bytes()[:-10])


def half(file: Path) -> None:
    good(file).close()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_root(file: Path) -> None:
    good(file).close()
    data = bytearray(file.read_bytes())
    data[24:96] = b"\xff" * 72
    file.write_bytes(data)


def zeros_after_the_head(file: Path) -> None:
    good(file).close()
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:96] + bytes(size - 96))


ELSEWHERE_WORDS = "a link to elsewhere: no file of weights has one"
NOT_IN_THE_FILE = "its values are not in the file in a way that weights are"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "external link": (external_link, f"more: {ELSEWHERE_WORDS}"),
    "external link in place of a weight": (external_link_for_a_weight, f"gamma:0: {ELSEWHERE_WORDS}"),
    "external storage": (external_storage, f"more: {NOT_IN_THE_FILE}"),
    "virtual dataset": (virtual, f"more: {NOT_IN_THE_FILE}"),
    "virtual dataset without an end": (virtual_without_end, f"more: {NOT_IN_THE_FILE}"),
    "soft link": (soft_link, f"more: {ELSEWHERE_WORDS}"),
    "soft link to itself": (soft_link_to_itself, f"more: {ELSEWHERE_WORDS}"),
    "group in itself": (group_in_itself, "transformer/again: a second link to one object"),
    "weight twice": (weight_twice, "a second link to one object"),
    "a thousand groups deep": (a_thousand_groups_deep, "groups too deep: no file of weights"),
    "huge and never written": (huge_and_never_written, r"more: \[1000000, 1000000\] has no values in the file"),
    "huge with a fill value": (huge_with_a_fill_value, r"more: \[1000000, 1000000\] has 1 pieces of \[100, 100\]"),
    "huge pieces": (huge_pieces, r"more: \[10, 4\] has 0 pieces of \[16384, 4096\]"),
    "bomb": (bomb, r"x\.h5: \d+ bytes that unpack to 268435456: no file of weights"),
    "compressed by a plugin": (compressed_by_a_plugin, "packed by the filter lzf"),
    "more rows than bytes": (more_rows_than_bytes, "cannot be read as HDF5: .*invalid dataset size"),
    "beyond the file": (beyond_the_file, "cannot be read as HDF5: .*invalid dataset size"),
    "at the end of the file": (at_the_end_of_the_file, "cannot be read as HDF5: .*invalid dataset size"),
    "a piece beyond the file": (a_piece_beyond_the_file, r"more: ends at byte \d+, but the file has \d+: cut off"),
    "two weights in one place": (two_weights_in_one_place, "lies in the same bytes as another"),
    "a slash in a name": (a_slash_in_a_name, f"ab/cd: {ELSEWHERE_WORDS}"),
    "a dot for a name": (a_dot_for_a_name, rf"\.: {ELSEWHERE_WORDS}"),
    "cut": (cut, "cannot be read as HDF5: .*truncated"),
    "half": (half, "cannot be read as HDF5: .*truncated"),
    "no root": (no_root, "cannot be read as HDF5"),
    "zeros after the head": (zeros_after_the_head, "cannot be read as HDF5"),
}

WATCH = """
import os, sys, time
print("ready", flush=True)
while True:
    try:
        os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        time.sleep(0.002)
    else:
        sys.exit("somebody has opened it")
"""


@contextmanager
def nobody_opens(pipe: Path) -> Iterator[None]:
    """Fail where anybody opens ``pipe`` for reading meanwhile; a process of its own watches, as that would wait."""
    os.mkfifo(pipe)
    with subprocess.Popen([sys.executable, "-c", WATCH, str(pipe)], stdout=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        watch.stdout.readline()
        try:
            yield
            is_watching = watch.poll() is None
        finally:
            watch.kill()
    assert is_watching


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_an_error_of_one_line(case: str, tmp_path: Path) -> None:
    make, words = HOSTILE[case]
    make(tmp_path / "x.h5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with nobody_opens(tmp_path / ELSEWHERE), pytest.raises(CheckpointError) as caught:
        read_h5(tmp_path / "x.h5")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # in kB
    message = str(caught.value)
    assert re.search(words, message)
    assert "\n" not in message
    assert len(message.replace(str(tmp_path), "")) < 300
    assert "x.h5" in message


def test_the_watch_notices_that_a_file_is_opened(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), nobody_opens(tmp_path / ELSEWHERE):  # noqa: PT012
        (tmp_path / ELSEWHERE).read_bytes()
        subprocess.run(["sleep", "0.1"], check=True)


def lying_attributes(opened: h5py.File) -> None:
    opened.attrs["layer_names"] = [b"../../etc", b"transformer"] * 50
    opened.attrs["keras_version"] = np.zeros((50, 50))
    opened["transformer"].attrs["weight_names"] = [WPE.encode(), b"no/such:0"]


def references(opened: h5py.File) -> None:
    opened.create_dataset("refs", (2,), h5py.ref_dtype)[0] = opened[WTE].ref


def texts(opened: h5py.File) -> None:
    opened["texts"] = ["a", "b" * 1000]


def a_compound(opened: h5py.File) -> None:
    opened["compound"] = np.zeros(3, [("a", "f4"), ("b", "i8", 5)])


def a_float_that_numpy_lacks(opened: h5py.File) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    space = h5py.h5s.create_simple((4,))
    h5py.h5d.create(opened.id, b"bfloat16", kind, space).write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones(4, "f4"))


HARMLESS: dict[str, Callable[[h5py.File], None]] = {
    "attributes that lie": lying_attributes,
    "references to objects": references,
    "texts": texts,
    "a compound": a_compound,
    "a float that NumPy lacks": a_float_that_numpy_lacks,
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_else_a_file_has_changes_nothing(case: str, tmp_path: Path) -> None:
    with good(tmp_path / "x.h5") as opened:
        HARMLESS[case](opened)
    found = read_h5(tmp_path / "x.h5")
    np.testing.assert_array_equal(found.pop("transformer.wte.weight").numpy(), VALUES)
    np.testing.assert_array_equal(found.pop("transformer.wpe.weight").numpy(), VALUES + 100)
    for tensor in found.values():
        with pytest.raises(CheckpointError, match="holds no numbers"):
            tensor.numpy()


FUZZ = """
import random, sys
from pathlib import Path
from convert.formats.h5_file import read_h5
from support.errors import CheckpointError

original, file = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
rng = random.Random(int(sys.argv[3]))
outcomes = set()
for _ in range(int(sys.argv[4])):
    data = bytearray(original)
    for _ in range(rng.choice((1, 2, 5))):
        place, size = rng.randrange(len(data) - 8), rng.choice((1, 8))
        data[place : place + size] = rng.choice((b"\\xff" * size, bytes(size), rng.randbytes(size)))
    file.write_bytes(data)
    try:
        for tensor in read_h5(file).values():
            if not tensor.dtype.hasobject:
                tensor.numpy()
        outcomes.add("read")
    except CheckpointError as error:
        outcomes.add("refused")
        assert "\\n" not in str(error)
print(*sorted(outcomes))
"""


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 3), "compression": 1, "shuffle": True}], ids=["plain", "gzip"])
def test_damaged_bytes_are_values_or_an_error(options: dict[str, object], tmp_path: Path) -> None:
    """HDF5's own parser is C: a crash or an endless loop would end the other process."""
    with h5py.File(tmp_path / "good.h5", "w") as opened:
        for name in (WTE, WPE):
            opened.create_dataset(name, data=VALUES, **options)
        opened.attrs["layer_names"] = [b"transformer"]
    seed = random.randrange(1 << 30)
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, tmp_path / "good.h5", tmp_path / "x.h5", str(seed), "200"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "read refused\n"), (seed, done.stderr[-500:])
