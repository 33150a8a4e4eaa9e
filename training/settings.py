"""The settings of a fine-tuning: one table for the command line, for Python and for ``run.json``.

A row is a field of ``Settings``: its default, its help, its type and its limits. This module needs nothing but Python's
standard library.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tf_model.config import LINEAR_LAYERS
from training.contradictions import find_contradictions
from training.setting import Setting, SettingError, row

FLOAT32 = "float32"
WEIGHT_DTYPES = (FLOAT32, "bfloat16", "int8")
"""Types that the weights of a model in training can have in memory; only float32 ones are trained."""
Function = TypeVar("Function", bound=Callable[..., Any])

SAVEDMODEL = "savedmodel"
FORMATS = (SAVEDMODEL, "huggingface", "megatron", "uer", "openai")
"""What a fine-tuned model may be written as; a ``savedmodel`` is ready to generate."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is fine-tuned. A value of None is chosen later, when model, texts and machine are known.

    Raises:
        SettingError: a value is impossible, or two contradict each other.
    """

    # What is learned
    preset: str | None = row(
        None,
        "how files become documents: lyric (a blank line between songs, an end of text after each line), poem (line "
        "feeds are kept, an end of text after the last), novel (windows over the whole), plain (a file is one); a JSON "
        "line is one always",
        choices=("lyric", "poem", "novel", "plain"),
        shown_default="plain for JSON lines, else poem",
    )
    prefix: tuple[str, ...] = row(
        (),
        "fields of JSON lines that are put in front of the text, a line each, such as style or author",
        is_list=True,
        metavar="FIELD",
    )
    loss: str = row(
        "text", "what is learned: the text, which follows the prefix, or all of both", choices=("text", "all")
    )
    validation: str | float | Path | None = row(
        None,
        "documents that are held out, to measure with: a share such as 0.1, a number of documents, a file; 0 for none",
        metavar="SHARE|N|FILE",
        shown_default="0.05, 200 documents at most",
    )
    length: int | None = row(
        None, "tokens of a row", int, low=2, metavar="N", shown_default="the model's positions, 1024 at most"
    )
    tokenizer: Path | None = row(
        None, "folder or file of the tokenizer", Path, metavar="PATH", shown_default="the model's own"
    )
    tokenizer_kind: str | None = row(
        None,
        "how CPM's SentencePiece model is read: as CPM's programs do, or as CpmTokenizer of transformers does",
        choices=("cpm", "cpm-transformers"),
        shown_default="as tokenizer_config.json says, else cpm",
    )
    # How it is learned
    epochs: float | None = row(
        None,
        "how often every document is seen",
        float,
        above=0,
        high=1e6,
        metavar="X",
        shown_default="3, where no --steps are",
    )
    steps: int | None = row(
        None, "number of updates, instead of --epochs; 0 changes nothing", int, low=0, high=10**9, metavar="N"
    )
    learning_rate: float | None = row(
        None,
        "the greatest learning rate",
        float,
        above=0,
        high=1,
        metavar="X",
        shown_default="1e-5 above 1 B parameters, 3e-4 below 20 M, else 5e-5; with --lora ten times that",
    )
    schedule: str = row(
        "linear",
        "how the learning rate falls after the warm-up: to nothing along a line or a cosine, or not at all",
        choices=("linear", "cosine", "constant"),
    )
    warmup: float = row(0.1, "share of the steps in which the learning rate rises", float, low=0, high=1, metavar="X")
    batch_size: int = row(8, "rows of an update", int, low=1, high=1 << 16, metavar="N")
    micro_batch: int | None = row(
        None,
        "rows that are computed at once, which takes memory",
        int,
        low=1,
        metavar="N",
        shown_default="as many as fit",
    )
    dropout: float = row(0.1, "share of the values that are dropped in training", float, low=0, high=0.9, metavar="X")
    weight_decay: float = row(0.01, "AdamW's weight decay, of matrices only", float, low=0, high=10, metavar="X")
    clip: float = row(
        1.0, "the greatest norm of all gradients together; 0 for any", float, low=0, high=1e6, metavar="X"
    )
    seed: int = row(0, "what the order of the rows and dropout follow from", int, low=0, high=2**31 - 1, metavar="N")
    optimizer: str = row(
        "adamw",
        "adamw; or muon for the matrices of blocks, which takes fewer steps where a model begins from nothing",
        choices=("adamw", "muon"),
    )
    form_weight: float = row(
        0.0,
        "how much it counts whether a mark or the end of a line or text comes, which is the form of a poem, besides "
        "which token it is: 5 for the demo's",
        float,
        low=0,
        high=100,
        metavar="X",
    )
    # What of the model
    lora: int | None = row(
        None,
        "train adapters of this rank and no weights (LoRA); they are merged into the result, and are in DIR.training "
        "in peft's format",
        int,
        low=1,
        high=4096,
        metavar="R",
    )
    alpha: float | None = row(
        None,
        "LoRA's alpha: adapters count alpha / R",
        float,
        above=0,
        high=1e6,
        metavar="X",
        shown_default="twice the rank",
    )
    lora_targets: tuple[str, ...] = row(
        LINEAR_LAYERS,
        "the matrices with adapters",
        is_list=True,
        choices=LINEAR_LAYERS,
        metavar="NAME",
        shown_default="all four",
    )
    freeze: tuple[str, ...] = row(
        (), "what is not trained: embeddings, or blocks as in blocks:0-15", is_list=True, metavar="PART"
    )
    frozen_dtype: str | None = row(
        None,
        "type in memory of the weights that LoRA does not train",
        choices=WEIGHT_DTYPES,
        shown_default="the first of them that fits",
    )
    products: str = row(
        "auto",
        "type of the matrix products; auto: bfloat16 where LoRA's frozen weights are bfloat16 and the processor has "
        "instructions for it, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    recompute: bool | None = row(
        None,
        "compute each block again for its gradients, which takes time, and keep nothing of it, which saves memory",
        bool,
        shown_default="where it does not fit otherwise",
        may_change=True,
    )
    init: str | None = row(
        None,
        "train a model from nothing, instead of --model: its sizes, as in layers=6,hidden=256,heads=4,positions=128; "
        "needs --tokenizer",
        metavar="SIZES",
    )
    # Of whom it learns besides
    teacher: Path | None = row(
        None,
        "a larger model of the same vocabulary, of any format: what it finds probable is learned, too, as "
        "CPM-1-Distill does (distillation)",
        Path,
        metavar="PATH",
    )
    teacher_weight: float = row(
        0.4, "share of the loss that the teacher has; the texts have the rest", float, low=0, high=1, metavar="X"
    )
    teacher_temperature: float = row(
        1.0,
        "what the logits are divided by in the teacher's part: above 1, what the teacher finds improbable counts more",
        float,
        above=0,
        high=1000,
        metavar="X",
    )
    teacher_dtype: str | None = row(
        None,
        "type in memory of the teacher's weights",
        choices=WEIGHT_DTYPES,
        shown_default="the first of them that fits",
    )
    teacher_heads: int | None = row(
        None, "number of the teacher's attention heads, if its files do not record it", int, low=1, metavar="N"
    )
    # While it runs
    evaluate_every: int | None = row(
        None,
        "steps between two evaluations of the held-out documents",
        int,
        low=1,
        metavar="N",
        shown_default="an epoch",
    )
    patience: int | None = row(
        None, "stop after this many evaluations without a better one", int, low=1, metavar="N", shown_default="never"
    )
    keep: str = row(
        "best",
        "which weights are written: the best by the held-out documents, or the last",
        choices=("best", "last"),
        may_change=True,
    )
    sample: int = row(
        1, "texts to generate after each evaluation, to be read", int, low=0, high=100, metavar="N", may_change=True
    )
    sample_prompt: str | None = row(
        None,
        "what these texts begin with",
        metavar="TEXT",
        shown_default="the beginning of a held-out document",
        may_change=True,
    )
    # What is written
    format: str = row(SAVEDMODEL, "format of the result", choices=FORMATS, may_change=True)
    dtype: str | None = row(
        None,
        "type of the weights that are written, as to-tf and the other commands that write have it",
        metavar="DTYPE",
        shown_default="float32",
        may_change=True,
    )
    tensor_parallel: int | None = row(
        None,
        "with --format megatron: number of ranks",
        int,
        low=1,
        high=1 << 16,
        metavar="P",
        shown_default="1",
        may_change=True,
    )

    def __post_init__(self) -> None:
        if isinstance(self.validation, (int, float, Path)):
            object.__setattr__(self, "validation", str(self.validation))
        if isinstance(self.validation, str) and not self.validation.strip():
            raise SettingError("--validation '': expected a share below 1, a number of documents, or a file")
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            if value is not None or DEFAULTS[name] is not None:
                object.__setattr__(self, name, setting.check(name, value))
        for message in find_contradictions(self):
            raise SettingError(message)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Make settings of those that are given by name.

        Raises:
            SettingError: one does not exist, or as the class.
        """
        for name in values:
            if name not in SETTINGS:
                close = difflib.get_close_matches(name, SETTINGS, 1)
                raise SettingError(f"{name!r}: not a setting{''.join(f'; did you mean {other}?' for other in close)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {name: _plain(getattr(self, name)) for name in SETTINGS}


def document_settings(function: Function) -> Function:
    """Show each setting with its default and help in the signature and docstring of a function with ``**settings``."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default) for name, default in DEFAULTS.items()
    ]
    lines = [f"    {name}: {setting.help} (default: {shown_default(name)})" for name, setting in SETTINGS.items()]
    function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Settings:", *lines])
    function.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
    return function


def shown_default(name: str) -> str:
    """Return the default of a setting as the help shows it."""
    default = SETTINGS[name].shown_default or DEFAULTS[name]
    return "none" if default in (None, ()) else str(default)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


SETTINGS: dict[str, Setting] = {field.name: field.metadata["setting"] for field in dataclasses.fields(Settings)}
"""Name -> what the setting can be."""
DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Settings)}
"""Name -> the default."""
