"""What a training step must compute: transformers' GPT-2 in float64, a document at a time, by PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import transformers

from tf_model.config import UER, GPT2Config
from tf_model.gpt2 import GPT2

SMALL = GPT2Config(vocab_size=60, n_positions=24, n_embd=24, n_layer=2, n_head=3)


class Document(NamedTuple):
    """Ids, and which of those after the first are in the loss."""

    ids: Sequence[int]
    predicted: Sequence[bool]


def random_gpt2(config: GPT2Config = SMALL, dtype: str = "float32", seed: int = 0) -> GPT2:
    """No bias is zero and no layer norm trivial."""
    model = GPT2(config, dtype=dtype)
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype == "int8":
            variable.assign(rng.integers(-127, 128, variable.shape))
        elif variable.path.endswith("_scale"):
            variable.assign(rng.uniform(0.002, 0.004, variable.shape))
        elif not variable.path.endswith("_offset"):
            variable.assign(rng.normal(size=variable.shape) * 0.3 + variable.path.endswith("gamma"))
    return model


def random_documents(seed: int = 0, vocab_size: int = SMALL.vocab_size) -> list[list[Document]]:
    """Five rows of documents, to be packed into rows of 16 predictions."""
    rng = np.random.default_rng(seed)

    def document(size: int) -> Document:
        return Document(rng.integers(0, vocab_size, size).tolist(), (rng.random(size - 1) < 0.7).tolist())

    return [[document(size) for size in sizes] for sizes in ((17,), (5, 8), (3, 2, 10), (6,), (9, 8))]


def batch_of(rows: Sequence[Sequence[Document]], size: int = 16) -> dict[str, np.ndarray]:
    """One micro-batch ``[b, S]`` of packed documents."""
    batch = {name: np.zeros((len(rows), size), np.int32) for name in ("ids", "labels", "segments", "positions")}
    batch["weights"] = np.zeros((len(rows), size), np.float32)
    for row, documents in enumerate(rows):
        ids = [i for document in documents for i in document.ids]
        segments = [number for number, document in enumerate(documents, 1) for _ in document.ids]
        positions = [place for document in documents for place in range(len(document.ids))]
        weights = [weight for document in documents for weight in (*document.predicted, False)]
        for name, values in (("ids", ids), ("segments", segments), ("positions", positions), ("weights", weights)):
            batch[name][row, : len(values[:size])] = values[:size]
        batch["labels"][row, : len(ids) - 1] = ids[1:]
    return batch


def micro_batches(*batches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One batch of ``fit``, ``[M, b, S]``."""
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


class UERLayerNorm(torch.nn.Module):
    """``uer/layers/layer_norm.py``."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight, self.bias = (torch.nn.Parameter(torch.zeros(size)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.weight * (x - mean) / (deviation + self.epsilon) + self.bias


def reference_model(config: GPT2Config, weights: dict[str, np.ndarray]) -> transformers.GPT2LMHeadModel:
    """Make transformers' model in float64 of canonical weights."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **config.to_dict(), attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, attn_implementation="eager",
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    if config.layer_norm == UER:
        for parent in (*model.transformer.h, model.transformer):
            for name in [name for name, _ in parent.named_children() if name.startswith("ln_")]:
                setattr(parent, name, UERLayerNorm(config.n_embd, config.layer_norm_epsilon))
    model = model.double()
    with torch.no_grad():
        for name, parameter in canonical_parameters(model).items():
            parameter.copy_(torch.from_numpy(weights[name]))
    return model


def canonical_parameters(model: transformers.GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """The parameters by our names; Conv1D's are ``[in, out]``, and given transposed."""
    named = {name.removeprefix("transformer."): value for name, value in model.named_parameters()}
    return {name: value.t() if name.startswith("h.") and value.ndim == 2 else value for name, value in named.items()}


def reference(
    model: transformers.GPT2LMHeadModel, documents: Sequence[Document]
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss summed over the predicted tokens of all documents, and every gradient by our names."""
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for document in documents:
        logits = model(torch.tensor([document.ids])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(document.ids[1:]), reduction="none")
        total = total + losses[torch.tensor(document.predicted)].sum()
    total.backward()
    gradients = {
        name.removeprefix("transformer."): parameter.grad.numpy() for name, parameter in model.named_parameters()
    }
    return total.item(), {
        name: value.T if name.startswith("h.") and value.ndim == 2 else value for name, value in gradients.items()
    }
