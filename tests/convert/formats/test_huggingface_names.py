"""Names and heads that transformers' GPT-2 has had since 2019: what transformers 5 reads has the same logits here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file, save_model

from convert.formats.registry import open_checkpoint
from support.errors import CheckpointError
from tests.helpers.huggingface import IDS, model_of, random_model

State = dict[str, torch.Tensor]
Edit = Callable[[State], State]
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval().double()(torch.tensor(IDS)).logits.numpy()


def write(folder: Path, edit: Edit, *, config: dict[str, Any] | None = None, as_torch: bool = False) -> np.ndarray:
    """Save a random model whose tensors ``edit`` changes; return its logits. A value None takes a key away."""
    model = random_model()
    model.config.save_pretrained(folder)
    state = {name: value.clone() for name, value in model.state_dict().items() if name != HEAD}
    state = {name: value.clone() for name, value in edit(state).items()}
    if as_torch:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    values = {**json.loads((folder / "config.json").read_text()), **(config or {})}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return logits(model)


def renamed(*pairs: tuple[str, str]) -> Edit:
    def edit(state: State) -> State:
        for old, new in pairs:
            state = {name.replace(old, new): value for name, value in state.items()}
        return state

    return edit


def added(**tensors: torch.Tensor) -> Edit:
    """Add tensors; ``__`` in a name stands for a dot."""
    return lambda state: {**state, **{name.replace("__", "."): value for name, value in tensors.items()}}


def masks(state: State) -> State:
    for layer in range(3):
        state[f"transformer.h.{layer}.attn.bias"] = torch.tril(torch.ones(24, 24)).view(1, 1, 24, 24).to(torch.uint8)
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


def short_endings(state: State) -> State:
    """Name tensors as OpenAI's variables are named, which pytorch-pretrained-bert read, too."""
    endings = (("ln_1.weight", "ln_1.g"), ("ln_2.weight", "ln_2.g"), ("ln_f.weight", "ln_f.g"), (".bias", ".b"))
    matrices = tuple((f"{name}.weight", f"{name}.w") for name in ("c_attn", "c_proj", "c_fc"))
    return renamed(*endings, *matrices)(state)


