"""An exported model, loaded: its functions with plain Python in and NumPy out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exports.generation_options import BEAM_OPTIONS, COMMON_OPTIONS, SAMPLING_OPTIONS
from exports.interruptible import interruptible
from exports.saved_model_folder import SIGNATURES, ModelError, SavedModelFolder, missing_signature
from support.tensorflow_runtime import limit_malloc_arenas, one_line_message, quiet_stderr, set_threads
from tf_model.config import GPT2Config
from tf_model.precision import INT8_CONV_OP, INT8_MATMUL_OP

Array = np.ndarray[Any, Any]
State = dict[str, Any]
"""What ``prefill`` and ``decode`` give to the next ``decode``: tensors by name."""

_OPTIONS = {**COMMON_OPTIONS, **SAMPLING_OPTIONS, **BEAM_OPTIONS}
_WINDOW = ("window_tokens", "window_line_token_id")


class LoadedModel:
    """The functions of a SavedModel.

    Attributes:
        config: the sizes.
    """

    def __init__(self, config: GPT2Config, model: Any, folder: Path) -> None:
        self.config = config
        self._model = model
        self._folder = folder

    def call(self, name: str, prompts: Sequence[Sequence[int]], **inputs: Any) -> dict[str, Array]:
        """Call the signature ``name`` with prompts of any lengths. Options may be lists, one value per row."""
        import tensorflow as tf

        ids = np.zeros((len(prompts), max(map(len, prompts))), np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = [len(prompt) for prompt in prompts]
        options = {key: _tensor(key, value) for key, value in inputs.items()}
        output = self._run(name, tf.constant(ids), tf.constant(lengths, tf.int64), **options)
        return {key: value.numpy() for key, value in output.items()}

    def logprobs(
        self,
        texts: Sequence[Sequence[int]],
        batch_size: int = 8,
        on_progress: Callable[[int], object] = lambda tokens: None,
    ) -> list[Array]:
        """Of every token of every text, float32, 0 for the first; the texts may be of any length.

        One longer than the model's positions is read in windows of all of them that overlap by half, and each token is
        scored in the window where most is before it. ``on_progress`` is called with the number of tokens just scored.
        """
        limit = self.config.n_positions
        step = max(1, limit // 2)
        windows = [(i, at) for i, text in enumerate(texts) for at in range(0, max(len(text) - limit, 0) + step, step)]
        found: list[Array] = [np.zeros(len(text), np.float32) for text in texts]
        for first in range(0, len(windows), batch_size):
            some = windows[first : first + batch_size]
            output = self.call("score", [texts[i][at : at + limit] for i, at in some])["logprobs"]
            for (i, at), logprobs in zip(some, output, strict=True):
                known = limit - step if at else 0
                target = found[i][at + known : at + limit]
                target[:] = logprobs[known : known + len(target)]
                on_progress(len(target))
        return found

    def prefill(self, ids: Sequence[int], options: Mapping[str, Any]) -> State:
        """Read a prompt; the state has room for as many tokens as the model has positions."""
        import tensorflow as tf

        window = {key: _tensor(key, options[key]) for key in _WINDOW}
        state = self._run("prefill", tf.constant([ids], tf.int64), tf.constant([len(ids)], tf.int64), **window)
        del state["logits"]
        if "cache" not in state:
            raise ModelError(
                f"{self._folder}: made by an older version, with another state: convert the checkpoint again"
            )
        return state

    def decode(self, ids: Sequence[int], state: State, options: Mapping[str, Any]) -> tuple[list[int], State]:
        """Go on from ``state``, in which a beginning of ``ids`` was read; return the new tokens and the next state.

        Consumes ``state``: its memory becomes that of the next state.
        """
        import tensorflow as tf

        given = {key: _tensor(key, value) for key, value in options.items()}
        given |= {**state, "donate_state": tf.constant(True)}
        output = self._run("decode", tf.constant([ids], tf.int64), tf.constant([len(ids)], tf.int64), **given)
        length = int(output["lengths"][0])
        new = output["sequences"].numpy()[0, len(ids) : length].tolist()
        return new, {key: output[key] for key in state}

    def _run(self, name: str, *args: Any, **inputs: Any) -> State:
        """Call a signature; Ctrl-C stops it."""
        if not hasattr(self._model, name):
            raise ModelError(missing_signature(self._folder, name))
        with _one_line():
            output: State = interruptible(lambda: getattr(self._model, name)(*args, **inputs))
            return output


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """TensorFlow's errors as ``ModelError``: what the options' checks let through, and a machine without memory."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise ModelError(f"the model cannot do that: {one_line_message(error)}") from error


def _tensor(name: str, value: Any) -> Any:
    import tensorflow as tf

    option = _OPTIONS[name]
    if option.is_list:
        value = [*value] or -1
    return tf.constant(value, tf.float32 if option.is_real else tf.int64)


def load(files: SavedModelFolder, max_batch_size: int) -> LoadedModel:
    """Load the model in ``files``, to generate up to ``max_batch_size`` texts at once.

    Raises:
        ModelError: there is no SavedModel of this project, or it cannot be loaded.
    """
    files.check_exists()
    files.check_readable()
    folder, config = files.path, files.config
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorflow_hub 0.16.1 imports pkg_resources, which says that it is old
        import tensorflow_hub as hub
    set_threads(folder, max_batch_size)
    limit_malloc_arenas()
    try:
        model = hub.load(str(folder))
    except Exception as error:  # TensorFlow raises whatever a broken file makes it stumble over
        if any(op in str(error) for op in (INT8_MATMUL_OP, INT8_CONV_OP)):
            raise ModelError(
                f"{folder}: int8 needs TensorFlow for x86-64: convert again, as float32 or bfloat16"
            ) from error
        raise ModelError(
            f"{folder}: cannot be loaded: {' '.join(str(error).split())[:300]}; if a file is damaged, "
            f"`python -m convert check {folder}` says which: convert or copy it again"
        ) from error
    if not any(hasattr(model, name) for name in SIGNATURES):
        raise ModelError(f"{folder}: has none of the signatures of this project: {', '.join(SIGNATURES)}")
    return LoadedModel(config, model, folder)
