"""How TensorFlow is started for training: other switches than for generating. Importing this imports no TensorFlow."""

from __future__ import annotations

import os

from support.tensorflow_runtime import limit_malloc_arenas, quiet_stderr, set_mmap_threshold

MAPPED_BYTES = 1 << 20
"""Tensors of this size go back to the system when they are freed. Without it and with an arena for each thread, what
lies between them makes 0.4 of 3.5 GB of a full step of 109 M parameters."""


def start_tensorflow() -> None:
    """Import TensorFlow, with switches that hold for the process from then on; call it before TensorFlow has computed.

    - oneDNN is on, which TensorFlow leaves off without AVX-512: with AVX2 alone a step takes 20 to 28 % less.
    - Graphs are not rewritten. Gradients in closed form leave nothing to gain: a step of 109 M parameters takes as long
      with and without, and the first one 4 CPU seconds less. And a block that is recomputed is bit-equal only so:
      TensorFlow would rewrite a function another way where some of its results are not used.
    - Memory is given back; see ``MAPPED_BYTES``.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    limit_malloc_arenas()
    set_mmap_threshold(MAPPED_BYTES)
    with quiet_stderr():
        import tensorflow as tf
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
