"""The Keras model: as a plain ``keras.Model``, and its cached steps against its own full forward pass.

That the maths is GPT-2's is tested on the exported model, against transformers (tests/exports).
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_model import layers
from tf_model.attention import attend
from tf_model.config import ConfigError, GPT2Config
from tf_model.generation import Request, generate
from tf_model.gpt2 import GPT2
from tf_model.layers import ForwardBatch, LayerNorm
from tf_model.logits_processors import Constraints
from tf_model.sampling import Sampling
from tf_model.stacked_blocks import StackedBlocks
from tf_model.window import Window

CONFIG = GPT2Config(vocab_size=60, n_positions=24, n_embd=24, n_layer=2, n_head=3)


def random_model(config: GPT2Config = CONFIG, dtype: str = "float32", scale: float = 0.5) -> GPT2:
    model = GPT2(config, dtype=dtype)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(size=variable.shape) * scale + variable.path.endswith("gamma"))
    return model


def test_canonical_names_and_shapes() -> None:
    variables = GPT2(CONFIG).canonical_variables()
    assert {name: tuple(v.shape) for name, v in variables.items()} == CONFIG.tensor_shapes()
    assert len({id(v) for v in variables.values()}) == 4 + 12 * CONFIG.n_layer


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((30000, 1024, 2560, 32, 32), 2_597_073_920),  # CPM-Generate
        ((30000, 1024, 1024, 24, 16), 334_080_000),  # CPM medium
        ((30000, 1024, 768, 12, 12), 108_882_432),  # CPM-distill
    ],
)
def test_published_parameter_counts(sizes: tuple[int, ...], count: int) -> None:
    config = GPT2Config(*sizes)
    assert config.parameter_count == count == sum(int(np.prod(s)) for s in config.tensor_shapes().values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_head": 5}, "5 heads do not divide the hidden size 24"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"activation_function": "swish"}, "swish"),
    ],
)
def test_impossible_configs(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GPT2Config.from_dict({**CONFIG.to_dict(), **change})


def test_config_round_trip() -> None:
    assert GPT2Config.from_dict({**CONFIG.to_dict(), "unknown": 1}) == CONFIG
    with pytest.raises(ConfigError, match="n_embd"):
        GPT2Config.from_dict({"vocab_size": 3})


def test_plain_keras_use(capsys: pytest.CaptureFixture[str]) -> None:
    keras.utils.set_random_seed(0)
    model = GPT2(CONFIG)
    model.summary()
    assert f"{CONFIG.parameter_count:,}" in capsys.readouterr().out
    ids = np.arange(40).reshape(4, 10) % 7
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(ids[:, :-1], ids[:, 1:], epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.5 < 3 < history[0]
    assert model.predict(ids, verbose=0).shape == (4, 10, 60)


def test_steps_of_any_size_equal_the_full_pass() -> None:
    """Ragged prompts, then several tokens at once, then one, each row at its own position."""
    model = random_model()
    ids = tf.constant(np.random.default_rng(1).integers(0, 60, (3, 12)), tf.int32)
    full = model(ids).numpy()
    capacity = tf.constant(12)

    @tf.function
    def run(feeds: list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]) -> list[tf.Tensor]:
        cache, results = model.allocate(tf.constant(3), capacity), []
        for tokens, start, count in feeds:
            logits, cache = model.step(tokens, start, count, cache, capacity)
            results.append(logits)
        return results

    start = np.zeros(3, np.int32)
    feeds = []
    for counts in ([5, 1, 3], [2, 3, 1], [1, 1, 1], [4, 2, 3]):
        rows = [
            np.r_[ids[r, s : s + n], np.full(max(counts) - n, 9)]
            for r, (s, n) in enumerate(zip(start, counts, strict=True))
        ]
        feeds.append((tf.constant(np.stack(rows), tf.int32), tf.constant(start), tf.constant(counts)))
        start = start + np.array(counts, np.int32)
    for _ in range(2):  # a second call must not see what the first one wrote
        for (_, begin, count), logits in zip(feeds, run(feeds), strict=True):
            for row in range(3):
                np.testing.assert_allclose(logits[row], full[row, begin[row] + count[row] - 1], atol=1e-4)


def test_greedy_rows_equal_the_full_pass() -> None:
    model = random_model()
    prompts = [[1, 2, 3, 4, 5], [7], [9, 8, 7]]
    new = [3, 12, 0]
    ids = tf.constant([row + [0] * (5 - len(row)) for row in prompts])
    zeros, none = tf.zeros(3, tf.int32), tf.fill([3, 1], -1)
    request = Request(
        ids,
        tf.constant([5, 1, 3]),
        tf.constant(new),
        Sampling(tf.zeros(3), zeros, tf.ones(3), tf.zeros(3), tf.ones(3), tf.zeros(3, tf.int64)),
        Constraints(tf.ones(3), zeros, zeros, none, none),
        Window(tf.fill([3], 12), zeros - 1),
    )
    out = generate(model.step, model.allocate, CONFIG, request, 59).sequences.numpy()
    for row, (prompt, count) in enumerate(zip(prompts, new, strict=True)):
        expected = list(prompt)
        for _ in range(count):
            expected.append(int(tf.argmax(model(tf.constant([expected]))[0, -1])))
        assert out[row].tolist() == expected + [59] * (17 - len(expected))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_stay_finite_with_large_weights(dtype: str) -> None:
    model = random_model(dtype=dtype, scale=2.0)
    ids = tf.constant(np.random.default_rng(2).integers(0, 60, (2, 24)))
    assert np.isfinite(model(ids).numpy()).all()


def test_a_fully_visible_row_is_as_without_a_mask() -> None:
    """The last token sees everything: its scores must pass the mask unchanged, bit for bit."""
    scores = tf.constant(np.random.default_rng(3).normal(size=(1, 1, 5)), tf.float32)
    from tf_model.attention import MASKED

    visible = tf.constant([[[True] * 5]])
    np.testing.assert_array_equal(tf.nn.softmax(tf.where(visible, scores, MASKED)), tf.nn.softmax(scores))
    for dtype in (tf.float32, tf.float16, tf.bfloat16):
        hidden = tf.nn.softmax(tf.where(tf.constant([[[True, False, True, True, False]]]), scores, MASKED))
        assert np.isfinite(tf.cast(hidden, dtype).numpy().astype(np.float32)).all()
        assert hidden.numpy()[0, 0, 1] == 0.0


@pytest.mark.parametrize("width", [24, 128, 768])
def test_a_layer_norm_of_a_row_does_not_depend_on_how_many_there_are(width: int) -> None:
    """Bit for bit: int8 activations are rounded, which makes a last bit large."""
    layer = LayerNorm(1e-5, "ln")
    layer.build((None, width))
    x = tf.constant(np.random.default_rng(0).normal(size=(23, width)) * 3, tf.float32)
    norm = tf.function(lambda x: layer(x), input_signature=[tf.TensorSpec([None, width])])
    for rows in (1, 2, 5, 8, 23):
        np.testing.assert_array_equal(norm(x[:rows]), norm(x)[:rows])


HALF = ["float16", "bfloat16"]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [1, 3])
def test_softmax_of_half_types_is_in_float32(dtype: str, size: int) -> None:
    """A sum that float16 cannot hold and at which bfloat16 stagnates: of the exponentials of 70,000 equal scores."""
    keys = 70_000
    query = tf.zeros([1, 1, size, 1], dtype)
    value = tf.constant(np.arange(keys) % 2 * 2.0, dtype)[tf.newaxis, tf.newaxis, :, tf.newaxis]
    everything = tf.ones([1, 1, size, keys], tf.bool)
    found = attend(query, tf.zeros([1, 1, keys, 1], dtype), value, everything)
    np.testing.assert_allclose(tf.cast(found, tf.float64), np.ones([1, 1, size, 1]), rtol=0.02)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("size", [1, 3])
def test_a_hidden_key_never_counts_however_low_the_visible_scores(dtype: str, size: int) -> None:
    """The lowest score that float16 can hold is seen alone: a mask of -6e4 would prefer the hidden key."""
    query, key = tf.fill([1, 1, size, 1], tf.cast(-248, dtype)), tf.constant([[[[252.0], [0.0]]]])
    visible = tf.constant([[[[True, False]] * size]])
    found = attend(query, tf.cast(key, dtype), tf.cast([[[[3.0], [7.0]]]], dtype), visible)
    np.testing.assert_array_equal(tf.cast(found, tf.float32), np.full([1, 1, size, 1], 3.0))


@pytest.mark.parametrize("dtype", HALF)
def test_rows_and_layer_norms_of_half_types_are_in_float32(dtype: str) -> None:
    """Rows around 1000 that differ by hundredths: in float16 their steps are 0.5, in bfloat16 4."""
    rng = np.random.default_rng(4)
    rows = (1000 + 0.05 * rng.normal(size=(5, 24))).astype(np.float32)
    model = random_model(dtype=dtype)
    gamma, beta = (variable.numpy().astype(np.float64) for variable in (model.ln_f.gamma, model.ln_f.beta))
    exact = rows.astype(np.float64)
    centred = exact - exact.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * gamma + beta
    np.testing.assert_allclose(model.ln_f(tf.constant(rows)), expected, atol=0.02)

    block = model.h[0]
    for variable in block.variables:
        variable.assign(tf.zeros_like(variable))  # adds nothing: what comes out is what went in
    forward_batch = ForwardBatch(tf.constant(1), tf.constant(5), tf.ones([1, 1, 5, 5], tf.bool), None)
    np.testing.assert_array_equal(block(tf.constant(rows), forward_batch, None)[0], rows)


@pytest.mark.parametrize("dtype", HALF)
def test_layer_norms_of_half_types_read_float32_rows(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What every layer norm of the model is given has not been through the half type."""
    seen = []
    call = LayerNorm.call
    monkeypatch.setattr(LayerNorm, "call", lambda self, x: (seen.append(x), call(self, x))[1])
    random_model(dtype=dtype)(tf.constant([[1, 2, 3]]))
    assert len(seen) == 2 * CONFIG.n_layer + 1
    for x in seen:
        assert x.dtype == tf.float32
        assert (tf.cast(tf.cast(x, dtype), tf.float32).numpy() != x.numpy()).any()


