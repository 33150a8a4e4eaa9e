"""The loss that counts the form of a poem, against PyTorch's automatic differentiation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.small_vocabularies import write_tokenizer
from tokenization import load_tokenizer

pytestmark = pytest.mark.tensorflow

FORM = [1, 4, 6]
WEIGHT = 5.0


def torch_loss(rows: torch.Tensor, table: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of the losses as the demo's first training had it."""
    form = torch.tensor(FORM)
    logits = rows @ table.T
    log_total = logits.logsumexp(-1)
    losses = log_total - logits.gather(1, labels[:, None])[:, 0]
    of_form = logits[:, form] - log_total[:, None]
    others = torch.log1p(-of_form.exp().sum(-1))
    is_one = labels[:, None] == form
    return (losses - WEIGHT * torch.where(is_one.any(-1), (of_form * is_one).sum(-1), others)).sum()


def test_loss_and_gradients_are_those_of_automatic_differentiation() -> None:
    import tensorflow as tf

    from training import functions
    from training.form import FormLosses

    random = np.random.default_rng(0)
    arrays = random.standard_normal((300, 8)), random.standard_normal((11, 8))
    labels = np.concatenate([random.integers(0, 11, 290), FORM * 3, [0]])
    rows, table = (torch.tensor(array, requires_grad=True) for array in arrays)
    torch_loss(rows, table, torch.tensor(labels)).backward()
    with tf.GradientTape() as tape:
        ours = [tf.Variable(array, dtype=tf.float32) for array in arrays]
        losses = FormLosses(FORM, 11, WEIGHT)

        def judge(logits: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return losses(logits, tf.gather(tf.constant(labels, tf.int32), places))

        rows_now, table_now = map(tf.convert_to_tensor, ours)
        loss = functions.loss_in_pieces(rows_now, table_now, tf.ones(300), judge)
    assert float(loss) == pytest.approx(float(torch_loss(rows, table, torch.tensor(labels)).detach()), rel=1e-6)
    for gradient, expected in zip(tape.gradient(loss, ours), (rows.grad, table.grad), strict=True):
        assert expected is not None
        np.testing.assert_allclose(gradient.numpy(), expected.numpy(), atol=1e-5 * float(expected.abs().max()))


def test_tokens_of_form_are_marks_and_ends(tmp_path) -> None:
    from training.form import form_tokens

    tokenizer = load_tokenizer(write_tokenizer("cpm", tmp_path))
    expected = {*tokenizer.encode("。"), *tokenizer.encode("，"), *tokenizer.encode("\n"), tokenizer.eos_token_id}
    assert expected <= {*form_tokens(tokenizer)}
    assert tokenizer.unknown_token_id not in form_tokens(tokenizer)
