"""Special pieces in prompts, against what transformers makes of them with the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests.helpers.small_vocabularies import write_tokenizer
from tests.helpers.transformers_tokenizers import bert, bpe
from tokenization import CPMTokenizer, Tokenizer, TokenizerError, load_tokenizer

PROMPTS = [
    "[CLS]今天hello",
    "[MASK]今天",
    "今天[SEP]hello[SEP]",
    "[SEP] 今天 [CLS]",
    "[cls]今[ SEP ]天[UNK]",
    "[PAD]今",
    "<|endoftext|>hello<|endoftext|> world",
    "hello <|n|> world<|n|>",
    "[BOS] hello[BOS]x",
    "a[VERSE] hello  [VERSE]hello",
    "verses Verse verse, VERSE",
    "今天",
    "",
]


def added(theirs: Any) -> Any:
    """Pieces with every flag that the library knows."""
    theirs.add_tokens(
        [
            AddedToken("[BOS]", special=True),
            AddedToken("<|n|>", special=True, lstrip=True, rstrip=True),
            AddedToken("[VERSE]", special=True, rstrip=True),
            AddedToken("Verse", special=True, single_word=True, normalized=True),
            AddedToken("hell", special=False),
        ]
    )
    return theirs


MAKERS: dict[str, Callable[[Path], Any]] = {
    "bert": bert,
    "bert with capital letters": lambda folder: bert(folder, do_lower_case=False),
    "bert, added pieces": lambda folder: added(bert(folder)),
    "bert with other parts": lambda folder: bert(folder, sep_token="hello", bos_token="今", mask_token="[MASK]"),
    "gpt2": bpe,
    "gpt2 with a space in front": lambda folder: bpe(folder, add_prefix_space=True),
    "gpt2, added pieces": lambda folder: added(bpe(folder)),
}


def pair(kind: str, folder: Path, *, version: int) -> tuple[Tokenizer, Any, set[str]]:
    """Our tokenizer and transformers' for the files that a version of transformers writes; the special pieces."""
    theirs = MAKERS[kind](folder / "own")
    theirs.save_pretrained(folder / "saved")
    saved, tokens = folder / "saved", theirs.added_tokens_decoder
    if version < 5:  # vocabularies in files of their own
        own = json.loads((saved / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        (saved / "tokenizer.json").unlink()
        for file in (folder / "own").iterdir():
            file.rename(saved / file.name)
        config = json.loads((saved / "tokenizer_config.json").read_text("utf-8"))
        names = {key: config.pop(key) for key in list(config) if key.endswith("_token")}
        if version == 4:
            flags = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
            decoder = {index: {flag: getattr(token, flag) for flag in flags} for index, token in tokens.items()}
            config.update(names, added_tokens_decoder=decoder)
        else:
            names["additional_special_tokens"] = [token.content for token in tokens.values() if token.special]
            added = {token.content: index for index, token in tokens.items() if token.content not in own}
            (saved / "special_tokens_map.json").write_text(json.dumps(names), "utf-8")
            (saved / "added_tokens.json").write_text(json.dumps(added), "utf-8")
        (saved / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    special = {token.content for token in theirs.added_tokens_decoder.values() if token.special}
    return load_tokenizer(folder / "saved"), type(theirs).from_pretrained(folder / "saved"), special


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("kind", MAKERS)
def test_prompts_are_the_ids_of_transformers(kind: str, version: int, tmp_path: Path) -> None:
    ours, theirs, special = pair(kind, tmp_path, version=version)
    start = list(ours.start_token_ids)
    nothing = {theirs.unk_token_id if kind.startswith("bert") else None, theirs.pad_token_id}
    begins = {theirs.convert_tokens_to_ids(piece) for piece in special} - nothing
    # The files of version 3 do not have the flags of a piece.
    for prompt in [prompt for prompt in PROMPTS if version > 3 or "erse" not in prompt]:
        ids = theirs.encode(prompt, add_special_tokens=False)
        expected = ids if ids and ids[0] in begins else [*start, *ids]
        assert ours.encode_prompt(prompt) == (expected or [ours.eos_token_id]), prompt
        plain = ours.encode(prompt)
        if version > 3:  # transformers 5 takes the special pieces of version 3's files for ordinary ones
            assert plain == theirs.encode(prompt, add_special_tokens=False, split_special_tokens=True), prompt
        off = ours.encode_prompt(prompt, special_pieces=False)
        assert off == ([*start, *plain] or [ours.eos_token_id]), prompt
    assert ours.special_pieces == {piece: theirs.convert_tokens_to_ids(piece) for piece in special}


@pytest.mark.parametrize("kind", ["bert, added pieces", "gpt2, added pieces"])
def test_prompts_of_any_pieces_are_the_ids_of_transformers(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    ours, theirs, _ = pair(kind, tmp_path_factory.mktemp("pieces"), version=5)

    @given(st.lists(st.sampled_from([*ours.special_pieces, "hell", "[", "]", "Verses", " ", "今", "x", "\n"])))
    def check(parts: list[str]) -> None:
        prompt = "".join(parts)
        ids = theirs.encode(prompt, add_special_tokens=False)
        assert ours.encode_prompt(prompt)[-len(ids) or 1 :] == (ids or ours.encode_prompt("")[1:])

    check()


def test_a_prompt_that_names_its_beginning_gets_no_other(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer("bert", tmp_path / "bert"))
    cls, sep, mask, pad, unk = (tokenizer.special_pieces[f"[{name}]"] for name in ("CLS", "SEP", "MASK", "PAD", "UNK"))
    rest = tokenizer.encode("今天")
    for prompt, expected in {
        "[CLS]今天": [cls, *rest],
        "  [CLS] 今天": [cls, *rest],
        "[MASK]今天": [mask, *rest],
        "[SEP]今天": [sep, *rest],
        "[CLS][CLS]今天": [cls, cls, *rest],
        "[PAD]今天": [cls, pad, *rest],
        "[UNK]今天": [cls, unk, *rest],
        "☃今天": [cls, unk, *rest],
        "今天[CLS]": [cls, *rest, cls],
    }.items():
        assert tokenizer.encode_prompt(prompt) == expected, prompt


def test_a_vocabularys_own_markers_are_read_without_being_declared(tmp_path: Path) -> None:
    """No merge makes them, so they are in the vocabulary for somebody who names them."""
    folder = write_tokenizer("bpe", tmp_path / "bpe")
    pieces = json.loads((folder / "vocab.json").read_text("utf-8"))
    size = len(pieces)
    (folder / "vocab.json").write_text(json.dumps({**pieces, "<|n|>": size, "[BOS]": size + 1, "<终>": size + 2}))
    tokenizer = load_tokenizer(folder)
    hello = tokenizer.encode("hello")
    assert tokenizer.encode_prompt("[BOS]hello<|n|>hello<终>") == [size + 1, *hello, size, *hello, size + 2]
    assert not set(tokenizer.encode("[BOS]<|n|><终>")) & {size, size + 1, size + 2}
    assert tokenizer.decode(tokenizer.encode_prompt("[BOS]hello<|n|>")) == "[BOS]hello<|n|>"


def test_cpms_separators_are_read_and_the_end_of_a_document_when_asked_for(demo: Path) -> None:
    tokenizer = CPMTokenizer(demo / "tokenizer")
    first, second = tokenizer.encode("一曲新词"), tokenizer.encode("夕阳")
    assert tokenizer.encode_prompt("一曲新词<sep>夕阳") == [*first, 4, *second]
    assert tokenizer.encode_prompt("<s>一曲新词</s><mask>") == [1, *first, 2, 6]
    assert tokenizer.encode_prompt("一曲新词<eod>夕阳") == tokenizer.encode("一曲新词<eod>夕阳")
    assert tokenizer.encode_prompt("一曲新词<sep><eod>夕阳", special_pieces=True) == [*first, 4, 7, *second]
    for text in ("一曲新词<sep>夕阳", "<eod>夕阳"):
        assert tokenizer.encode_prompt(text, special_pieces=False) == tokenizer.encode(text)
        assert not {1, 2, 4, 5, 6, 7} & set(tokenizer.encode(text))
    with pytest.raises(TokenizerError, match="no tokens"):
        tokenizer.encode_prompt("", special_pieces=True)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("added_tokens.json", {"[X]": 99}, "has the id 99, expected 5"),
        ("added_tokens.json", {"[X]": 0}, "has the id 0"),
        ("added_tokens.json", {"[X]": "5"}, "has the id 5, expected a number"),
        ("added_tokens.json", [1], "not a JSON object"),
        ("special_tokens_map.json", {"eos_token": 7}, "eos_token: expected a piece, found '7'"),
        ("special_tokens_map.json", {"eos_token": {"content": None}}, "eos_token: expected a piece"),
        ("special_tokens_map.json", {"additional_special_tokens": [3]}, "additional_special_tokens: expected a piece"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "an object of ids and pieces"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": "a"}}, "expected an added piece with a content"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": "a", "lstrip": 1}}}, "damaged"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "an object of ids and pieces"),
    ],
)
def test_damaged_declarations_are_one_line(file: str, content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n天\n", "utf-8")
    (tmp_path / file).write_text(json.dumps(content), "utf-8")
    with pytest.raises(TokenizerError, match=message) as error:
        load_tokenizer(tmp_path)
    assert file in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))