def test_one_function_for_all_blocks_has_the_weights_and_the_scale_of_each() -> None:
    config = dataclasses.replace(CONFIG, n_layer=3, scale_attn_by_inverse_layer_idx=True)
    model = random_model(config)
    tokens = tf.constant([[1, 2, 3, 4, 5]])
    stacks, batch, size = StackedBlocks(model), tf.constant(1), tf.constant(5)
    stacks.assign()

    @tf.function(autograph=False)
    def rows() -> tf.Tensor:
        cache = model.allocate(batch, size)
        return model.forward(tokens, tf.constant([0]), size[tf.newaxis], cache, size, stacks.blocks())[0]

    np.testing.assert_allclose(model.logits(rows()), model(tokens)[0], atol=1e-4)


def test_a_row_that_reads_nothing_takes_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else attention of the others would be over more positions, and rounded otherwise."""
    seen = []
    monkeypatch.setattr(layers, "attend", lambda q, k, v, visible: (seen.append(visible.shape[-1]), q)[1])
    model, capacity = random_model(dataclasses.replace(CONFIG, n_positions=400)), tf.constant(400)
    tokens, start = tf.ones([2, 3], tf.int32), tf.constant([0, 300])
    for count in ([3, 0], [3, 3]):
        model.step(tokens, start, tf.constant(count), model.allocate(tf.constant(2), capacity), capacity)
    assert set(seen[: len(seen) // 2]) == {64}
    assert set(seen[len(seen) // 2 :]) == {320}
