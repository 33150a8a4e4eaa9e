"""GPT-2's byte-level BPE against transformers and against OpenAI's algorithm in plain Python."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import shared
from tests.helpers.tokenizer_texts import SPECIAL, varied_texts
from tokenization import ByteBPETokenizer, TokenizerError

END = "<|endoftext|>"
# Text -> ids of OpenAI's vocabulary; the first two are in transformers' documentation.
KNOWN = {
    "Hello world": [15496, 995],
    " Hello world": [18435, 995],
    "!": [0],
    "\n": [198],
    " ": [220],
    "": [],
}
SPLIT = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@pytest.fixture(scope="module")
def merges() -> Path:
    return shared("vocab/gpt2/merges.txt")


@pytest.fixture(scope="module")
def tokenizer(merges: Path) -> ByteBPETokenizer:
    return ByteBPETokenizer(merges.parent)


def symbols() -> list[str]:
    """Of the 256 bytes, by their value: itself where Latin-1 prints it, else the next one from U+0100 on."""
    free = iter(range(0x100, 0x200))
    shown = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
    return [chr(b if b in shown else next(free)) for b in range(256)]


def openai_vocabulary(merges: Path) -> dict[str, int]:
    """The bytes that print, those that do not, the merges, the end of a text."""
    lines = merges.read_text("utf-8").split("\n")[1:-1]
    return {piece: i for i, piece in enumerate([*sorted(symbols()), *(x.replace(" ", "") for x in lines), END])}


class OpenAI:
    """What ``encoder.py`` computes: the pair that was merged first is merged wherever it stands, until none is left."""

    def __init__(self, merges: Path) -> None:
        lines = merges.read_text("utf-8").split("\n")[1:-1]
        self.ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(lines)}
        self.vocabulary = openai_vocabulary(merges)
        self.symbols = symbols()

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in SPLIT.findall(text):
            word = [self.symbols[b] for b in part.encode()]
            while len(word) > 1:
                best = min(itertools.pairwise(word), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                merged: list[str] = []
                for piece in word:
                    if merged and (merged[-1], piece) == best:
                        merged[-1] += piece + "\0"  # closed: what was just merged is not merged again in this turn
                    else:
                        merged.append(piece)
                word = [piece.replace("\0", "") for piece in merged]
            ids += [self.vocabulary[piece] for piece in word]
        return ids


@pytest.fixture(scope="module")
def huggingface_folder(merges: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "merges.txt").write_bytes(merges.read_bytes())
    (folder / "vocab.json").write_text(json.dumps(openai_vocabulary(merges)))
    return folder


@pytest.fixture(scope="module")
def original(huggingface_folder: Path) -> Any:
    """``GPT2Tokenizer`` of transformers (before transformers 5 only the fast one)."""
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast.from_pretrained(str(huggingface_folder))


@pytest.fixture(scope="module")
def original_encode(original: Any) -> Callable[[str], list[int]]:
    """Told to leave a typed ``<|endoftext|>`` alone."""
    return lambda text: original.encode(text, add_special_tokens=False, split_special_tokens=True)


@pytest.mark.parametrize(("text", "ids"), KNOWN.items(), ids=map(repr, KNOWN))
def test_published_ids_are_found(tokenizer: ByteBPETokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


def test_agrees_with_transformers(
    tokenizer: ByteBPETokenizer, merges: Path, original_encode: Callable[[str], list[int]]
) -> None:
    openai = OpenAI(merges)
    texts = varied_texts()
    assert len(set(texts)) >= 2000
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == original_encode(text), text
        assert ids == openai(text), text
        assert tokenizer.decode(ids) == text


@given(st.text(max_size=40))
def test_agrees_with_transformers_on_any_characters(
    tokenizer: ByteBPETokenizer, original_encode: Callable[[str], list[int]], text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == original_encode(text)
    assert tokenizer.decode(ids) == text


def test_every_character_comes_back(tokenizer: ByteBPETokenizer, merges: Path) -> None:
    """Between letters, digits, spaces and marks; those that every version of Unicode in use agrees on."""
    openai = OpenAI(merges)
    old = [chr(i) for i in range(0x30000) if unicodedata.ucd_3_2_0.category(chr(i)) not in ("Cn", "Co", "Cs")]
    rare = [c for c in old if not 0x3400 <= ord(c) < 0xD7A4 and ord(c) < 0x20000]
    assert len(rare) > 10000
    for start in range(0, len(rare), 8):
        text = "".join(f"a{c} b{c}{c}1{c} {c}! {c} " for c in rare[start : start + 8])
        assert tokenizer.encode(text) == openai(text), text


@given(st.lists(st.integers(0, 50256), max_size=12))
def test_decodes_any_ids_as_transformers_does(tokenizer: ByteBPETokenizer, original: Any, ids: list[int]) -> None:
    assert tokenizer.decode(ids) == original.decode(ids, clean_up_tokenization_spaces=False)


@given(
    st.lists(st.sampled_from([*SPECIAL, "<", "|", "<|", "endoftext", "|>", " ", "天", "a"])).map("".join)
    | st.text(max_size=20)
)
def test_text_never_becomes_the_end_of_a_text(tokenizer: ByteBPETokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, append_eod=True) == [*ids, 50256]


def test_a_typed_end_is_what_openai_and_transformers_make_of_it(
    tokenizer: ByteBPETokenizer, merges: Path, original: Any
) -> None:
    text = f"one{END}two {END}"
    ids = OpenAI(merges)(text)
    assert tokenizer.encode(text) == ids
    assert original.encode(text, split_special_tokens=True) == ids
    assert 50256 in original.encode(text)


def test_special_ids_are_the_end_of_text(tokenizer: ByteBPETokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.eos_token_id, tokenizer.pad_token_id) == (50257, 50256, 50256)
    assert tokenizer.start_token_ids == ()
    assert tokenizer.encode_prompt("") == [50256]
    assert tokenizer.encode_prompt("Hello world") == [15496, 995]
    assert tokenizer.decode([15496, 50256]) == f"Hello{END}"
    assert tokenizer.decode(np.array([20015, 232], np.int64)) == "今"


def test_bytes_that_are_no_text_become_replacement_characters(tokenizer: ByteBPETokenizer) -> None:
    assert tokenizer.decode([20015]) == "\ufffd"
    assert tokenizer.bytes_of([20015]) == b"\xe4\xbb"
    assert tokenizer.decode([232, 15496]) == "\ufffdHello"


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_files_may_have_openais_or_hugging_faces_names(
    tokenizer: ByteBPETokenizer, huggingface_folder: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    for source, name in zip(("vocab.json", "merges.txt"), names, strict=True):
        (tmp_path / name).write_bytes((huggingface_folder / source).read_bytes())
    loaded = ByteBPETokenizer(tmp_path)
    assert loaded.eos_token_id == 50256
    for text in varied_texts()[::50]:
        assert loaded.encode(text) == tokenizer.encode(text)
    (tmp_path / "saved").mkdir()
    saved = loaded.save(tmp_path / "saved")
    assert [file.name for file in saved] == list(names)
    assert all(file.read_bytes() == (tmp_path / file.name).read_bytes() for file in saved)
    assert ByteBPETokenizer(tmp_path / "saved").encode("Hello world") == [15496, 995]


def test_merges_alone_are_saved_alone(tokenizer: ByteBPETokenizer, merges: Path, tmp_path: Path) -> None:
    assert [file.name for file in tokenizer.save(tmp_path)] == ["merges.txt"]
    assert (tmp_path / "merges.txt").read_bytes() == merges.read_bytes()
    assert ByteBPETokenizer(tmp_path / "merges.txt").encode("Hello world") == [15496, 995]


# A vocabulary of another order, with a marker of its own, and merges that make `he`, `hel` and `lo`.
MERGES = "#version: 0.2\nh e\nhe l\nl o\n"
PIECES = {piece: i for i, piece in enumerate([END, "<终>", *symbols(), "he", "lo", "hel"])}


def write(folder: Path, pieces: Any, merges: str = MERGES) -> Path:
    (folder / "vocab.json").write_text(json.dumps(pieces))
    (folder / "merges.txt").write_text(merges, "utf-8")
    return folder


def test_a_small_vocabulary_works(tmp_path: Path) -> None:
    small = ByteBPETokenizer(write(tmp_path, PIECES))
    assert (small.vocab_size, small.eos_token_id) == (261, 0)
    assert small.encode("hello") == [260, 259]
    assert small.decode([260, 259, 1, 0]) == f"hello<终>{END}"
    assert small.encode("<终>") == [2 + b for b in "<终>".encode()]
    (tmp_path / "vocab.json").unlink()
    assert ByteBPETokenizer(tmp_path).encode("hello", append_eod=True) == [257, 258, 259]


def test_line_ends_of_windows_do_not_matter(tmp_path: Path) -> None:
    (write(tmp_path, PIECES) / "merges.txt").write_bytes(MERGES.replace("\n", "\r\n").encode())
    assert ByteBPETokenizer(tmp_path).encode("hello") == [260, 259]


@pytest.mark.parametrize(
    ("pieces", "merges", "message"),
    [
        (PIECES, "", r"merges\.txt: expected merges, found none; with CPM"),
        (PIECES, "#version: 0.2\n\n", "expected merges, found none"),
        (PIECES, "h e\nhel\n", "line 2: expected two pieces and a space, found 'hel'"),
        (PIECES, "h e\nh  e\n", "line 2: expected two pieces"),
        (PIECES, "h e\nl o\nh e\n", "lines 1 and 3 are the same merge 'h e'"),
        (PIECES, "h e\nl o\n", r"makes 258 of the 261 pieces of vocab\.json, not 'hel': the file is cut"),
        (PIECES, MERGES + "o o\n", r"line 5 needs 'oo', which vocab\.json does not have"),
        ({**PIECES, "oo": 261}, MERGES, "not 'oo'"),
        ({**PIECES, "<\ud83d>": 261}, MERGES, r"the piece '<\\ud83d>' has half a surrogate pair"),
        ([PIECES], MERGES, "expected a JSON object"),
        ({**PIECES, END: 261}, MERGES, f"'{regex.escape(END)}' has the id 261, expected a number from 0 to 260"),
        ({**PIECES, END: -1}, MERGES, "has the id -1"),
        ({**PIECES, END: True}, MERGES, "has the id True"),
        ({**PIECES, END: 0.0}, MERGES, r"has the id 0\.0"),
        ({**PIECES, END: {"a": 1}}, MERGES, "has the id"),
        ({**PIECES, END: 1}, MERGES, r"and '<终>' have the same id 1"),
        ({k: i for i, k in enumerate(p for p in PIECES if p != "Ġ")}, MERGES, "no piece 'Ġ' for the byte 0x20"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, pieces: Any, merges: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as error:
        ByteBPETokenizer(write(tmp_path, pieces, merges))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100000, "not JSON"),
        (b'{"a": 0, "a": 1}', "the piece 'a' is there twice"),
        (b'{"\xff": 0}', r"vocab\.json: not UTF-8: byte 2 is 0xff"),
    ],
)
def test_a_broken_vocabulary_is_one_line(tmp_path: Path, vocabulary: bytes, message: str) -> None:
    (write(tmp_path, {}) / "vocab.json").write_bytes(vocabulary)
    with pytest.raises(TokenizerError, match=message):
        ByteBPETokenizer(tmp_path)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("he l\n", "line 1: 'he' is neither a byte nor made by a line before"),
        ("h e\nl l\nhe ll\nhe l\nhel l\n", "line 5 makes a piece that is there already"),
        ("h e\n今 e\n", "line 2: '今' is neither a byte"),
        ("v e\nv <\n", None),
    ],
)
def test_a_vocabulary_that_cannot_be_derived_is_one_line(tmp_path: Path, merges: str, message: str | None) -> None:
    (tmp_path / "vocab.bpe").write_text(merges, "utf-8")
    if message is None:
        assert ByteBPETokenizer(tmp_path).vocab_size == 259
        return
    with pytest.raises(TokenizerError, match=message):
        ByteBPETokenizer(tmp_path)


def test_a_folder_that_is_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"merges\.txt or vocab\.bpe or tokenizer\.json, found none"):
        ByteBPETokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"absent\.txt: cannot be read: No such file"):
        ByteBPETokenizer(tmp_path / "absent.txt")
    (tmp_path / "merges.txt").write_bytes(b"h \xff\n")
    with pytest.raises(TokenizerError, match="not UTF-8"):
        ByteBPETokenizer(tmp_path)


def test_half_a_surrogate_pair_and_unknown_ids_are_refused(tmp_path: Path) -> None:
    small = ByteBPETokenizer(write(tmp_path, PIECES))
    for ids in ([261], [-1]):
        with pytest.raises(TokenizerError, match=r"outside the vocabulary \(0 to 260\)"):
            small.decode(ids)
    with pytest.raises(TokenizerError, match="surrogate"):
        small.encode("天\ud83d")
