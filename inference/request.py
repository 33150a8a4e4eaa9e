"""Options and prompts, checked and encoded once, before the model has to be there.

A ``RequestReader`` needs the small files of a SavedModel only, so that a command can report a bad option or prompt
without loading the graph.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from exports.generation_config import GenerationConfig, PieceOptions, read_defaults, resolve, resolve_pieces
from exports.saved_model_folder import SavedModelFolder
from inference.model_tokenizer import ModelTokenizer
from inference.presets import PLAIN, TextStyle, combine_options, find_style
from inference.token_ids import TokenIds
from tokenization import Tokenizer, TokenizerError, load_tokenizer

if TYPE_CHECKING:
    from tf_model.config import GPT2Config

Prompt = str | Sequence[int]
"""A text to be continued, or its tokens."""


@dataclasses.dataclass(frozen=True)
class TextConfig(GenerationConfig):
    """How texts are generated, read and shown.

    Attributes:
        style: a preset, or ``PLAIN``.
        tokenizer: that of the model, with the pieces that the options name.
    """

    style: TextStyle = PLAIN
    tokenizer: ModelTokenizer = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its tokens.

    Attributes:
        text: as it stands in front of its continuation; of tokens, their text.
        ids: its tokens; of a text without tokens, those that the model starts from.
        typed: the text as it was given; None where tokens were given.
    """

    text: str
    ids: tuple[int, ...]
    typed: str | None = None


