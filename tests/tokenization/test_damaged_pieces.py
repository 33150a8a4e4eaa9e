"""Pieces that no text can have, files that are no files, and panics of the library: each is one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import decoders

from tests.helpers.library_tokenizers import LIBRARY_TOKENIZERS
from tests.helpers.transformers_tokenizers import bert, bpe
from tokenization import TokenizerError, load_tokenizer

HALF = "<\ud83d>"
BESIDE: dict[str, tuple[str, object]] = {
    "an added piece": ("added_tokens.json", {HALF: 400}),
    "a numbered piece": ("tokenizer_config.json", {"added_tokens_decoder": {"400": {"content": HALF}}}),
    "a part": ("tokenizer_config.json", {"eos_token": HALF}),
    "a part with flags": ("tokenizer_config.json", {"pad_token": {"content": HALF}}),
    "a further one": ("tokenizer_config.json", {"additional_special_tokens": ["a", HALF]}),
    "a part of the map": ("special_tokens_map.json", {"mask_token": HALF}),
}


@pytest.mark.parametrize("kind", [bert, bpe, "library"])
@pytest.mark.parametrize("case", BESIDE)
def test_half_a_surrogate_pair_in_a_declared_piece_is_one_line(case: str, kind: object, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    if callable(kind):
        kind(folder)
    else:
        folder.mkdir()
        LIBRARY_TOKENIZERS["WordLevel of characters"]().save(str(folder / "tokenizer.json"))
    name, values = BESIDE[case]
    (folder / name).write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=r"the piece '<\\ud83d>' has half a surrogate pair: damaged") as error:
        load_tokenizer(folder)
    str(error.value).encode()


def test_half_a_surrogate_pair_in_a_tokenizer_json_is_one_line(tmp_path: Path) -> None:
    values = json.loads(LIBRARY_TOKENIZERS["WordLevel of characters"]().to_str())
    saved = json.loads(bert(tmp_path / "own").backend_tokenizer.to_str())
    saved["model"]["vocab"][HALF] = len(saved["model"]["vocab"])
    values["added_tokens"].append({"id": 99, "content": HALF, "special": True})
    for broken in (values, saved):
        (tmp_path / "tokenizer.json").write_text(json.dumps(broken))
        with pytest.raises(TokenizerError) as error:
            load_tokenizer(tmp_path)
        assert "\n" not in str(error.value)
        str(error.value).encode()


def test_a_panic_while_decoding_is_an_error_without_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = LIBRARY_TOKENIZERS["WordLevel of characters"]()
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip("春", 0, 2)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="ids cannot be decoded: index out of bounds"):
        ours.decode(ours.encode("春"))
    assert ours.decode([]) == ""
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nobody/gpt2-base", "hf download nobody/gpt2-base --local-dir gpt2-base"),
        ("/dev/null", "a device"),
        ("pipe", "a named pipe"),
        ("file.txt/vocab.txt", "a part of its path is a file"),
        ("absent.txt", "no such file or folder"),
    ],
)
def test_what_is_no_tokenizer_is_said(path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("file.txt").touch()
    with pytest.raises(TokenizerError, match=words) as error:
        load_tokenizer(path)
    assert str(error.value).startswith(f"{path}: no tokenizer: ")


def test_pieces_of_two_files_that_the_model_has_no_rows_for_are_all_named(tmp_path: Path) -> None:
    tokenizer = LIBRARY_TOKENIZERS["WordLevel of characters"]()
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<一>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    added = {str(size + place): {"content": piece, "special": True} for place, piece in enumerate(["<一>", "<二>"])}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    (note,) = load_tokenizer(tmp_path, vocab_size=size).notes
    assert note.startswith("tokenizer: left out <一> <二>: ")
    (note,) = load_tokenizer(tmp_path, vocab_size=size + 1).notes
    assert note.startswith("tokenizer: left out <二>: ")
