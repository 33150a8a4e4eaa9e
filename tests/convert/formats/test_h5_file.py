"""Files of transformers' TensorFlow GPT-2 and of Keras: names, shapes and bits, against PyTorch's state dict."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from convert.formats.h5_file import is_h5, read_h5, read_h5_index, state_dict_name
from support.errors import CheckpointError
from tests.helpers.huggingface import random_model
from tests.helpers.keras_h5 import KerasH5, numpy_state, write_shards


@functools.cache
def state() -> dict[str, np.ndarray]:
    return numpy_state(random_model(n_layer=11, n_embd=24, vocab_size=50))  # h_._1 and h_._10


def gzip(**options: object) -> KerasH5:
    return KerasH5(storage={"compression": "gzip", "chunks": (7, 5), **options})


LAYOUTS: dict[str, KerasH5] = {
    "transformers 2 and 3": KerasH5(model="tfgp_t2lm_head_model/"),
    "transformers 4": KerasH5(model="tfgpt2lm_head_model/"),
    "an embedding of Keras": KerasH5(token_embedding="embeddings"),
    "the second model of a program": KerasH5(model="tfgpt2lm_head_model_1/"),
    "a model without a head": KerasH5(model="tfgpt2_model/"),
    "a class of one's own": KerasH5(model="story_model/tfgpt2lm_head_model/", group="tfgpt2lm_head_model"),
    "a main layer called otherwise": KerasH5(model="gpt/decoder/", group="decoder"),
    "variables without a number": KerasH5(ending=""),
    "model.save": KerasH5(inside="model_weights"),
    "a user block": KerasH5(user_block=2048),
    "pieces": KerasH5(storage={"chunks": (7, 5)}),
    "gzip": gzip(),
    "gzip, shuffled, with checksums": gzip(shuffle=True, fletcher32=True),
    "gzip in pieces larger than the tensors": gzip(chunks=(200, 200), maxshape=(None, None), shuffle=True),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_has_the_names_shapes_and_bits_of_the_state_dict(layout: KerasH5, tmp_path: Path) -> None:
    layout.write(tmp_path / "x.h5", state())
    assert is_h5(tmp_path / "x.h5")
    found = read_h5(tmp_path / "x.h5")
    assert found.keys() == state().keys()
    for name, value in state().items():
        assert found[name].shape == value.shape
        assert found[name].dtype == value.dtype
        assert np.array_equal(found[name].numpy(), value), name


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_types_are_those_of_the_file(dtype: str, tmp_path: Path) -> None:
    KerasH5().write(tmp_path / "x.h5", numpy_state(random_model(n_layer=1), dtype))
    assert {tensor.dtype for tensor in read_h5(tmp_path / "x.h5").values()} == {np.dtype(dtype)}


def test_shards_are_one_model(tmp_path: Path) -> None:
    index = write_shards(tmp_path, state(), 3)
    found = read_h5_index(index)
    assert {name: tensor.numpy().tobytes() for name, tensor in found.items()} == {
        name: value.tobytes() for name, value in state().items()
    }
    (tmp_path / "tf_model-00002-of-00003.h5").unlink()
    with pytest.raises(CheckpointError, match=r"tf_model-00002-of-00003\.h5: is missing"):
        read_h5_index(index)


EXTRA: dict[str, tuple[dict[str, np.ndarray], set[str]]] = {
    "two heads": (
        {"multiple_choice_head/tfgpt2double_heads_model/multiple_choice_head/summary/kernel:0": np.ones((24, 1))},
        {"multiple_choice_head.summary.kernel"},
    ),
    "a classifier": ({"score/tfgpt2_for_sequence_classification/score/kernel:0": np.ones((24, 2))}, {"score.kernel"}),
    "an optimizer": (
        {
            "optimizer_weights/Adam/iter:0": np.int64(7),
            "optimizer_weights/Adam/tfgpt2lm_head_model/transformer/wte/weight/m:0": np.ones((50, 24)),
        },
        set(),
    ),
    "a weight of the model and of its layer": (
        {"top_level_model_weights/tfgpt2lm_head_model/transformer/wte/weight:0": np.ones((50, 24))},
        set(),
    ),
    "a variable of two layers": (
        {"decoder/tfgpt2lm_head_model/transformer/wte/weight:0": np.ones((50, 24))},
        set(),
    ),
    "a weight of the model": ({"top_level_model_weights/my_model/temperature:0": np.ones(1)}, {"my_model.temperature"}),
    "a text": ({"notes": np.bytes_(b"of an experiment")}, {"notes"}),
    "nothing": ({"empty": np.zeros((0, 3), np.float32)}, {"empty"}),
}


@pytest.mark.parametrize("case", EXTRA)
def test_what_else_a_file_holds_has_a_name_of_its_own(case: str, tmp_path: Path) -> None:
    extra, names = EXTRA[case]
    KerasH5().write(tmp_path / "x.h5", state(), extra)
    found = read_h5(tmp_path / "x.h5")
    assert found.keys() - state().keys() == names
    assert np.array_equal(found["transformer.wte.weight"].numpy(), state()["transformer.wte.weight"])


def test_names_of_layers_between_are_kept() -> None:
    path = "transformer/tfgpt2lm_head_model/transformer/h_._3/crossattention/c_attn/weight:0"
    assert state_dict_name(path) == "transformer.h.3.crossattention.c_attn.weight"


def second_model(file: Path) -> None:
    layout = KerasH5(model="tfgpt2lm_head_model_1/")
    other = {f"teacher/{layout.variable(name)}": value for name, value in state().items()}
    KerasH5().write(file, state(), other)


def unwritten(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened.create_dataset("transformer/wte/weight:0", (50, 24), "f4")


def unwritten_pieces(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened.create_dataset("transformer/wte/weight:0", (50, 24), "f4", chunks=(10, 24))[:40] = 1.0


def lzf(file: Path) -> None:
    KerasH5(storage={"compression": "lzf"}).write(file, state())


def cut(file: Path) -> None:
    KerasH5().write(file, state())
    file.write_bytes(file.read_bytes()[:-2000])


def cut_in_the_head(file: Path) -> None:
    file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(20))


def damaged_piece(file: Path) -> None:
    gzip().write(file, state())
    with h5py.File(file) as opened:
        place = opened["transformer/tfgpt2lm_head_model/transformer/wte/weight:0"].id.get_chunk_info(3)
    data = bytearray(file.read_bytes())
    data[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    file.write_bytes(data)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "two models": (second_model, "two tensors for transformer.* several models in one file"),
    "a tensor that was never written": (unwritten, r"weight:0: \[50, 24\] has no values in the file"),
    "a part that was never written": (unwritten_pieces, r"\[50, 24\] has 4 pieces of \[10, 24\] in the file"),
    "packed by another program": (lzf, "packed by the filter lzf: repack it with h5repack -f NONE"),
    "a file that is cut off": (cut, "cannot be read as HDF5: .*truncated.*: damaged or cut off, get it again"),
    "a file that is a signature": (cut_in_the_head, "cannot be read as HDF5"),
    "a piece that is damaged": (damaged_piece, "wte/weight:0: cannot be unpacked: .*: damaged, get it again"),
}


def read_all(file: Path) -> None:
    for tensor in read_h5(file).values():
        tensor.numpy()


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_of_one_line(case: str, tmp_path: Path) -> None:
    spoil, words = BROKEN[case]
    spoil(tmp_path / "x.h5")
    with pytest.raises(CheckpointError, match=words) as caught:
        read_all(tmp_path / "x.h5")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_other_files_are_no_hdf5(tmp_path: Path) -> None:
    for content in (b"", b"\x89HDF", b"PK\x03\x04" + bytes(5000), bytes(100) + b"\x89HDF\r\n\x1a\n" + bytes(1000)):
        (tmp_path / "x").write_bytes(content)
        assert not is_h5(tmp_path / "x")
