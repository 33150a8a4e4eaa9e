"""A worker of a tiny training, or all of it in one process: ``python -m tests.helpers.worker_process FOLDER [STEP]``.

``TF_CONFIG`` says which worker. FOLDER gets the chief's run and each worker's final weights. With a STEP the process
kills itself in it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from support.main_guard import main_guard
from training.cluster.place import read_place
from training.cluster.strategy import open_cluster
from training.run.run_folder import open_run
from training.texts.packing import pack
from training.texts.presets import EncodedDocument

STEPS, CLIP, VOCABULARY, LENGTH = 12, 0.05, 50, 12


def packed_rows(seed: int) -> Any:
    """Return rows with unequal numbers of predicted tokens."""
    random = np.random.default_rng(seed)
    return pack(
        [
            EncodedDocument(tuple(map(int, random.integers(0, VOCABULARY, random.integers(2, 40)))), unpredicted=1)
            for _ in range(60)
        ],
        LENGTH,
    )


def train(folder: Path, kill_at: int | None) -> None:
    place = read_place(os.environ)
    is_chief = place is None or place.is_chief
    with open_cluster(place, {"seed": 3}) as cluster:
        import keras

        from tf_model.config import GPT2Config
        from training.model.trained_gpt2 import TrainedGPT2
        from training.model.weights import new_gpt2
        from training.optimizers.adamw import make_optimizer
        from training.run.callbacks import FitOptions, Observers
        from training.run.fitting import fit
        from training.texts.batches import Batches, ValidationBatches

        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                norms.append(float(self.model.optimizer.gradient_norm.numpy()))

            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                if int(self.model.optimizer.iterations.numpy()) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        norms: list[float] = []
        config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=2, n_head=2)
        with cluster.scope():
            model = TrainedGPT2(new_gpt2(config, 0), dropout=0.1, seed=3)
            optimizer = make_optimizer(1e-3, STEPS, clip=CLIP)
        model.compile(optimizer=optimizer, jit_compile=False)
        with open_run(folder / "run", {}) if is_chief else open(os.devnull) as run:
            result = fit(
                model,
                Batches(packed_rows(0), 10, 2, seed=3),  # five micro-batches: one worker has three, the other two
                ValidationBatches(packed_rows(1), 4),
                FitOptions(STEPS, evaluate_every=6, save_every=4),
                run if is_chief else None,
                Observers(callbacks=[Watch()]),
                cluster,
            )
        weights = {f"weight.{i}": variable.numpy() for i, variable in enumerate(model.trainable_variables)}
        np.savez(folder / f"worker-{cluster.index}.npz", norms=norms, loss=result.loss, **weights)


if __name__ == "__main__":
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    sys.exit(main_guard(lambda: train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)))
