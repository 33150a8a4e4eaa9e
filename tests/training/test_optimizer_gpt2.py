"""Updates of a GPT-2 of two layers against transformers' model in float64 and ``torch.optim.AdamW``."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import torch
import transformers

from tests.training.reference import (
    SMALL,
    Document,
    batch_of,
    canonical_parameters,
    micro_batches,
    random_documents,
    random_gpt2,
    reference_model,
)
from training.model.trained_gpt2 import TrainedGPT2
from training.optimizers.adamw import AdamW
from training.optimizers.schedule import Schedule

PEAK, STEPS, RISING, DECAY, CLIP = 1e-3, 5, 2, 0.1, 1.0
ROWS = [random_documents(seed) for seed in range(STEPS)]


class Oracle:
    """PyTorch's way: a loss of all documents, clipping, AdamW with two groups, a schedule."""

    def __init__(self, weights: dict[str, np.ndarray], epsilon: float) -> None:
        self.model = reference_model(SMALL, weights)
        self.parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in self.parameters if p.ndim == 2], "weight_decay": DECAY},
            {"params": [p for p in self.parameters if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, eps=epsilon)
        # Ours has no update with the rate 0: its warm-up is one step longer and has begun.
        self.scheduler = transformers.get_linear_schedule_with_warmup(self.optimizer, RISING + 1, STEPS + 1)
        self._next_rate()

    def _next_rate(self) -> None:
        self.optimizer.step()  # nothing has a gradient yet
        self.scheduler.step()

    def step(self, documents: list[Document]) -> float:
        losses = []
        for document in documents:
            logits = self.model(torch.tensor([document.ids])).logits[0, :-1]
            all_losses = torch.nn.functional.cross_entropy(logits, torch.tensor(document.ids[1:]), reduction="none")
            losses.append(all_losses[torch.tensor(document.predicted)])
        self.optimizer.zero_grad()
        torch.cat(losses).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.scheduler.step()
        return float(norm)

    def moment(self, name: str, key: str) -> np.ndarray:
        parameter = {id(p): p for p in self.parameters}
        named = dict(self.model.named_parameters())
        full = name if name in named else f"transformer.{name}"
        value = self.optimizer.state[parameter[id(named[full])]][key]
        return (value.t() if name.startswith("h.") and value.ndim == 2 else value).numpy()


@pytest.mark.parametrize(("epsilon", "share"), [(1e-5, 1.0), (1e-8, 0.999)])
def test_updates_of_a_gpt2_are_those_of_torch(epsilon: float, share: float) -> None:
    """At epsilon 1e-8 Adam makes whole steps of gradients that are nothing but float32's rounding.

    Those are above all of the keys' third of ``c_attn.bias``, whose gradient is 0 in theory.
    """
    gpt2 = random_gpt2()
    variables = gpt2.canonical_variables()
    oracle = Oracle({name: variable.numpy() for name, variable in variables.items()}, epsilon)
    optimizer = AdamW(Schedule(PEAK, STEPS, RISING / STEPS), DECAY, epsilon=epsilon, global_clipnorm=CLIP)
    model = TrainedGPT2(gpt2, dropout=0)
    model.compile(optimizer=optimizer, jit_compile=False)
    optimizer.build(model.trainable_variables)
    train = tf.function(model.train_step, autograph=False)
    for number, rows in enumerate(ROWS):
        norm = oracle.step(list(itertools.chain(*rows)))
        train({name: tf.constant(value) for name, value in micro_batches(batch_of(rows)).items()})
        assert norm > CLIP
        assert float(optimizer.gradient_norm) == pytest.approx(norm, rel=1e-5)
        if number in (2, 4):
            differences = {
                name: np.abs(variables[name].numpy() - parameter.detach().numpy())
                for name, parameter in canonical_parameters(oracle.model).items()
            }
            if share < 1:
                differences = {name: value for name, value in differences.items() if "c_attn.bias" not in name}
            every = np.concatenate([value.ravel() for value in differences.values()])
            assert np.mean(every <= 1e-6) >= share, {name: value.max() for name, value in differences.items()}
    names = {id(variable): name for name, variable in variables.items()}
    for index, variable in enumerate(model.trainable_variables):
        for moments, key in ((optimizer._momentums, "exp_avg"), (optimizer._velocities, "exp_avg_sq")):
            found, expected = moments[index].numpy(), oracle.moment(names[id(variable.value)], key)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
