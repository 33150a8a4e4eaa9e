"""Who trains what in whose company, and what this project wants to reach. No library is imported here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A way of training.

    Attributes:
        title: what the table calls it.
        library: ``ours`` or ``torch``.
        products: the type that matrices are multiplied in.
        rank: of LoRA on all four matrices of a block; 0 trains all weights.
        recompute: blocks are computed again for their gradients.
        micro_batch: rows at once; 0 is all of a batch.
        weights: what frozen ones are stored in.
        fused: PyTorch's AdamW in one kernel, as transformers' ``Trainer`` has it.
    """

    title: str
    library: str = "ours"
    products: str = FLOAT32
    rank: int = 0
    recompute: bool = False
    micro_batch: int = 0
    weights: str = FLOAT32
    fused: bool = False


TORCH, TORCH_FUSED, KEPT, RECOMPUTED, ROW_BY_ROW = "torch", "torch-fused", "kept", "recomputed", "row-by-row"
TORCH_BFLOAT, KEPT_BFLOAT, RECOMPUTED_BFLOAT = "torch-bfloat16", "kept-bfloat16", "recomputed-bfloat16"
PEFT, LORA, LORA_INT8, LORA_HALF = "peft", "lora", "lora-int8", "lora-bfloat16"
TRAINERS: Mapping[str, Trainer] = {
    TORCH: Trainer("transformers, torch AdamW", "torch"),
    TORCH_FUSED: Trainer("transformers, torch AdamW(fused=True)", "torch", fused=True),
    KEPT: Trainer("this project"),
    RECOMPUTED: Trainer("this project, recomputed", recompute=True),
    ROW_BY_ROW: Trainer("this project, recomputed, a row at a time", recompute=True, micro_batch=1),
    TORCH_BFLOAT: Trainer("transformers, autocast bfloat16", "torch", BFLOAT16),
    KEPT_BFLOAT: Trainer("this project, bfloat16 products", products=BFLOAT16),
    RECOMPUTED_BFLOAT: Trainer("this project, bfloat16 products, recomputed", products=BFLOAT16, recompute=True),
    PEFT: Trainer("peft, LoRA rank 8", "torch", rank=8),
    LORA: Trainer("this project, LoRA rank 8", rank=8),
    LORA_INT8: Trainer("this project, LoRA rank 8 over int8, recomputed", rank=8, recompute=True, weights="int8"),
    LORA_HALF: Trainer(
        "this project, LoRA rank 8 over bfloat16, recomputed", rank=8, recompute=True, weights="bfloat16"
    ),
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Trainers that take turns.

    Attributes:
        shape: as ``benchmarks.random_checkpoint.parse_shape`` has it.
        batch, length: rows of a step, tokens of a row.
        members: keys of ``TRAINERS``; the first one is what the others are compared with.
    """

    shape: str
    batch: int
    length: int
    members: Sequence[str]


GROUPS: Mapping[str, Group] = {
    "full": Group("distill", 4, 256, (TORCH, TORCH_FUSED, KEPT, RECOMPUTED, ROW_BY_ROW)),
    "smallest": Group("distill", 1, 256, (RECOMPUTED,)),
    "bfloat16": Group("distill", 4, 256, (TORCH_BFLOAT, KEPT_BFLOAT, RECOMPUTED_BFLOAT)),
    "lora": Group("distill", 4, 256, (PEFT, LORA)),
    "generate": Group("generate", 1, 256, (LORA_INT8, LORA_HALF)),
}


@dataclasses.dataclass(frozen=True)
class Goal:
    """A measure of a trainer that shall not be above ``must``, better not above ``aim``.

    Attributes:
        measure: ``time``, ``memory`` or ``start`` (what comes before the first step), by that of the group's first;
            ``gigabytes`` by itself.
    """

    group: str
    trainer: str
    measure: str
    must: float
    aim: float


GOALS = (
    Goal("full", KEPT, "time", 0.85, 0.7),
    Goal("full", KEPT, "memory", 1.0, 0.9),
    Goal("full", RECOMPUTED, "memory", 1.0, 0.8),
    Goal("full", KEPT, "start", 2.5, 1.5),
    Goal("smallest", RECOMPUTED, "gigabytes", 3.0, 2.6),
    Goal("bfloat16", KEPT_BFLOAT, "time", 1.0, 0.85),
    Goal("lora", LORA, "time", 0.8, 0.65),
    Goal("lora", LORA, "memory", 0.75, 0.65),
    Goal("generate", LORA_INT8, "gigabytes", 7.0, 4.5),
)
