"""One process, or several workers that train one model, behind the same names.

Each worker takes whole micro-batches of the same global batch, sums gradients, losses and tokens with the others once
an update, and makes the same update. So all workers have the same weights, and n workers compute what one process
computes, but for the order of the sums. What it takes of Keras 3.15 is in ``TrainedGPT2``: see ``sum_over_workers``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convert import __version__
from support.errors import UserError
from support.tensorflow_runtime import one_line_message, quiet_stderr
from training.cluster.control import Control
from training.cluster.meeting import Facts, meet
from training.cluster.place import Place, WorkersError
from training.texts.batches import Batch, as_dataset

if TYPE_CHECKING:
    import tensorflow as tf

BYTES_PER_PACK = 32 << 20
"""Gradients are summed in packs of this size: one copy of a pack is in memory, not one of all gradients."""

_GRACE_SECONDS = 20.0
"""How long the main thread may take to leave TensorFlow after a worker was lost. TensorFlow's heartbeat takes 10."""


class TrainingData(Protocol):
    """``Batches``: the batch of a step is a function of the step alone."""

    steps_per_epoch: int

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, each array ``[M, b, S]``."""

    def dataset(self, first: int, last: int) -> tf.data.Dataset:
        """Return the batches of the steps from ``first`` on, before ``last``."""


class ValidationData(Protocol):
    """``ValidationBatches``."""

    steps: int

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, each array ``[1, b, S]``."""

    def dataset(self) -> tf.data.Dataset:
        """Return all batches."""


class Cluster:
    """One process that trains alone; ``Workers`` has the same methods for several.

    Used as a context: at its end all workers have come to theirs.
    """

    index = 0
    size = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes state, log and result, and prints."""
        return self.index == 0

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End without the others."""

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Return the scope in which model and optimizer are made, on every worker alike.

        ``compile`` stands outside, so that the metrics are each worker's own: they have the sums of all workers.
        """
        return contextlib.nullcontext()

    def dataset(self, batches: TrainingData, first: int, last: int) -> tf.data.Dataset:
        """Return this worker's part of the batches ``first`` to ``last - 1``, for ``fit`` with ``steps_per_epoch``."""
        return batches.dataset(first, last)

    def validation(self, batches: ValidationData) -> tuple[tf.data.Dataset, int | None]:
        """Return this worker's part of the batches, and how many steps ``evaluate`` takes; None for all there are."""
        return batches.dataset(), None

    def share(self, variables: Mapping[str, Any], facts: Any = None) -> Any:
        """Give every worker the chief's values of ``variables``, and return the chief's ``facts``, plain JSON."""
        return facts


