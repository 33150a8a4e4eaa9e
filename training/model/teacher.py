"""The teacher of a distillation, opened and checked. No TensorFlow."""

from __future__ import annotations

from convert.checkpoint import Checkpoint
from convert.formats.padding import trim_to_tokenizer
from convert.formats.registry import CheckpointSpec
from convert.formats.tokenizer_files import has_same_pieces
from support.errors import UserError
from tokenization import Tokenizer, TokenizerError, load_tokenizer
from tokenization.special_tokens import SpecialTokens
from training.settings import Settings


def open_teacher(
    settings: Settings, student: Checkpoint, tokenizer: Tokenizer, tokens: SpecialTokens, length: int
) -> Checkpoint | None:
    """Return the checkpoint that ``--teacher`` names, without the rows that pad its vocabulary; None without one.

    Args:
        settings: ``teacher`` and ``teacher_heads`` are used.
        student: the model that is trained.
        tokenizer: the student's, which texts are encoded with.
        tokens: the student's special tokens.
        length: tokens of a row.

    Raises:
        UserError: there is no such checkpoint, its vocabulary is another, or it has fewer positions than a row.
    """
    if settings.teacher is None:
        return None
    whole = CheckpointSpec(settings.teacher, n_head=settings.teacher_heads).open()
    teacher = trim_to_tokenizer(whole, tokenizer.vocab_size, tokens)
    found, expected = teacher.config.vocab_size, student.config.vocab_size
    if found != expected:
        raise UserError(
            f"--teacher {settings.teacher}: its vocabulary has {found} tokens, that of the model {expected}: expected "
            "a teacher of the same vocabulary"
        )
    if teacher.tokenizer is not None and not _encodes_alike(teacher, tokenizer):
        raise UserError(
            f"--teacher {settings.teacher}: its tokenizer has other pieces than that of the model: expected a teacher "
            "of the same vocabulary"
        )
    if teacher.config.n_positions < length:
        raise UserError(
            f"--teacher {settings.teacher}: has {teacher.config.n_positions} positions, rows have {length} tokens: "
            f"give --length {teacher.config.n_positions}"
        )
    return teacher


def _encodes_alike(teacher: Checkpoint, tokenizer: Tokenizer) -> bool:
    """Whether the teacher's own tokenizer, if it can be read, has the pieces of ``tokenizer``."""
    assert teacher.tokenizer is not None
    try:
        own = load_tokenizer(teacher.tokenizer, vocab_size=teacher.config.vocab_size)
    except TokenizerError:  # its vocabulary has the right size at least
        return True
    return has_same_pieces(own, tokenizer)
