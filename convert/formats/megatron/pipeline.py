"""The files of newer Megatron-LM's pipeline: which stage has which tensor.

Every stage counts its layers from 0. The last stage has the final layer norm and a copy of the tied embedding.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence

from convert.formats.megatron.layout import MEGATRON_LM_NAMES, megatron_lm_name
from convert.formats.megatron.megatron_lm_shard import HEAD, TIED_COPY, Shard
from convert.formats.tensor_map import LazyTensor, layer_template, name_problems
from support.errors import CheckpointError

_FIRST_STAGE = ("wte.weight", "wpe.weight")
_LAST_STAGE = ("ln_f.weight", "ln_f.bias")

_LAYER_TEMPLATES = tuple(template for template in MEGATRON_LM_NAMES.values() if "{}" in template)
_LAYER = re.compile(r"layers\.(\d{1,4})\.")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        ranks: the files of its tensor-parallel ranks, rank 0 first.
        first_layer: the number of its first layer in the whole model.
        is_first, is_last: its place in the pipeline; the only stage is both.
    """

    ranks: Sequence[Shard]
    first_layer: int
    is_first: bool
    is_last: bool

    @functools.cached_property
    def layers(self) -> range:
        """The numbers of its layers in the whole model."""
        names = itertools.chain.from_iterable(rank.tensors for rank in self.ranks)
        found = [_LAYER.match(name) for name in names]
        count = 1 + max((int(layer[1]) for layer in found if layer), default=-1)
        return range(self.first_layer, self.first_layer + count)

    def expected_names(self, *, untied: bool) -> list[str]:
        """Return the names of the tensors that each of its files has.

        Args:
            untied: whether the model has an output matrix of its own.
        """
        names: list[str] = []
        for layer in range(len(self.layers)):
            names += [template.format(layer) for template in _LAYER_TEMPLATES]
        if self.is_first:
            names += map(megatron_lm_name, _FIRST_STAGE)
        if self.is_last:
            names += map(megatron_lm_name, _LAST_STAGE)
        if self.is_last and untied:
            names.append(HEAD)
        return names

    def may_have(self, name: str) -> bool:
        """Whether its files may have a tensor that ``expected_names`` does not name."""
        return self.is_last and name == TIED_COPY

    def tensors(self, name: str) -> list[LazyTensor]:
        """Return the tensors of a canonical name, rank 0 first; the stage has it."""
        template, layer = layer_template(name)
        own_name = MEGATRON_LM_NAMES[template].format(int(layer) - self.first_layer if layer else "")
        return [rank.tensors[own_name] for rank in self.ranks]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """All files of a model.

    Attributes:
        stages: the stages of its pipeline, in order.
    """

    stages: Sequence[Stage]

    @property
    def shards(self) -> Iterator[Shard]:
        """Every file: stage by stage, rank by rank."""
        return itertools.chain.from_iterable(stage.ranks for stage in self.stages)

    @property
    def first(self) -> Shard:
        """The file of rank 0 of the first stage."""
        return self.stages[0].ranks[0]

    @property
    def tensor_parallel(self) -> int:
        return len(self.stages[0].ranks)

    @property
    def n_layer(self) -> int:
        return self.stages[-1].layers.stop

    @property
    def untied(self) -> bool:
        """Whether there is an output matrix of its own."""
        return any(HEAD in rank.tensors for rank in self.stages[-1].ranks)

    def tensors(self, name: str) -> list[LazyTensor]:
        """Return the shards of a canonical tensor, rank 0 first."""
        _, layer = layer_template(name)
        if layer:
            stage = next(stage for stage in self.stages if int(layer) in stage.layers)
        else:
            stage = self.stages[0 if name in _FIRST_STAGE else -1]
        return stage.tensors(name)

    def tied_copies(self) -> list[tuple[LazyTensor, LazyTensor]]:
        """Return each rank's part of the embedding with its copy on the last stage, where it has one."""
        parts = zip(self.tensors("wte.weight"), self.stages[-1].ranks, strict=True)
        return [(part, rank.tensors[TIED_COPY]) for part, rank in parts if TIED_COPY in rank.tensors]

    def check_names(self) -> None:
        """Check that every file has the tensors of its stage, and no others.

        Raises:
            CheckpointError: with all that are missing or unexpected, in all files.
        """
        problems = []
        for stage in self.stages:
            expected = dict.fromkeys(stage.expected_names(untied=self.untied))
            for rank in stage.ranks:
                found = name_problems(rank.tensors, expected, stage.may_have)
                problems += [f"{rank.file}: {problem}" for problem in found]
        if not self.n_layer:
            problems.append(f"{self.first.file}: no tensors named layers.0...")
        if problems:
            raise CheckpointError("; ".join(problems))

    def check_same_training(self) -> None:
        """Check that all files are of one version and one iteration.

        Raises:
            CheckpointError: they are not.
        """
        first = self.first
        for shard in self.shards:
            for what, found, expected in (
                ("checkpoint_version", shard.version, first.version),
                ("iteration", shard.iteration, first.iteration),
            ):
                if found != expected:
                    raise CheckpointError(
                        f"{shard.file}: {what} is {found}, that of {first.file} {expected}: mixed-up files"
                    )


def assemble_pipeline(shards: Sequence[Sequence[Shard]]) -> Pipeline:
    """Make a pipeline of its files, given stage by stage."""
    stages: list[Stage] = []
    for number, ranks in enumerate(shards):
        first_layer = stages[-1].layers.stop if stages else 0
        stages.append(Stage(ranks, first_layer, is_first=number == 0, is_last=number == len(shards) - 1))
    return Pipeline(stages)
