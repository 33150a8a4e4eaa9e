"""``DistilledGPT2``: its loss and gradients against two models of transformers in float64."""

from __future__ import annotations

import dataclasses
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
    micro_batches,
    random_documents,
    random_gpt2,
    reference_model,
)
from tests.training.test_model import assert_close, gradients_by_name
from tf_model.config import UER
from tf_model.gpt2 import GPT2
from training.model.distillation import DistilledGPT2, Teaching
from training.model.trained_gpt2 import TrainedGPT2

LARGER = dataclasses.replace(SMALL, n_embd=40, n_inner=160, n_layer=1, n_head=5, n_positions=30)
"""The teacher: everything but the vocabulary differs."""
ROWS = random_documents()
DOCUMENTS = list(itertools.chain(*ROWS))
TEACHINGS = {
    "CPM-1-Distill": Teaching(),
    "temperature 2": Teaching(temperature=2.0),
    "temperature 0.5, the teacher alone": Teaching(weight=1.0, temperature=0.5),
}
SLOW = ("CPM-1-Distill", "temperature 0.5, the teacher alone")
"""A graph is traced for each: one is enough to see that a change breaks nothing."""


def in_transformers(gpt2: GPT2) -> transformers.GPT2LMHeadModel:
    weights = {name: value.numpy() for name, value in gpt2.canonical_variables().items()}
    return reference_model(gpt2.config, weights)


def reference(
    student: transformers.GPT2LMHeadModel,
    teacher: transformers.GPT2LMHeadModel,
    documents: list[Document],
    teaching: Teaching,
) -> tuple[float, dict[str, np.ndarray]]:
    """CPM-1-Distill's loss, summed over predicted tokens, of each document alone; and every gradient by our names."""
    total = torch.zeros((), dtype=torch.float64)
    for document in documents:
        ids = torch.tensor([document.ids])
        logits = student(ids).logits[0, :-1]
        with torch.no_grad():
            soft_labels = torch.softmax(teacher(ids).logits[0, :-1] / teaching.temperature, -1)
        hard = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        soft = torch.nn.functional.cross_entropy(logits / teaching.temperature, soft_labels, reduction="none")
        losses = (1 - teaching.weight) * hard + teaching.weight * teaching.temperature**2 * soft
        total = total + losses[torch.tensor(document.predicted)].sum()
    total.backward()
    named = {name.removeprefix("transformer."): value.grad.numpy() for name, value in student.named_parameters()}
    return total.item(), {
        name: value.T if name.startswith("h.") and value.ndim == 2 else value for name, value in named.items()
    }


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in TEACHINGS])
def test_loss_and_every_gradient_of_packed_rows_are_those_of_two_models_in_transformers(name: str) -> None:
    student, teacher = random_gpt2(), random_gpt2(LARGER, seed=1)
    expected_loss, expected = reference(in_transformers(student), in_transformers(teacher), DOCUMENTS, TEACHINGS[name])
    model = DistilledGPT2(student, teacher=teacher, teaching=TEACHINGS[name], dropout=0)
    loss, gradients = gradients_by_name(model, micro_batches(batch_of(ROWS)))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert set(gradients) == set(SMALL.tensor_shapes())
    for tensor, gradient in gradients.items():
        assert_close(gradient, expected[tensor], 1e-5, tensor)


def test_a_student_and_a_teacher_of_other_kinds_have_their_own_norms_and_output_matrices() -> None:
    student = random_gpt2(dataclasses.replace(SMALL, activation_function="gelu"))
    teacher_config = dataclasses.replace(LARGER, layer_norm=UER, layer_norm_epsilon=1e-6, tie_word_embeddings=False)
    teacher = random_gpt2(teacher_config, seed=1)
    expected, _ = reference(in_transformers(student), in_transformers(teacher), DOCUMENTS, Teaching())
    model = DistilledGPT2(student, teacher=teacher, dropout=0)
    loss = model.micro_loss(model.forward.hidden(batch := batch_of(ROWS)), batch)
    assert loss.numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["none", "of one row"])
def test_rows_of_weight_0_count_for_nothing(weights: str) -> None:
    batch = batch_of(ROWS)
    batch["weights"][0 if weights == "of one row" else slice(None)] = 0
    counted = [document for row in ROWS[1:] for document in row] if weights == "of one row" else []
    student, teacher = random_gpt2(), random_gpt2(LARGER, seed=1)
    expected = reference(in_transformers(student), in_transformers(teacher), counted, Teaching())[0] if counted else 0
    loss, gradients = gradients_by_name(DistilledGPT2(student, teacher=teacher, dropout=0), micro_batches(batch))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert bool(counted) == any(gradient.any() for gradient in gradients.values())


@pytest.mark.slow
def test_rows_in_several_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = random_gpt2(), random_gpt2(LARGER, seed=1)
    model = DistilledGPT2(student, teacher=teacher, dropout=0)
    data = micro_batches(batch_of(ROWS))
    whole, by_name = gradients_by_name(model, data)
    monkeypatch.setattr("training.model.functions.ROWS_OF_LOGITS", 7)
    in_pieces, in_pieces_by_name = gradients_by_name(model, data)
    assert in_pieces == pytest.approx(whole, rel=1e-6)
    for name, gradient in by_name.items():
        assert_close(in_pieces_by_name[name], gradient, 1e-6, name)


@pytest.mark.slow
def test_a_teacher_that_counts_nothing_changes_nothing() -> None:
    student = random_gpt2()
    alone = gradients_by_name(TrainedGPT2(student, dropout=0), micro_batches(batch_of(ROWS)))
    teacher = random_gpt2(LARGER, seed=1)
    model = DistilledGPT2(student, teacher=teacher, teaching=Teaching(weight=0.0), dropout=0)
    loss, gradients = gradients_by_name(model, micro_batches(batch_of(ROWS)))
    assert loss == pytest.approx(alone[0], rel=1e-6)
    for name, gradient in gradients.items():
        assert_close(gradient, alone[1][name], 1e-6, name)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16", "int8"])
def test_no_weight_of_a_teacher_is_trained_whatever_its_dtype(dtype: str) -> None:
    student, teacher = random_gpt2(), random_gpt2(LARGER, dtype, seed=1)
    before = [variable.numpy().tobytes() for variable in teacher.variables]
    model = DistilledGPT2(student, teacher=teacher)
    model.compile(optimizer="sgd", jit_compile=False)
    data = micro_batches(batch_of(ROWS[:2]), batch_of(ROWS[2:4]))
    assert {id(v.value) for v in model.trainable_variables} == {id(v) for v in student.canonical_variables().values()}
    loss = model.train_step({name: tf.constant(value) for name, value in data.items()})["loss"]
    assert np.isfinite(loss)
    assert [variable.numpy().tobytes() for variable in teacher.variables] == before


def test_evaluate_measures_the_cross_entropy_alone() -> None:
    student, teacher = random_gpt2(), random_gpt2(LARGER, seed=1)
    data = {name: tf.constant(value) for name, value in micro_batches(batch_of(ROWS)).items()}
    model = DistilledGPT2(student, teacher=teacher)
    model.compile(optimizer="sgd", jit_compile=False)
    found = model.test_step(data)["loss"].numpy()
    labels = reference(in_transformers(student), in_transformers(teacher), DOCUMENTS, Teaching(weight=0.0))[0]
    assert found == pytest.approx(labels / sum(sum(document.predicted) for document in DOCUMENTS), rel=1e-5)