READ_BY_TRANSFORMERS: dict[str, tuple[Edit, dict[str, Any]]] = {
    "the head stands for the embedding": (renamed((WTE, HEAD)), {}),
    "both, as two copies": (lambda state: {**state, HEAD: state[WTE]}, {}),
    "the decoder of 2019 next to the embedding": (lambda state: {**state, "lm_head.decoder.weight": state[WTE]}, {}),
    "the decoder next to the head": (
        lambda state: {**state, HEAD: state[WTE], "lm_head.decoder.weight": state[WTE]}, {},
    ),
    "a zero output bias": (added(lm_head__bias=torch.zeros(96)), {}),
    "a head that scores texts": (added(score__weight=torch.ones(2, 48)), {}),
    "a head that chooses": (
        added(
            multiple_choice_head__summary__weight=torch.ones(1, 48), multiple_choice_head__summary__bias=torch.ones(1)
        ),
        {},
    ),
    "a head that values": (added(v_head__summary__weight=torch.ones(1, 48), v_head__summary__bias=torch.ones(1)), {}),
    "somebody's own head": (added(rhyme__0__weight=torch.ones(9, 48)), {}),
    "a body with a classifier": (
        lambda state: {**renamed(("transformer.", ""))(state), "classifier.weight": torch.ones(3, 48)}, {},
    ),
    "masks": (masks, {}),
    "masks of a body": (lambda state: renamed(("transformer.", ""))(masks(state)), {}),
    "a head and no embedding, masks, another head": (
        lambda state: {**renamed((WTE, HEAD))(masks(state)), "score.weight": torch.ones(2, 48)}, {},
    ),
    "a configuration of 2019": (
        masks,
        {
            "model_type": None, "architectures": None, "activation_function": None, "n_ctx": 24,
            "num_labels": 1, "output_attentions": False, "output_past": True, "pruned_heads": {}, "torchscript": False,
            "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
            "summary_type": "cls_index", "summary_use_proj": True, "use_bfloat16": False, "dtype": None,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("as_torch", [False, True], ids=["safetensors", "torch"])
@pytest.mark.parametrize("case", READ_BY_TRANSFORMERS)
def test_what_transformers_reads_has_its_logits(tmp_path: Path, case: str, as_torch: bool) -> None:
    edit, config = READ_BY_TRANSFORMERS[case]
    wanted = write(tmp_path, edit, config=config, as_torch=as_torch)
    theirs = logits(transformers.GPT2LMHeadModel.from_pretrained(tmp_path))
    assert np.abs(theirs - wanted).max() < 1e-5
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.tie_word_embeddings
    assert np.abs(logits(model_of(checkpoint)) - theirs).max() < 1e-5


READ_OTHERWISE: dict[str, tuple[Edit, dict[str, Any]]] = {
    "only the decoder of 2019": (renamed((WTE, "lm_head.decoder.weight")), {}),
    "gamma and beta": (
        renamed(
            *((f"ln_{i}.weight", f"ln_{i}.gamma") for i in "12f"), *((f"ln_{i}.bias", f"ln_{i}.beta") for i in "12f")
        ),
        {},
    ),
    "the endings of OpenAI's variables": (short_endings, {}),
    "OpenAI's names with no ending": (renamed((WTE, "wte"), ("transformer.wpe.weight", "wpe")), {}),
    "the size of the vocabulary under its old name": (
        masks, {"vocab_size": None, "vocab_size_or_config_json_file": 96, "model_type": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ_OTHERWISE)
def test_names_that_transformers_has_forgotten_are_read_as_the_same_model(tmp_path: Path, case: str) -> None:
    edit, config = READ_OTHERWISE[case]
    wanted = write(tmp_path, edit, config=config, as_torch=True)
    assert np.abs(logits(model_of(open_checkpoint(tmp_path))) - wanted).max() < 1e-5


def test_the_tied_file_of_safetensors_own_save_model_is_read(tmp_path: Path) -> None:
    """Of the two names of one tensor it keeps the first in the alphabet."""
    model = random_model()
    model.config.save_pretrained(tmp_path)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert np.abs(logits(model_of(open_checkpoint(tmp_path))) - logits(model)).max() < 1e-5


def test_the_head_stands_for_the_embedding_in_shards_too(tmp_path: Path) -> None:
    model = random_model()
    model.config.save_pretrained(tmp_path)
    state = {name: value.clone() for name, value in model.state_dict().items() if name != WTE}
    halves = sorted(state)[::2], sorted(state)[1::2]
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, names in zip(files, halves, strict=True):
        save_file({name: state[name] for name in names}, tmp_path / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in zip(files, halves, strict=True) for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    theirs = logits(transformers.GPT2LMHeadModel.from_pretrained(tmp_path))
    assert np.abs(logits(model_of(open_checkpoint(tmp_path))) - theirs).max() < 1e-5


@pytest.mark.parametrize("said", [True, None])
def test_an_output_matrix_that_differs_is_its_own_as_transformers_reads_it(tmp_path: Path, said: bool | None) -> None:
    edit: Edit = lambda state: {**state, HEAD: state[WTE] * 0.5 + 0.1}  # noqa: E731
    write(tmp_path, edit, config={"tie_word_embeddings": said})
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.config.tie_word_embeddings
    (note,) = checkpoint.info.notes
    assert "lm_head.weight differs from transformer.wte.weight: taken as an output matrix of its own" in note
    theirs = logits(transformers.GPT2LMHeadModel.from_pretrained(tmp_path))
    assert np.abs(logits(model_of(checkpoint)) - theirs).max() < 1e-5


def test_heads_of_other_tasks_are_named(tmp_path: Path) -> None:
    write(tmp_path, added(score__weight=torch.ones(2, 48), rhyme__weight=torch.ones(9, 48)))
    assert open_checkpoint(tmp_path).info.left_out == ("rhyme.weight", "score.weight")


REFUSED: dict[str, tuple[Edit, dict[str, Any], str]] = {
    "an output bias": (added(lm_head__bias=torch.full((96,), 0.5)), {}, "lm_head.bias is not zero: .* no output bias"),
    "one value of an output bias": (
        added(lm_head__bias=torch.eye(96)[7]), {}, "lm_head.bias is not zero: a GPT-2 has no output bias",
    ),
    "cross attention": (
        added(transformer__h__0__crossattention__c_attn__weight=torch.ones(48, 96)), {},
        "1 unexpected tensor: h.0.crossattention.c_attn.weight",
    ),
    "a norm of queries": (
        added(transformer__h__2__attn__q_norm__weight=torch.ones(12)), {}, "unexpected tensor: h.2.attn.q_norm.weight",
    ),
    "a third embedding": (added(transformer__wtte__weight=torch.ones(2, 48)), {}, "1 unexpected tensor: wtte.weight"),
    "a decoder that differs": (
        lambda state: {**state, "lm_head.decoder.weight": state[WTE] * 2}, {},
        "lm_head.decoder.weight differs from transformer.wte.weight",
    ),
    "a head of its own and no embedding": (renamed((WTE, HEAD)), {"tie_word_embeddings": False}, "missing tensor: wte"),
    "two names for one weight": (
        lambda state: {**state, "transformer.ln_f.gamma": torch.ones(48)}, {}, "1 unexpected tensor: ln_f.gamma",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_another_model_is_refused_by_name(tmp_path: Path, case: str) -> None:
    edit, config, words = REFUSED[case]
    write(tmp_path, edit, config=config)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path)
