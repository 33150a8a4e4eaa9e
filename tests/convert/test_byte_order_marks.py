"""Every text file that lies next to weights may be as Windows' editors save it, and gives what it gave before."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers

from convert.conversion import to_checkpoint
from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError
from tests.helpers.assertions import assert_one_line
from tests.helpers.huggingface import random_model
from tests.helpers.in_memory import InMemory, required_options
from tests.helpers.light import main
from tests.helpers.small_vocabularies import write_tokenizer
from tf_model.config import GPT2Config
from tokenization import TokenizerError, load_tokenizer

CONFIG = GPT2Config(vocab_size=96, n_positions=16, n_embd=24, n_layer=1, n_head=2)
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E50 + i) for i in range(91))]
TEXT = "乐乑乒"


def _with_characters(folder: Path) -> None:
    random_model().save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES[:95]))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true,\n "tokenize_chinese_chars": true}')
    (folder / "added_tokens.json").write_text(json.dumps({PIECES[95]: 95}))


def _with_bytes(folder: Path) -> None:
    random_model(vocab_size=262).save_pretrained(folder, max_shard_size="60KB")
    files = write_tokenizer("bpe", folder / "tokenizer")
    for file in list(files.iterdir()):
        file.rename(folder / file.name)
    files.rmdir()


def _written(format: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        to_checkpoint(InMemory(CONFIG), folder, format=format, options=required_options(format))

    return write


SOURCES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "characters": (
        _with_characters,
        ("config.json", "generation_config.json", "vocab.txt", "tokenizer_config.json", "added_tokens.json"),
    ),
    "bytes": (_with_bytes, ("vocab.json", "merges.txt", "model.safetensors.index.json")),
    "openai-tf1": (_written("openai-tf1"), ("hparams.json", "checkpoint")),
    "megatron": (_written("megatron"), ("latest_checkpointed_iteration.txt", "manifest.json")),
    "megatron-lm": (_written("megatron-lm"), ("latest_checkpointed_iteration.txt",)),
    "uer": (_written("uer"), ("config.json",)),
}
"""Source -> what writes it, and its text files."""
FILES = [(source, name) for source, (_, names) in SOURCES.items() for name in names]
AS_EDITED: dict[str, Callable[[bytes], bytes]] = {
    "a byte order mark": lambda content: codecs.BOM_UTF8 + content,
    "lines of Windows": lambda content: content.replace(b"\n", b"\r\n"),
    "both": lambda content: codecs.BOM_UTF8 + content.replace(b"\n", b"\r\n"),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for source, (write, _) in SOURCES.items():
        folders[source] = tmp_path_factory.mktemp("sources") / source
        write(folders[source])
    return folders


@pytest.mark.parametrize("edit", AS_EDITED)
@pytest.mark.parametrize(("source", "name"), FILES, ids=[f"{source}: {name}" for source, name in FILES])
def test_a_file_that_an_editor_has_saved_says_the_same(
    source: str, name: str, edit: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    before = open_checkpoint(sources[source], heads=None if source in ("characters", "bytes") else 2)
    shutil.copytree(sources[source], tmp_path / "copy")
    file = tmp_path / "copy" / name
    file.write_bytes(AS_EDITED[edit](file.read_bytes()))
    after = open_checkpoint(tmp_path / "copy", heads=None if source in ("characters", "bytes") else 2)
    assert after.config == before.config
    assert after.tokens == before.tokens
    for tensor in ("wte.weight", "h.0.mlp.c_fc.weight"):
        assert np.array_equal(after.read(tensor, np.dtype("f4")), before.read(tensor, np.dtype("f4")))
    if before.tokenizer is not None and after.tokenizer is not None:
        texts = [f"{TEXT}{PIECES[95]}ab"]
        ours, theirs = load_tokenizer(after.tokenizer), load_tokenizer(before.tokenizer)
        assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
        assert (ours.vocab_size, ours.eos_token_id) == (theirs.vocab_size, theirs.eos_token_id)


@pytest.mark.parametrize("name", ["vocab.txt", "added_tokens.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_copied_has_no_mark_for_other_programs(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(sources["characters"], tmp_path / "theirs")
    file = tmp_path / "theirs" / name
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    arguments = ["to-huggingface", "--checkpoint", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]
    assert main([*arguments, "--quiet"]) == 0
    theirs = transformers.BertTokenizerFast(vocab=str(tmp_path / "ours" / "vocab.txt"))
    assert theirs.convert_tokens_to_ids("[PAD]") == 0
    assert not (tmp_path / "ours" / name).read_bytes().startswith(codecs.BOM_UTF8)


@pytest.mark.parametrize(("source", "name"), FILES, ids=[f"{source}: {name}" for source, name in FILES])
def test_utf16_is_an_error_that_says_so(source: str, name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    """Or no harm, in a file that is not needed."""
    shutil.copytree(sources[source], tmp_path / "copy")
    file = tmp_path / "copy" / name
    file.write_bytes(file.read_text("utf-8").encode("utf-16"))
    try:
        checkpoint = open_checkpoint(tmp_path / "copy", heads=None if source in ("characters", "bytes") else 2)
        if checkpoint.tokenizer is not None:
            load_tokenizer(checkpoint.tokenizer)
    except (CheckpointError, TokenizerError) as error:
        assert_one_line(f"error: {error}\n", f"{name}: UTF-16 text, which Notepad calls Unicode: save it as UTF-8")
    else:
        assert name == "manifest.json" or any("UTF-16" in note for note in checkpoint.info.notes)
