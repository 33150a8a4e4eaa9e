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


def torch_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The losses as the demo's first training had them."""
    form = torch.tensor(FORM)
    log_total = logits.logsumexp(-1)
    losses = log_total - logits.gather(1, labels[:, None])[:, 0]
    of_form = logits[:, form] - log_total[:, None]
    others = torch.log1p(-of_form.exp().sum(-1))
    is_one = labels[:, None] == form
    return losses - WEIGHT * torch.where(is_one.any(-1), (of_form * is_one).sum(-1), others)


def test_losses_and_gradients_are_those_of_automatic_differentiation() -> None:
    import tensorflow as tf

    from training.model.form import FormLosses

    random = np.random.default_rng(0)
    values = 2 * random.standard_normal((300, 11))
    labels = np.concatenate([random.integers(0, 11, 290), FORM * 3, [0]])
    logits = torch.tensor(values, requires_grad=True)
    expected = torch_losses(logits, torch.tensor(labels))
    expected.sum().backward()
    losses, slopes = FormLosses(FORM, 11, WEIGHT)(tf.constant(values, tf.float32), tf.constant(labels, tf.int32))
    np.testing.assert_allclose(losses.numpy(), expected.detach().numpy(), rtol=1e-5)
    assert logits.grad is not None
    np.testing.assert_allclose(slopes.numpy(), logits.grad.numpy(), atol=1e-5 * float(logits.grad.abs().max()))


@pytest.mark.parametrize(("kind", "shown"), [("cpm", "。,、\n"), ("bert", ""), ("bpe", "\n")])
def test_tokens_of_form_are_the_pieces_that_are_a_mark_and_ends(kind, shown, tmp_path) -> None:
    """CPM writes a piece for a space in front of a mark, which is no form, and byte BPE the bytes of one."""
    from training.model.form import form_tokens

    tokenizer = load_tokenizer(write_tokenizer(kind, tmp_path / "tokenizer"))
    found = form_tokens(tokenizer)
    assert tokenizer.eos_token_id in found
    texts = [tokenizer.decode([token]) for token in found if token != tokenizer.eos_token_id]
    assert {*texts} == {*shown}
    assert tokenizer.unknown_token_id not in found
