"""torch.save writes, ``load`` reads: both formats, every kind of tensor, and whatever else checkpoints hold."""

from __future__ import annotations

import argparse
import collections
import contextlib
import math
import random
import sys
import types
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from convert.torch_format.reader import Placeholder, TensorRef, load, read_torch_file
from support.errors import CheckpointError
from tests.attacks.assembler import finish, legacy_file, storage, tensor

WAYS = [(zipped, protocol) for zipped in (True, False) for protocol in (2, 4)]


@pytest.fixture(params=WAYS, ids=[f"{'zip' if zipped else 'legacy'}-{protocol}" for zipped, protocol in WAYS])
def save_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    zipped, protocol = request.param
    return {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}


def raw(values: torch.Tensor) -> bytes:
    plain = values.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def assert_same(found: Any, expected: torch.Tensor) -> None:
    """Bit for bit, and the array cannot be written to."""
    assert isinstance(found, TensorRef)
    values = found.numpy()
    assert values.shape == tuple(expected.shape) == found.shape
    assert values.dtype == found.dtype
    assert values.dtype.name == str(expected.dtype).removeprefix("torch.")
    assert np.ascontiguousarray(values).tobytes() == raw(expected)
    assert found.nbytes == expected.numel() * expected.element_size()
    assert not values.flags.writeable
    found.storage.check()


FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
DTYPES = [*FLOATS, "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]


def test_every_dtype_keeps_its_values(save_options: dict[str, Any], tmp_path: Path) -> None:
    numbers = torch.tensor([0, 1, -3, 100, 7, 2])
    tensors = {name: numbers.abs().to(getattr(torch, name)).reshape(2, 3) for name in DTYPES}
    torch.save(tensors, tmp_path / "x.pt", **save_options)
    found = load(tmp_path / "x.pt")
    assert list(found) == DTYPES
    for name, expected in tensors.items():
        assert_same(found[name], expected)
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16


def test_every_half_keeps_its_bits(save_options: dict[str, Any], tmp_path: Path) -> None:
    """All 65,536 of them: NaNs with their payloads, denormal numbers, infinities."""
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    tensors = [bits.view(torch.float16), bits.clone().view(torch.bfloat16)]
    torch.save(tensors, tmp_path / "x.pt", **save_options)
    for found, expected in zip(load(tmp_path / "x.pt"), tensors, strict=True):
        assert_same(found, expected)


def test_views_keep_their_strides_and_share_their_storage(save_options: dict[str, Any], tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    views = [
        base,
        base[1],
        base[:, 1:3],
        base[::2, ::3, 1::2],
        base.transpose(0, 2),
        base[1].T,
        base[2, 3, 4],
        base[0, 0, :1].expand(6),
        base[:, :1].expand(3, 7, 5),
        base[3:],
        base[3:, 2:],
        base.unsqueeze(1),
        torch.tensor(2.5),
        torch.empty(0),
        torch.empty(3, 0, 2),
    ]
    torch.save(views, tmp_path / "x.pt", **save_options)
    found = load(tmp_path / "x.pt")
    for item, expected in zip(found, views, strict=True):
        assert_same(item, expected)
        assert item.stride == expected.stride()
    assert len({id(item.storage) for item in found[:12]}) == 1


def test_parameters_and_buffers_are_read_as_their_tensors(save_options: dict[str, Any], tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    with_state = torch.nn.Parameter(torch.randn(3))
    with_state.model_parallel = True  # type: ignore[attr-defined]
    with_attributes = torch.randn(3)
    with_attributes.origin = "x"  # type: ignore[attr-defined]
    shared = torch.nn.Parameter(parameter.data)
    tensors = [parameter, with_state, with_attributes, torch.nn.Buffer(torch.ones(2)), shared]
    torch.save([*tensors, torch.ones(2).untyped_storage()], tmp_path / "x.pt", **save_options)
    *found, untyped = load(tmp_path / "x.pt")
    for item, expected in zip(found, tensors, strict=True):
        assert_same(item, expected)
    assert found[0].storage is found[4].storage
    assert (untyped.dtype, untyped.count) == (np.uint8, 8)


def test_a_state_dict_keeps_its_names_and_order(save_options: dict[str, Any], tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    state = model.state_dict()
    assert state._metadata
    torch.save({"module": state, "iteration": 80000, "optimizer": None}, tmp_path / "x.pt", **save_options)
    found = load(tmp_path / "x.pt")
    assert type(found["module"]) is dict
    assert list(found["module"]) == list(state)
    assert (found["iteration"], found["optimizer"]) == (80000, None)
    for name, expected in state.items():
        assert_same(found["module"][name], expected)


def test_a_whole_module_is_a_placeholder_with_its_tensors(save_options: dict[str, Any], tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "x.pt", **save_options)
    found = load(tmp_path / "x.pt")
    assert repr(found) == "torch.nn.modules.linear.Linear"
    assert found.state["_parameters"]["weight"].shape == (3, 2)


@contextlib.contextmanager
def vanishing_module() -> Iterator[types.ModuleType]:
    """A module with a class, which whoever reads the file does not have."""
    module = types.ModuleType("vanished_deepspeed")
    exec("class Scaler:\n    pass\nclass Loss(dict):\n    pass\n", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


def test_whatever_else_checkpoints_hold_is_read(save_options: dict[str, Any], tmp_path: Path) -> None:
    with vanishing_module() as module:
        scaler, loss = module.Scaler(), module.Loss(lm=1.5)
        scaler.cur_scale, scaler.weight = 65536.0, torch.ones(2)
        namespace = argparse.Namespace(num_layers=32, fp16=True, name="CPM", lr=[0.1], nested={"a": (1, None)})
        value = {
            "random_rng_state": random.getstate(),
            "np_rng_state": np.random.get_state(),
            "torch_rng_state": torch.get_rng_state(),
            "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
            "args": namespace,
            "scaler": scaler,
            "loss": loss,
            "scalar": np.float32(3.5),
            "array": np.arange(3),
            "size": torch.ones(2, 3).shape,
            "dtype": torch.bfloat16,
            "exotic": torch.quint8,
            "device": torch.device("cpu"),
            "sets": ({1, 2}, frozenset("ab")),
            "counter": collections.defaultdict(list, {"a": [1]}),
            "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
            "bytes": (b"\x00\xff", bytearray(b"\xfe"), b""),
            "numbers": (1 << 100, -1, 1.5, math.inf, 2 + 3j, True, None),
            "text": "千山鸟飞绝\n",
            "nested": [[[{"a": [()]}]]],
        }
        torch.save(value, tmp_path / "x.pt", **save_options)
    found = load(tmp_path / "x.pt")
    for key in ("random_rng_state", "size", "sets", "counter", "ordered", "bytes", "numbers", "text", "nested"):
        assert found[key] == value[key]
    assert list(found["ordered"]) == ["b", "a"]
    assert [type(item) for item in found["bytes"]] == [bytes, bytearray, bytes]
    assert_same(found["torch_rng_state"], value["torch_rng_state"])
    assert_same(found["rng_tracker_states"]["model-parallel-rng"], value["torch_rng_state"])
    assert found["np_rng_state"][0] == "MT19937"
    assert isinstance(found["np_rng_state"][1], Placeholder)
    assert (repr(found["args"]), found["args"].state) == ("argparse.Namespace", vars(namespace))
    assert repr(found["scaler"]) == "vanished_deepspeed.Scaler"
    assert found["scaler"].state["cur_scale"] == 65536.0
    assert_same(found["scaler"].state["weight"], scaler.weight)
    assert found["loss"].entries == {"lm": 1.5}
    assert found["dtype"] == ml_dtypes.bfloat16
    assert [repr(found[key]) for key in ("exotic", "device")] == ["torch.quint8", "torch.device"]


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_placeholders(tmp_path: Path) -> None:
    conjugated = torch.ones(2, dtype=torch.complex64).conj()
    values = [torch.eye(2).to_sparse(), conjugated, torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)]
    torch.save(values, tmp_path / "x.pt")
    names = ["_rebuild_sparse_tensor", "_rebuild_tensor_v2", "_rebuild_qtensor"]
    assert [repr(item) for item in load(tmp_path / "x.pt")] == [f"torch._utils.{name}" for name in names]


def test_old_legacy_files_may_refer_to_part_of_a_storage(tmp_path: Path) -> None:
    data = np.arange(6, dtype="<f2").tobytes()
    part = storage("HalfStorage", "0", 6, view=("9", 2, 3))
    code = finish([tensor(storage("HalfStorage", "0", 6), 0, (6,)), tensor(part, 1, (2,))])
    whole, found = load(legacy_file(tmp_path / "x.pt", code, {"0": (6, data)}))
    assert (whole.numpy().tolist(), found.numpy().tolist()) == ([0, 1, 2, 3, 4, 5], [3, 4])


def test_an_unaligned_legacy_storage_is_read(tmp_path: Path) -> None:
    for padding in range(8):
        torch.save({"x" * padding: torch.arange(5.0)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
        (found,) = load(tmp_path / "x.pt").values()
        assert_same(found, torch.arange(5.0))


def test_the_mapping_goes_away_with_the_array(tmp_path: Path) -> None:
    torch.save([torch.zeros(1 << 18), torch.ones(4)], tmp_path / "x.pt")
    _, found = load(tmp_path / "x.pt")
    values = found.numpy()
    assert len(values.base) < 8192  # these four elements, from the start of a page
    mapping = weakref.ref(values.base)
    part = values[1:]
    del values
    assert mapping() is not None
    assert part.tolist() == [1, 1, 1]
    del part
    assert mapping() is None


def test_a_damaged_storage_is_found_by_its_checksum(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4), "b": torch.full((9 << 18,), 2.0)}, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt")["b"]
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[found.storage.offset + 5_000_000] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    found = load(tmp_path / "x.pt")
    found["a"].storage.check()
    with pytest.raises(CheckpointError, match=r"x\.pt: storage '1' is damaged"):
        found["b"].storage.check()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_keeps_the_name_it_was_saved_under(zipped: bool, tmp_path: Path) -> None:
    """Archives do; the legacy format has no place for it."""
    torch.save({"a": torch.ones(4)}, tmp_path / "first.pt", _use_new_zipfile_serialization=zipped)
    renamed = (tmp_path / "first.pt").rename(tmp_path / "second.pt")
    assert read_torch_file(renamed).saved_name == ("first" if zipped else None)


def test_tensors_of_a_file_compare_a_shared_checksum_once(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    torch.save({"a": whole, "b": whole[2:]}, tmp_path / "x.pt")
    file = read_torch_file(tmp_path / "x.pt")
    tensors = file.tensors(file.value)
    assert tensors["a"].numpy().tolist() == whole.tolist()
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[tensors["a"].ref.storage.offset] ^= 1  # of a part that b does not have
    (tmp_path / "x.pt").write_bytes(data)
    assert tensors["b"].numpy().tolist() == whole[2:].tolist()
    with pytest.raises(CheckpointError, match=r"x\.pt: storage '0' is damaged"):
        file.tensors({"b": file.value["b"]})["b"].ref.storage.check()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": [1.0]}, "a: expected a tensor, found a list"),
        ({5: torch.ones(2)}, "5: expected a tensor"),
        ({"a": torch.ones(1).expand(1 << 40, 48)}, "bytes, of which the file has fewer"),
    ],
)
def test_a_state_dict_of_something_else_is_refused(state: dict[Any, Any], words: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "x.pt")
    file = read_torch_file(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=words):
        file.tensors(file.value)


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"aaaa": 1}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes().replace(b"aaaa", b"aaab"))
    with pytest.raises(CheckpointError, match=r"data\.pkl is damaged"):
        load(tmp_path / "x.pt")


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(4)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.getinfo("x/data/0").CRC == 0
    assert_same(load(tmp_path / "x.pt")["a"], torch.ones(4))


def test_repacked_archives_are_read_unless_compressed(tmp_path: Path) -> None:
    """Unpacked and packed again without compression: other order, another prefix or none; with it: an error."""
    torch.save({"a": torch.arange(3.0)}, tmp_path / "x.pt")
    for prefix in ("", "archive/", "two/levels/"):
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "y.pt", "w", method) as new:
                for name in reversed(old.namelist()):
                    new.writestr(prefix + name.partition("/")[2], old.read(name))
            if method == zipfile.ZIP_STORED:
                assert_same(load(tmp_path / "y.pt")["a"], torch.arange(3.0))
            else:
                with pytest.raises(CheckpointError, match="compressed"):
                    load(tmp_path / "y.pt")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_named_in_the_error(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match="found a TorchScript archive"):
        load(tmp_path / "x.pt")


def small(path: Path, zipped: bool) -> bytes:
    value = {
        "a": torch.arange(6.0).reshape(2, 3),
        "n": {"b": torch.ones(2, dtype=torch.half), "c": [1, "x", (2.5, None)]},
    }
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path.read_bytes()


def use(path: Path) -> Any:
    """Loads, checks and reads everything on the first two levels."""
    found = load(path)
    for item in found.values() if isinstance(found, dict) else ():
        for inner in item.values() if isinstance(item, dict) else [item]:
            if isinstance(inner, TensorRef) and inner.nbytes < 1 << 20:
                inner.storage.check()
                inner.numpy().tobytes()
    return found


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_are_refused(zipped: bool, tmp_path: Path) -> None:
    data = small(tmp_path / "x.pt", zipped)
    cuts = [*random.Random(0).sample(range(len(data)), 50), 0, 1, len(data) - 1]
    for cut in cuts:
        (tmp_path / "x.pt").write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            load(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bytes_end_in_values_or_in_one_error(zipped: bool, tmp_path: Path) -> None:
    """In the pickles; with the CRC-32 switched off, or it would find all of them."""
    data = small(tmp_path / "x.pt", zipped)
    if zipped:
        with zipfile.ZipFile(tmp_path / "x.pt") as archive:
            checksums = [entry.CRC.to_bytes(4, "little") for entry in archive.infolist()]
        for crc in checksums:
            data = data.replace(crc, bytes(4))
        start, end = data.index(b"\x80\x02"), data.index(b"PK", 10)
    else:
        start, end = 0, len(data)
    source = random.Random(1)
    outcomes = collections.Counter()
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 5))):
            changed[source.randrange(start, end)] = source.randrange(256)
        (tmp_path / "x.pt").write_bytes(changed)
        try:
            use(tmp_path / "x.pt")
            outcomes["loaded"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert min(outcomes["loaded"], outcomes["refused"]) > 20
