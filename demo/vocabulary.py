"""The vocabulary of the demo: CPM's special pieces and a piece for each of the commonest characters."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tokenization.cpm import segment

# CPM's first ids: (piece, type, score); what follows is learned.
Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
HEAD = [
    ("<unk>", Piece.UNKNOWN, 0.0),
    ("<s>", Piece.CONTROL, 0.0),
    ("</s>", Piece.CONTROL, 0.0),
    ("\u2583", Piece.NORMAL, -2.0),
    ("<sep>", Piece.CONTROL, 0.0),
    ("<pad>", Piece.CONTROL, 0.0),
    ("<mask>", Piece.CONTROL, 0.0),
    ("<eod>", Piece.NORMAL, 0.0),
]
UNUSED = -20.0
"""The score of the word mark alone: a word's first character and the mark are one piece wherever there is one."""


def make_vocabulary(texts: list[str], size: int, folder: Path) -> None:
    """A SentencePiece model whose special ids are CPM's and whose other pieces are one character each.

    They are the commonest characters, and the commonest first characters of words together with the word mark. So every
    character of most poems is one token, and where a line ends is where a position is: a small model learns that.
    """
    proto = _empty_model()
    normalizer = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    count: Counter[str] = Counter()
    for text in texts:
        for word in segment(text).split(" "):
            normal = normalizer.normalize(word).removeprefix("\u2581")
            count.update(["\u2581" + normal[:1], *normal[1:]])
    # CPM's ids 8 to 10 are the word mark, the comma and the space; the rest goes by frequency.
    first = ["\u2581", ",", "\u2582"]
    reserved = {*first, *(head[0] for head in HEAD), "\u2581\u2583"}
    learned = sorted((piece for piece in count if piece not in reserved), key=lambda piece: (-count[piece], piece))
    total = sum(count.values())
    for piece in [*first, *learned[: size - len(HEAD) - len(first)]]:
        score = UNUSED if piece == "\u2581" else math.log((count[piece] or 0.5) / total)
        proto.pieces.add(piece=piece, type=Piece.NORMAL, score=score)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chinese_vocab.model").write_bytes(proto.SerializeToString())
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary) + "\n", "utf-8")


def _empty_model() -> sentencepiece_model_pb2.ModelProto:
    """CPM's special pieces and the normalisation of CPM's vocabulary (nmt_nfkc), nothing else."""
    with tempfile.TemporaryDirectory() as temporary:
        prefix = Path(temporary, "vocabulary")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a"]), model_prefix=str(prefix), vocab_size=5, model_type="unigram",
            normalization_rule_name="nmt_nfkc", hard_vocab_limit=False, num_threads=1, minloglevel=2,
        )  # fmt: skip
        proto = sentencepiece_model_pb2.ModelProto.FromString(prefix.with_suffix(".model").read_bytes())
    del proto.pieces[:]
    for piece, kind, score in HEAD:
        proto.pieces.add(piece=piece, type=kind, score=score)
    proto.trainer_spec.pad_id = 5
    proto.trainer_spec.model_prefix = ""
    return proto