class Workers(Cluster):
    """One of several workers, which have met.

    Args:
        place: of this worker.
        facts: what has to be alike on all workers; see ``meet``.

    Raises:
        WorkersError: they cannot meet.
    """

    def __init__(self, place: Place, facts: Facts) -> None:
        self.index, self.size = place.index, len(place.hosts)
        self._has_ended = threading.Event()
        self._control = Control(place, meet(place, {**facts, "versions": _versions()}), self._leave)
        self._strategy = _make_strategy(place)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the others, or tell them why this worker ends.

        Raises:
            WorkersError: another worker has ended before; this names it.
        """
        try:
            if error is None:
                self._control.finish()
                return
            if self._control.failure is None and _may_follow_a_loss(error):
                self._control.wait_for_failure(_GRACE_SECONDS)
            if self._control.failure is not None and isinstance(error, Exception):
                raise WorkersError(self._control.failure) from error
            self._control.fail(f"{self._control.place.name(self.index)} has ended: {_reason(error)}")
        finally:
            self._has_ended.set()

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        scope: contextlib.AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def dataset(self, batches: TrainingData, first: int, last: int) -> tf.data.Dataset:
        return self._distribute(lambda step: micro_batches_of(batches.batch(step), self.index, self.size), first, last)

    def validation(self, batches: ValidationData) -> tuple[tf.data.Dataset, int | None]:
        def own(step: int) -> Batch:
            number = step * self.size + self.index
            batch = batches.batch(min(number, batches.steps - 1))
            return batch if number < batches.steps else {name: np.zeros_like(of) for name, of in batch.items()}

        own_steps = -(-batches.steps // self.size)
        return self._distribute(own, 0, own_steps), own_steps

    def share(self, variables: Mapping[str, Any], facts: Any = None) -> Any:
        if self.is_chief:
            self._control.send("facts", json.dumps(facts).encode())
            for name, variable in variables.items():
                values = np.ascontiguousarray(variable.numpy())
                self._control.send("values", values.reshape(-1).view(np.uint8).data, name=name)
            return facts
        shared = json.loads(self._control.receive("facts").content)
        for name, variable in variables.items():
            message = self._control.receive("values")
            expected = tuple(variable.shape), np.dtype(variable.dtype)
            size = int(np.prod(expected[0], dtype=np.int64)) * expected[1].itemsize
            if message.values["name"] != name or len(message.content) != size:
                raise WorkersError(f"the chief has sent {message.values['name']}, expected {name} of {size} bytes")
            variable.assign(np.frombuffer(message.content, expected[1]).reshape(expected[0]))
        return shared

    def _distribute(self, batch: Callable[[int], Batch], first: int, last: int) -> tf.data.Dataset:
        """Return batches as a data set that the strategy takes as this worker's own, instead of cutting it again.

        It has no end: TensorFlow would ask all workers at each step whether they have come to it, and forget M.
        """
        return self._strategy.distribute_datasets_from_function(lambda context: as_dataset(batch, first, last).repeat())

    def _leave(self, line: str) -> None:
        """End the process, if the main thread cannot: it may wait in TensorFlow for a worker that is not there."""
        if not self._has_ended.wait(_GRACE_SECONDS):
            os.write(2, f"error: {line}\n".encode(errors="backslashreplace"))
            os._exit(WorkersError.exit_code)


def open_cluster(place: Place | None, facts: Facts) -> Cluster:
    """Return the cluster of all workers, after they have come, or that of one process where ``place`` is None.

    Call it before TensorFlow has computed anything: its collective operations are set up at its start.

    Raises:
        WorkersError: the workers cannot meet, or have other facts.
    """
    return Cluster() if place is None else Workers(place, facts)


def micro_batches_of(batch: Batch, index: int, size: int) -> Batch:
    """Return every ``size``-th micro-batch from ``index`` on: as many for every worker, the last may be of weight 0."""

    def own(values: NDArray[Any]) -> NDArray[Any]:
        missing = -len(values) % size
        padding = np.zeros((missing, *values.shape[1:]), values.dtype)
        return np.concatenate([values, padding])[index::size]

    return {name: own(values) for name, values in batch.items()}


def sum_over_workers(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sum tensors over the workers, within a ``train_step`` or ``test_step``."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return list(values)
    summed: list[tf.Tensor] = context.all_reduce(tf.distribute.ReduceOp.SUM, list(values))
    return summed


def micro_batch_number(index: int) -> Any:
    """Return the number in the global batch of this worker's micro-batch ``index``, which dropout is keyed by."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return index
    return index * context.num_replicas_in_sync + context.replica_id_in_sync_group


def as_log(value: tf.Tensor) -> tf.Tensor:
    """Give a scalar that all workers have alike the shape in which ``fit`` takes it.

    Keras 3.15 averages the logs of several workers over axis 0, which a scalar lacks (keras issue 20585).
    """
    import tensorflow as tf

    return tf.reshape(value, [1]) if tf.distribute.get_strategy().num_replicas_in_sync > 1 else value


def _versions() -> dict[str, str]:
    """Return the versions of what computes."""
    return {"program": __version__, **{name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}}


def _make_strategy(place: Place) -> Any:
    """Make TensorFlow's strategy, which connects the workers again, for its own operations."""
    with quiet_stderr():
        import tensorflow as tf

    try:
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=tf.distribute.cluster_resolver.SimpleClusterResolver(
                tf.train.ClusterSpec({"worker": list(place.hosts)}),
                task_type="worker",
                task_id=place.index,
                rpc_layer="grpc",
            ),
            communication_options=tf.distribute.experimental.CommunicationOptions(bytes_per_pack=BYTES_PER_PACK),
        )
    except (RuntimeError, tf.errors.OpError) as error:
        raise WorkersError(
            f"{place.name(place.index)}: TensorFlow cannot connect the workers: {one_line_message(error)}"
        ) from error


def _may_follow_a_loss(error: BaseException) -> bool:
    """Whether TensorFlow may have raised this because a worker was lost."""
    return isinstance(error, Exception) and not isinstance(error, UserError)


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else type(error).__name__
