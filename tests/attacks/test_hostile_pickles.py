"""Files that try to run something, or to use up time or memory: nothing runs, and little memory is used."""

from __future__ import annotations

import builtins
import codecs
import importlib
import io
import os
import pickle
import runpy
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from convert.torch_format.pickle_machine import PickleError, loads
from convert.torch_format.reader import Placeholder, load
from support.errors import CheckpointError
from tests.attacks.assembler import STOP, Raw, call, finish, legacy_file, name, storage, tensor, value, zip_file

MODULE = "hostile_canary_module"
COMMAND = "touch canary"
OPEN = "open('canary', 'w').close()"
CANARY = f"""
{OPEN}
class Evil:
    def __init__(self, *args, **kwargs): {OPEN}
    def __setstate__(self, state): {OPEN}
    def __hash__(self): {OPEN}; return 0
    append = extend = add = __setitem__ = __setstate__
"""


def evil(*args: object) -> Raw:
    return call(MODULE, "Evil", *args)


def stack_global(module: str, qualified: str) -> Raw:
    return Raw(value(module) + value(qualified) + b"\x93")


SHELL = finish(call("os", "system", COMMAND))

RUNS: dict[str, Raw] = {
    "os.system": call("os", "system", COMMAND),
    "posix.system": call("posix", "system", COMMAND),
    "nt.system": call("nt", "system", COMMAND),
    "subprocess.Popen": call("subprocess", "Popen", ["touch", "canary"]),
    "builtins.eval": call("builtins", "eval", OPEN),
    "builtins.exec": call("builtins", "exec", OPEN),
    "exec of Python 2's name": call("__builtin__", "exec", OPEN),
    "compile": call("builtins", "compile", OPEN, "x", "exec"),
    "open": call("builtins", "open", "canary", "w"),
    "INST": Raw(b"(" + value(COMMAND) + b"ios\nsystem\n"),
    "OBJ": Raw(b"(" + name("os", "system") + value(COMMAND) + b"o"),
    "OBJ of a class": Raw(b"(" + name(MODULE, "Evil") + b"o"),
    "STACK_GLOBAL": Raw(stack_global("os", "system").code + value((COMMAND,)) + b"R"),
    "STACK_GLOBAL with a dotted name": Raw(stack_global(MODULE, "Evil.__init__").code + value((1,)) + b"R"),
    "dotted name of a known one": Raw(stack_global("collections", "OrderedDict.fromkeys").code + value(([1],)) + b"R"),
    "NEWOBJ": Raw(name(MODULE, "Evil") + b")\x81"),
    "NEWOBJ_EX": Raw(name("subprocess", "Popen") + value(([COMMAND],)) + value({"shell": True}) + b"\x92"),
    "name only": Raw(name(MODULE, "Evil")),
    "BUILD to __setstate__": Raw(evil().code + value({"a": 1}) + b"b"),
    "BUILD of a class": Raw(name(MODULE, "Evil") + value({"__reduce__": 1}) + b"b"),
    "BUILD with __class__": Raw(evil().code + value((None, {"__class__": evil(), "__dict__": 1})) + b"b"),
    "BUILD of a known function": Raw(name("collections", "OrderedDict") + value({"call": evil()}) + b"b"),
    "APPEND": Raw(evil().code + value(1) + b"a"),
    "APPENDS": Raw(evil().code + b"(" + value(1) + value(2) + b"e"),
    "SETITEM": Raw(evil().code + value(1) + value(2) + b"s"),
    "ADDITEMS": Raw(evil().code + b"(" + value(1) + b"\x90"),
    "dict key": Raw(value({evil(): 1})),
    "element of a set": Raw(b"\x8f(" + evil().code + b"\x90"),
    "copyreg.add_extension": Raw(value([call("copyreg", "add_extension", "os", "system", 240), Raw(b"\x82\xf0")])),
    "EXT4": Raw(b"\x84" + struct.pack("<i", 1 << 30) + value((COMMAND,)) + b"R"),
    "runpy": call("runpy", "run_path", f"{MODULE}.py"),
    "importlib": call("builtins", "getattr", call("importlib", "import_module", MODULE), "Evil"),
    "call of a call": Raw(
        call("builtins", "getattr", Raw(name("os", "path")), "system").code + value((COMMAND,)) + b"R"
    ),
    "torch.load": call("torch", "load", "other.pt"),
    "torch.storage._load_from_bytes": call("torch.storage", "_load_from_bytes", SHELL),
    "torch.jit": call("torch.jit", "_script.unpackage_script_module", None, None, None, "x"),
    "pickle.loads": call("pickle", "loads", SHELL),
    "a pickle in an array of objects": Raw(
        call("numpy.core.multiarray", "_reconstruct", Raw(name("numpy", "ndarray")), (0,), b"b").code
        + value((1, (1,), call("numpy", "dtype", "O8", False, True), False, [call("pickle", "loads", SHELL)]))
        + b"b"
    ),
    "a tensor of another class": call(
        "torch._tensor", "_rebuild_from_type_v2", Raw(name("os", "system")), Raw(name(MODULE, "Evil")), (COMMAND,), {}
    ),
    "a parameter with state": call("torch._utils", "_rebuild_parameter_with_state", evil(), True, None, {"x": evil()}),
    "defaultdict with a factory": Raw(call("collections", "defaultdict", Raw(name("os", "system"))).code),
    "a storage of a foreign class in a tuple": Raw(value(("storage", evil(), "0"))),
}

