"""Which classes of tokenizers have the ids that a vocabulary's file gives here.

``tokenizer_config.json`` names the class that wrote a vocabulary, else ``config.json`` does. Of ``vocab.txt`` alone
transformers and others have classes that cut words by jieba, by MeCab or at spaces: a text becomes other ids by them.
Compared by their ids with transformers 5.24 and its ``AutoTokenizer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenization.added_pieces import CONFIG, read_object
from tokenization.base import TokenizerError

_ANY = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
"""Classes of no vocabulary: the files say everything."""
BERT, BYTE_BPE, SENTENCEPIECE = "BERT", "GPT-2's byte-level BPE", "the sentencepiece library"
_SAME: Mapping[str, tuple[str, ...]] = {
    BERT: (
        "Bert", "Electra", "DistilBert", "LayoutLM", "MobileBert", "ConvBert", "SqueezeBert", "Lxmert", "Splinter",
        "RetriBert", "Funnel", "Realm", "Nystromformer", "DPRReader", "DPRQuestionEncoder", "DPRContextEncoder",
    ),
    BYTE_BPE: ("GPT2", "Roberta", "Bart", "Longformer", "LED", "CodeGen"),
    SENTENCEPIECE: ("BertGeneration", "T5", "MT5", "Llama", "SentencePieceBackend"),
}  # fmt: skip
"""What reads a vocabulary here -> the classes with the same ids, without ``Tokenizer`` and ``Fast`` at their end."""
_REWRITTEN = ("T5", "MT5", "Llama")
"""Classes that were the sentencepiece library in transformers 4, and make a tokenizer of their own in 5."""


class OtherClassError(TokenizerError):
    """A vocabulary whose own class gives other ids than we do."""


def check_class(path: Path, reader: str) -> tuple[str, ...]:
    """Check that the class of the vocabulary in ``path``, if a file next to it names one, has the ids of ``reader``.

    Returns:
        a note where that is not sure: a class that has no files of this kind is wrong, and the one of another version
        of transformers reads a SentencePiece model in another way.

    Raises:
        OtherClassError: it has others, or nobody knows.
        TokenizerError: the file is damaged.
    """
    name = _class_of(path if path.is_dir() else path.parent)
    if name is None or name.startswith(_ANY):
        return ()
    short = name.removesuffix("Fast").removesuffix("Tokenizer")
    if short in _SAME[reader]:
        return (f"{path}: read as {reader} does; {name} of transformers 5 may differ",) if short in _REWRITTEN else ()
    if any(short in names for names in _SAME.values()):
        return (f"{path}: read as {reader} does, though {CONFIG} says {name}, which has other files",)
    raise OtherClassError(
        f"{path}: of the class {name[:40]}, which gives other ids than {reader}: save it by transformers 5 and give "
        f"its tokenizer.json, --tokenizer PATH; or take tokenizer_class out of {CONFIG}"
    )


def _class_of(folder: Path) -> str | None:
    """Return the name of the class, the last part of it: ``my.module.Tokenizer`` is somebody's own."""
    for file in (folder / CONFIG, folder / "config.json"):
        values: Mapping[str, Any] = read_object(file) if file.is_file() else {}
        own = values.get("auto_map")
        own = own.get("AutoTokenizer") if isinstance(own, dict) else None
        own = next(filter(None, own), None) if isinstance(own, list) else own
        for name in (values.get("tokenizer_class"), own):
            if isinstance(name, str) and name:
                return name.rpartition(".")[2]
    return None
