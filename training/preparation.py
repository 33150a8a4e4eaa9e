"""Everything that can be checked and decided before TensorFlow is started and weights are read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from convert.checkpoint import Checkpoint, CheckpointSource
from convert.conversion import opened
from convert.formats.padding import trim_to_tokenizer
from convert.formats.registry import CheckpointSpec
from convert.formats.tokenizer_files import tokenizer_for, tokens_for
from exports.generation_config import resolve_pieces
from inference.model_tokenizer import ModelTokenizer
from support.errors import UserError
from support.files import read_json_object
from support.messages import pluralize, show_bytes
from support.progress import Progress, no_progress
from tokenization import Tokenizer, load_tokenizer
from tokenization.special_tokens import SpecialTokens
from training.choices import (
    DEFAULT_EPOCHS,
    check_workers,
    default_learning_rate,
    only_dtype,
    plan_notes,
    products_of,
    row_length,
    sample_prompt,
    work_of,
)
from training.export import Destination
from training.memory import Plan, available_memory, make_plan
from training.model.new_model import NewModel, parse_sizes
from training.model.teacher import open_teacher
from training.own_folders import training_folder
from training.run.run_folder import START_OVER, RunError, RunFolder, hash_files, writing_to
from training.setting import SettingError, round_up
from training.settings import SETTINGS, Settings
from training.texts.batches import Batches
from training.texts.documents import find_files
from training.texts.reading import Texts, held_out_share, read_texts

Model = Checkpoint | CheckpointSource | str | Path
"""A checkpoint, an object that opens one, or the path of one."""

_PLANNED = ("micro_batch", "frozen_dtype", "teacher_dtype")
"""Values of the plan that decide the weights that come out. A run goes on with those that it began with."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A training that can begin.

    Attributes:
        checkpoint: the model, without the rows of its vocabulary that no text becomes.
        teacher: the model that teaches it; None without one.
        tokenizer: the model's, with the pieces that it begins and ends texts with.
        prompt, prompt_ids: the beginning of samples.
        destination: where the result goes.
        settings: as given.
        texts: what is trained on.
        files: path -> SHA-256 of the files of the texts, as they were read.
        plan: micro-batches, recomputing, and the types of frozen weights and of the teacher's.
        products: type of the matrix products.
        steps, evaluate_every: updates in all, and between two evaluations.
        learning_rate: the peak.
        trainable: number of weights that are trained.
        record: the content of ``run.json``: all that decides the weights that come out.
        notes: what a user should know, a line each.
    """

    checkpoint: Checkpoint
    teacher: Checkpoint | None
    tokenizer: ModelTokenizer
    prompt: str
    prompt_ids: tuple[int, ...]
    destination: Destination
    settings: Settings
    texts: Texts
    files: dict[str, str]
    plan: Plan
    products: str
    steps: int
    evaluate_every: int
    learning_rate: float
    trainable: int
    record: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def batches(self) -> Batches:
        return Batches(self.texts.rows, self.settings.batch_size, self.plan.micro_batch, self.settings.seed)

    def summary(self) -> str:
        """Say in one line what will be done."""
        rows, parameters = self.texts.rows, self.checkpoint.config.parameter_count
        return (
            f"{self.trainable:,} weights are trained, of a model of {parameters:,}, in {pluralize(self.steps, 'step')} "
            f"on {pluralize(len(self.texts.train), 'document')} ({rows.tokens:,} tokens in "
            f"{pluralize(len(rows.ids), 'row')} of {rows.ids.shape[1] - 1}, {rows.fill:.0%} filled), "
            f"{len(self.texts.held_out)} held out; {show_bytes(self.plan.nbytes)} of memory, about"
        )


def prepare(
    model: Model | None,
    paths: Sequence[Path],
    output: Path,
    settings: Settings,
    *,
    fresh: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress = no_progress,
) -> Preparation:
    """Check model, texts, destination, memory and disk, and decide what the settings leave open.

    Args:
        model: see ``finetune``.
        paths: of the texts.
        output: see ``finetune``.
        settings: see ``finetune``.
        fresh: see ``finetune``.
        overwrite: see ``finetune``.
        workers: how many processes share the micro-batches of an update.
        progress: see ``finetune``.

    Raises:
        UserError: something cannot be used; nothing was written.
        TokenizerError: the tokenizer cannot be used.
    """
    checkpoint, tokenizer, tokens, notes = open_with_tokenizer(model, settings)
    destination = Destination.of(output, settings, overwrite=overwrite)
    named = [path for path in (settings.tokenizer, settings.teacher) if path is not None]
    inputs = [*checkpoint.info.inputs, *paths, *named, *_validation_file(settings)]
    destination.check(checkpoint, inputs)
    config = checkpoint.config
    length = row_length(config, settings)
    teacher = open_teacher(settings, checkpoint, tokenizer, tokens, length)
    own = model_tokenizer(tokenizer, tokens)
    texts = read_texts(paths, settings, cast(Tokenizer, own), length, progress)
    files = hash_files(find_files([*paths, *_validation_file(settings)]))
    batch_size = min(settings.batch_size, len(texts.rows.ids))
    trainable, work = work_of(config, settings, length, -(-batch_size // workers))
    if teacher is not None:
        work = dataclasses.replace(work, teacher=teacher.config)
    before = {} if fresh else _chosen_before(output)
    plan = make_plan(
        work,
        available_memory(),
        micro_batch=settings.micro_batch or before.get("micro_batch"),
        recompute=settings.recompute,
        frozen_dtype=settings.frozen_dtype or before.get("frozen_dtype") or only_dtype(settings),
        teacher_dtype=settings.teacher_dtype or before.get("teacher_dtype"),
    )
    check_workers(batch_size, plan.micro_batch, workers)
    prompt = sample_prompt(texts, settings)
    destination = destination.with_ends(texts.preset, own.eos_token_id)
    destination.check_space(config.parameter_count, trainable)
    batches = Batches(texts.rows, settings.batch_size, plan.micro_batch, settings.seed)
    epochs = DEFAULT_EPOCHS if settings.epochs is None else settings.epochs
    steps = round_up(epochs, batches.steps_per_epoch) if settings.steps is None else settings.steps
    products, product_notes = products_of(settings, plan, before.get("products"))
    chosen = {
        "steps": steps,
        "evaluate_every": min(settings.evaluate_every or batches.steps_per_epoch, max(1, steps)),
        "learning_rate": settings.learning_rate or default_learning_rate(config, settings),
        "length": length,
        "products": products,
        **{name: getattr(plan, name) for name in _PLANNED},
    }
    if teacher is not None:
        chosen["teacher"] = _model_hash(teacher)
    return Preparation(
        checkpoint,
        teacher,
        own,
        prompt,
        _prompt_ids(texts, cast(Tokenizer, own), prompt)[: config.n_positions // 2],
        destination,
        settings,
        texts,
        files,
        plan,
        products,
        steps,
        chosen["evaluate_every"],
        chosen["learning_rate"],
        trainable,
        _record(checkpoint, settings, chosen, texts),
        (
            *checkpoint.info.notes,
            *notes,
            *texts.notes,
            *_window_notes(texts, length),
            *product_notes,
            *plan_notes(plan, settings),
        ),
    )


def _window_notes(texts: Texts, length: int) -> list[str]:
    if not texts.cut:
        return []
    count = f"{texts.cut:,} of {pluralize(len(texts.train), 'document')}"
    return [f"longer than a row of {length} tokens and cut into windows: {count}; --length makes rows longer"]


def _prompt_ids(texts: Texts, tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """Encode the beginning of samples; that of a document has been encoded before."""
    try:
        return tuple(texts.preset.encode_prompt(tokenizer, prompt))
    except ValueError as error:  # TokenizerError
        raise SettingError(f"--sample-prompt: {error}") from error


def open_with_tokenizer(
    model: Model | None, settings: Settings
) -> tuple[Checkpoint, Tokenizer, SpecialTokens, tuple[str, ...]]:
    """Open the model without the rows of its vocabulary that no text becomes, and its tokenizer, with notes about it.

    Raises:
        UserError: the model cannot be used, or there is no tokenizer.
        TokenizerError: the tokenizer cannot be used, or is not the model's.
    """
    checkpoint = _open(model, settings)
    tokenizer, tokens, notes = _tokenizer(checkpoint, settings)
    checkpoint = trim_to_tokenizer(checkpoint, tokenizer.vocab_size, tokens)
    return checkpoint, tokenizer, _with_document_end(tokens), notes


def _with_document_end(tokens: SpecialTokens) -> SpecialTokens:
    """Return the tokens of a model of lyrics as they were before: its end of a line ends a document again.

    ``Destination.with_ends`` has made it the end of a line. A preset of lyrics does so again, no other one does.
    """
    ends_lines = tokens.eos_token_id is not None and tokens.defaults.get("line_token_id") == tokens.eos_token_id
    kept = {name: value for name, value in tokens.defaults.items() if name != "line_token_id"}
    return dataclasses.replace(tokens, defaults=kept) if ends_lines else tokens


def model_tokenizer(tokenizer: Tokenizer, tokens: SpecialTokens) -> ModelTokenizer:
    """Return the tokenizer with the pieces that the model begins and ends texts with."""
    return ModelTokenizer(tokenizer, resolve_pieces(tokens.defaults), tokens.eos_token_id)


def _open(model: Model | None, settings: Settings) -> Checkpoint:
    """Open the model, or make one from nothing."""
    if settings.init is None:
        if model is None:
            raise SettingError("--model: expected the model to train, or --init SIZES for one from nothing")
        return model.open() if isinstance(model, CheckpointSpec) else opened(cast(Checkpoint | str | Path, model))
    if model is not None:
        raise SettingError("--init: makes a model from nothing: leave out --model")
    assert settings.tokenizer is not None  # Settings has checked it
    tokenizer = load_tokenizer(settings.tokenizer, settings.tokenizer_kind)
    tokens = SpecialTokens(tokenizer.eos_token_id, tokenizer.pad_token_id)
    return NewModel(parse_sizes(settings.init, tokenizer.vocab_size), settings.seed, tokens, settings.tokenizer)


def _tokenizer(checkpoint: Checkpoint, settings: Settings) -> tuple[Tokenizer, SpecialTokens, tuple[str, ...]]:
    """Return the tokenizer, the special tokens, and notes about them.

    Raises:
        UserError: there is no tokenizer.
        TokenizerError: it cannot be used.
    """
    tokenizer, notes = tokenizer_for(settings.tokenizer, checkpoint, settings.tokenizer_kind)
    if tokenizer is None and checkpoint.tokenizer is not None:
        tokenizer, notes = tokenizer_for(checkpoint.tokenizer, checkpoint)  # raises: a note is too little here
    if tokenizer is None:
        raise UserError(f"{checkpoint.info.where}: there is no tokenizer next to the weights: give --tokenizer PATH")
    return tokenizer, tokens_for(settings.tokenizer, tokenizer, checkpoint), notes


def _chosen_before(output: Path) -> dict[str, Any]:
    """Return the record of an earlier run that can go on, which has what was chosen for its machine."""
    run = RunFolder(training_folder(output))
    with writing_to(run.folder, "choose another --output"):
        if not run.state.exists():
            return {}
    return read_json_object(run.record, RunError, START_OVER)


def _record(checkpoint: Checkpoint, settings: Settings, chosen: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    """Return all that decides the weights that come out, by the names of the settings."""
    fixed = {name: value for name, value in settings.to_dict().items() if not SETTINGS[name].may_change}
    del fixed["epochs"]  # steps say it
    return {**fixed, **chosen, "model": _model_hash(checkpoint), "texts": texts.sha256}


def _model_hash(checkpoint: Checkpoint) -> str:
    files = hash_files(checkpoint.info.files)
    return hashlib.sha256(json.dumps([checkpoint.config.to_dict(), *files.values()]).encode()).hexdigest()


def _validation_file(settings: Settings) -> list[Path]:
    """Return the file with the held-out documents, if ``validation`` names a file."""
    return [] if held_out_share(settings.validation) is not None else [Path(str(settings.validation))]