class RequestReader:
    """Checks options and encodes prompts for one model.

    Attributes:
        config: the sizes of the model.
        tokenizer: its tokenizer.
        defaults: its ``generation_config.json``.
        files: the SavedModel that all of it was read from; None where it came otherwise.
    """

    def __init__(
        self,
        config: GPT2Config,
        tokenizer: Tokenizer,
        defaults: Mapping[str, Any],
        files: SavedModelFolder | None = None,
    ) -> None:
        self.config, self.tokenizer, self.defaults, self.files = config, tokenizer, dict(defaults), files

    @classmethod
    def read(cls, files: SavedModelFolder) -> RequestReader:
        """Read the sizes, the tokenizer and the defaults of a SavedModel; imports no TensorFlow.

        One that was converted without a tokenizer has ``TokenIds`` in its place.

        Raises:
            ModelError: there is no SavedModel of this project.
            TokenizerError: its tokenizer cannot be used.
            OptionError: its ``generation_config.json`` cannot be used.
        """
        files.check_exists()
        files.check_readable()
        config = files.config
        tokenizer: Tokenizer = TokenIds(files.path, config.vocab_size, files.values)
        if files.tokenizer_files:
            tokenizer = load_tokenizer(files.assets, vocab_size=config.vocab_size)
        return cls(config, tokenizer, read_defaults(files.generation_config_file), files)

    def check_reads_text(self) -> None:
        """Raise ``TokenizerError`` where the model has no tokenizer, so that prompts are token ids only."""
        if isinstance(self.tokenizer, TokenIds):
            self.tokenizer.refuse_text()

    def resolve(self, *, preset: str | None = None, window: str | None = None, **options: Any) -> TextConfig:
        """Check options, and take the model's defaults for those left out.

        Raises:
            OptionError: an option that does not exist, a value that it cannot have, or options that contradict.
        """
        style = find_style(preset)
        given_here = {name: value for name, value in options.items() if value is not None}
        tokenizer = self.model_tokenizer(resolve_pieces({**self.defaults, **given_here}))
        given = combine_options(options, tokenizer, style, window)
        resolved = resolve(given, self.defaults, self.config)
        values = {field.name: getattr(resolved, field.name) for field in dataclasses.fields(resolved)}
        stop_strings = style.stop_strings(tokenizer, resolved.truncate)
        return TextConfig(**{**values, "truncate": stop_strings}, style=style, tokenizer=tokenizer)

    def model_tokenizer(self, pieces: PieceOptions | None = None) -> ModelTokenizer:
        """Return the tokenizer with the ``pieces`` of the model, which None takes from its defaults."""
        ends = self.defaults.get("eos_token_id", ())
        known = [end for end in (ends if isinstance(ends, (list, tuple)) else [ends]) if end >= 0]
        return ModelTokenizer(self.tokenizer, pieces or resolve_pieces(self.defaults), known[0] if known else None)

    def encode(self, prompt: Prompt, config: TextConfig, *, unfinished: bool = False) -> EncodedPrompt:
        """Encode a prompt; an ``unfinished`` one was cut within a line, which matters to a preset of lines.

        Raises:
            TokenizerError: a prompt without tokens, with ids outside the vocabulary, or that is no prompt.
        """
        if isinstance(prompt, str):
            ids = config.style.encode(config.tokenizer, prompt, unfinished=unfinished)
            return EncodedPrompt(config.style.echo(prompt), tuple(ids), prompt)
        ids = _token_ids(prompt) or config.tokenizer.encode_prompt("")
        decoder = config.tokenizer.stream_decoder()
        return EncodedPrompt("".join([decoder.push(token) for token in ids]), tuple(ids))

    def notes(self, prompt: EncodedPrompt, config: TextConfig) -> list[str]:
        """Say what a user should know about a prompt: what the model cannot read of it."""
        found = (self._unknown(prompt, config), _unread_pieces(prompt, config), self._too_long(prompt, config))
        return [note for note in found if note]

    def general_notes(self, config: TextConfig) -> list[str]:
        """Say what a user should know about every text: where it ends only when it has all its tokens."""
        if config.values["eos_token_id"] or config.style is not PLAIN or config.truncate:
            return []
        return ["the model names no end of a text: each goes on to its last token; --eos-token-id ID ends it before"]

    def _unknown(self, prompt: EncodedPrompt, config: TextConfig) -> str | None:
        if prompt.typed is None or self.tokenizer.unknown_token_id not in prompt.ids:
            return None
        parts = config.tokenizer.unknown_parts(prompt.typed)
        names = " ".join(parts[:10]) + (f" and {len(parts) - 10} more" if len(parts) > 10 else "")
        return f"prompt {_beginning(prompt)}: the model's vocabulary does not have {names}" if parts else None

    def _too_long(self, prompt: EncodedPrompt, config: TextConfig) -> str | None:
        limit = self.config.n_positions
        if len(prompt.ids) <= limit or config.beams:
            return None
        kept = config.values["window_tokens"] or limit // 2
        return (
            f"prompt {_beginning(prompt)} has {len(prompt.ids)} tokens, the model {limit} positions: of the prompt no "
            f"more than the last {kept} tokens are read (--window-tokens)"
        )


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """Return one prompt or several as a list.

    Raises:
        TokenizerError: neither a prompt nor several.
    """
    if isinstance(prompts, (str, bytes)):
        return [prompts]
    try:
        found: list[Any] = list(prompts)
    except TypeError as error:
        raise TokenizerError(f"prompts are of type {type(prompts).__name__}: expected texts or lists of ids") from error
    return [found] if found and isinstance(found[0], (int, np.integer)) else found


def _unread_pieces(prompt: EncodedPrompt, config: TextConfig) -> str | None:
    """Say that a prompt names pieces which are read as text: CPM's own programs do so with ``<eod>``."""
    if prompt.typed is None:
        return None
    parted_by = config.style.reads(config.tokenizer)
    unread = config.tokenizer.unread_pieces(prompt.typed, prompt.ids)
    if not (pieces := " ".join(piece for piece in unread if piece not in parted_by)):
        return None
    return (
        f"prompt {_beginning(prompt)}: {pieces} is text for this model: give --special-pieces for the piece of that "
        "name, --no-special-pieces for no note"
    )


def _beginning(prompt: EncodedPrompt) -> str:
    return repr(prompt.text[:20]) + ("..." if len(prompt.text) > 20 else "")


def _token_ids(prompt: Sequence[int]) -> list[int]:
    try:
        if isinstance(prompt, bytes):
            raise TypeError("it is bytes")
        return [operator.index(token) for token in prompt]
    except TypeError as error:
        raise TokenizerError(f"a prompt is neither a text nor a list of token ids: {error}") from error