REFUSED: dict[str, Raw] = {
    "persistent id that is a command": Raw(value(COMMAND) + b"Q"),
    "persistent id as text": Raw(b"Pos.system\n"),
    "persistent id of a call": Raw(value(("storage", Raw(name("torch", "FloatStorage")), evil(), "cpu", 1)) + b"Q"),
    "persistent id without its size": Raw(value(("storage", Raw(name("torch", "FloatStorage")), "0", "cpu")) + b"Q"),
    "keyword arguments": Raw(name("torch", "Size") + b")" + value({"a": 1}) + b"\x92"),
    "arguments that are no tuple": Raw(name("os", "system") + value([COMMAND]) + b"R"),
    "call of a string": Raw(value("os.system") + value((COMMAND,)) + b"R"),
    "name that is no string": Raw(value(("os",)) + value("system") + b"\x93"),
    "torch._utils with strings": call("torch._utils", "_rebuild_tensor_v2", "a", "b", "c", "d", "e", "f"),
    "torch._utils without arguments": call("torch._utils", "_rebuild_tensor_v2"),
    "a parameter of a string": call("torch._utils", "_rebuild_parameter", COMMAND, True, None),
    "torch.Size of strings": call("torch", "Size", ("a",)),
    "bytearray of 10**12 bytes": call("builtins", "bytearray", 10**12),
    "bytes of 10**12 bytes": call("builtins", "bytes", 10**12),
    "set of a string": call("builtins", "set", COMMAND),
    "dict of triples": call("collections", "OrderedDict", [(1, 2, 3)]),
    "complex of a string": call("builtins", "complex", "1" * 1000),
    "another codec": call("_codecs", "encode", "abc", "zip"),
    "unhashable key": Raw(value({1: 1})[:-1] + value([]) + value(1) + b"u"),
    "unhashable element": Raw(b"\x8f(]\x90"),
    "append to a tuple": Raw(b")" + value(1) + b"a"),
    "set in a list": Raw(b"]" + value(1) + value(1) + b"s"),
    "key without value": Raw(b"}(" + value(1) + b"u"),
    "add to a list": Raw(b"](" + value(1) + b"\x90"),
    "stack underflow": Raw(b"\x85\x85\x85"),
    "no mark": Raw(b"Nt"),
    "unknown memo": Raw(b"h\x07"),
    "negative memo": Raw(b"Np-1\n"),
    "unknown opcode": Raw(b"\xff"),
    "protocol 6": Raw(b"\x80\x06N"),
    "things left on the stack": Raw(b"NN"),
    "a mark left": Raw(b"(N"),
    "buffer out of band": Raw(b"\x97"),
    "invalid UTF-8": Raw(b"X\1\0\0\0\xff"),
    "an escape that Python warns of": Raw(b"S'\\q'\n" + b"0\xff"),
    "10000 digits": Raw(b"I" + b"9" * 10000 + b"\n"),
    "BYTEARRAY8 of 10**12 bytes": Raw(b"\x96" + struct.pack("<Q", 10**12)),
    "BINBYTES8 of 10**12 bytes": Raw(b"\x8e" + struct.pack("<Q", 10**12)),
    "BINBYTES8 of 2**64 - 1 bytes": Raw(b"\x8e" + b"\xff" * 8),
    "BINUNICODE8 of 10**12 bytes": Raw(b"\x8d" + struct.pack("<Q", 10**12)),
    "LONG4 of 2 GB": Raw(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "LONG4 of 1 MB": Raw(b"\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20)),
    "a set copied 100,000 times": Raw(
        value(list(range(1000)))
        + b"q\x00"
        + name("builtins", "list")
        + b"q\x01"
        + b"("
        + b"h\1h\0\x85R" * 100_000
        + b"l"
    ),
}
DEEP = 50_000
BOMBS: dict[str, Raw] = {
    "lists in lists": Raw(b"]" * DEEP + b"a" * (DEEP - 1)),
    "tuples in tuples": Raw(b")" + b"\x85" * DEEP),
    "dicts in dicts": Raw(b"}" + (b"N}" * DEEP) + b"s" * DEEP),
    "calls of calls": Raw(name("os", "system") + b")R" * DEEP),
    "state of state": Raw(evil().code + b"q\0h\0b" * 1000),
    "tuples of twice the last": Raw(b")" + b"2\x86" * DEEP),
    "lists of twice the last": Raw(b"(]" + b"q\0](h\0h\0e" * 10_000 + b"t"),
    "a list that contains itself": Raw(b"]q\0h\0a"),
    "memo of 2**32 - 1": Raw(b"Nr" + b"\xff" * 4),
    "PUT of a large number": Raw(b"Np" + b"9" * 1000 + b"\n"),
    "FRAME of 10**12 bytes": Raw(b"\x95" + struct.pack("<Q", 10**12) + b"N"),
    "marks": Raw(b"(" * DEEP + b"1" * (DEEP - 1) + b"l"),
    "a long name many times": Raw(
        value("m" * 100_000) + b"q\0" + value("n" * 100_000) + b"q\1(" + b"h\0h\1\x93" * 20_000 + b"l\x87"
    ),
}
KEYS: dict[str, Raw] = {
    "deep tuple as key": Raw(b"})" + b"\x85" * DEEP + b"Ns"),
    "tuples of twice the last as key": Raw(b"})" + b"2\x86" * 64 + b"Ns"),
    "deep frozenset": Raw(b"(" * 1000 + b"\x91" * 1000),
    "wide tuple in a set": Raw(b"\x8f((" + b"N" * 1000 + b"t\x90"),
}


def as_zip(path: Path, item: object) -> Path:
    return zip_file(path, finish(item))


def as_legacy(path: Path, item: object) -> Path:
    return legacy_file(path, finish(item))


FORMATS = {"zip": as_zip, "legacy": as_legacy}


def table(cases: dict[str, Raw]) -> Any:
    return pytest.mark.parametrize("item", cases.values(), ids=cases.keys())


@pytest.fixture(params=FORMATS.values(), ids=FORMATS.keys())
def write(request: pytest.FixtureRequest) -> Callable[[Path, object], Path]:
    function: Callable[[Path, object], Path] = request.param
    return function


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Any]]:
    """``load`` in a folder with a hostile module, where whatever runs code is an alarm, and memory is counted."""
    (tmp_path / f"{MODULE}.py").write_text(CANARY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def alarm(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"called with {args}")

    codecs.lookup("cp437")  # zipfile's encoding of names, which Python would import only now, by ``exec``

    def run(path: Path) -> Any:
        with monkeypatch.context() as patch:
            for module, function in (
                (os, "system"),
                (subprocess, "Popen"),
                (builtins, "exec"),
                (builtins, "eval"),
                (builtins, "compile"),
                (runpy, "run_path"),
                (importlib, "import_module"),
                (pickle, "loads"),
                (pickle, "load"),
            ):
                patch.setattr(module, function, alarm)
            modules = set(sys.modules)
            tracemalloc.start()
            started = time.monotonic()
            try:
                return load(path)
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < 200 << 20
                assert time.monotonic() - started < 20
                assert set(sys.modules) <= modules | {"encodings.cp437"}
                assert not (tmp_path / "canary").exists()

    yield run
    assert MODULE not in sys.modules


@table(RUNS)
def test_what_would_run_is_inert(
    item: Raw, write: Callable[[Path, object], Path], guarded: Callable[[Path], Any], tmp_path: Path
) -> None:
    found = guarded(write(tmp_path / "x.pt", {"module": item}))
    assert list(found) == ["module"]
    assert isinstance(found["module"], (Placeholder, list, dict, set, tuple)) or callable(found["module"].call)


def test_the_attacks_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own pickle does run them: the table tests something."""
    (tmp_path / f"{MODULE}.py").write_text(CANARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    for case in ("os.system", "builtins.exec", "INST", "OBJ", "NEWOBJ", "runpy", "pickle.loads", "dict key", "APPEND"):
        folder = tmp_path / case
        folder.mkdir()
        (folder / f"{MODULE}.py").write_text(CANARY)
        monkeypatch.chdir(folder)
        pickle.loads(finish(RUNS[case]))
        assert (folder / "canary").exists(), case
        sys.modules.pop(MODULE, None)


@pytest.mark.filterwarnings("ignore:invalid escape")
@table({**REFUSED, **KEYS})
def test_what_makes_no_sense_is_refused(
    item: Raw, write: Callable[[Path, object], Path], guarded: Callable[[Path], Any], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        guarded(write(tmp_path / "x.pt", item))
    assert str(caught.value).startswith(f"{tmp_path / 'x.pt'}: ")
    assert "\n" not in str(caught.value)


@table(BOMBS)
def test_bombs_are_linear(
    item: Raw, write: Callable[[Path, object], Path], guarded: Callable[[Path], Any], tmp_path: Path
) -> None:
    guarded(write(tmp_path / "x.pt", item))


def test_the_placeholder_says_what_it_would_have_been() -> None:
    found = loads(finish(Raw(call("os", "system", COMMAND).code + value({"a": 1}) + b"b")))
    assert (repr(found), found.qualified_name, found.args, found.state) == ("os.system",) * 2 + ((COMMAND,), {"a": 1})
    assert repr(loads(finish(stack_global("a\nb", "c" * 1000)))) == repr("a\nb." + "c" * 100)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"N", b"N.N", b"N" + STOP + b"\0", b"\x80\x04\x95", b"(", b"c", b"cos\n", b"S'a\n."]
)
def test_pickles_that_end_wrongly(data: bytes) -> None:
    with pytest.raises(PickleError, match="bad pickle"):
        loads(data)


def test_the_source_is_not_asked_for_more_than_there_is() -> None:
    """A buffered reader would allocate what the pickle declares."""

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 <= size <= 32
            return super().read(size)

    from convert.torch_format import pickle_machine

    with pytest.raises(PickleError, match="declared"):
        pickle_machine.load(Stream(b"\x8e" + struct.pack("<Q", 1 << 40) + b"x" * 100), 32)


@pytest.mark.filterwarnings("error")
def test_warnings_that_are_exceptions() -> None:
    with pytest.raises(PickleError, match="invalid escape"):
        loads(b"S'\\q'\n.")


def test_a_known_function_is_not_changed_by_build() -> None:
    loads(finish(RUNS["BUILD of a known function"]))
    assert loads(finish(call("collections", "OrderedDict", [("a", 1)]))) == {"a": 1}


def test_tensors_of_unknown_storages_are_inert(tmp_path: Path) -> None:
    code = finish(tensor(storage("QInt8Storage", count=4)))
    found = load(zip_file(tmp_path / "x.pt", code, {"0": bytes(4)}))
    assert repr(found) == "torch._utils._rebuild_tensor_v2"
    with pytest.raises(CheckpointError, match="QInt8Storage"):
        load(legacy_file(tmp_path / "y.pt", code, {"0": (4, bytes(4))}))
