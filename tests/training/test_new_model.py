"""The sizes of a model that begins from nothing, as a user writes them."""

from __future__ import annotations

import pytest

from support.errors import UserError
from tf_model.config import UER, GPT2Config
from training.model.new_model import parse_sizes


def test_sizes_are_read_by_name_in_any_order() -> None:
    assert parse_sizes("layers=4,hidden=208,heads=4,positions=256", 6000) == GPT2Config(6000, 256, 208, 4, 4)
    text = "positions=16, hidden=8, inner=20, layers=1, heads=2, activation=gelu, layer_norm=uer"
    assert parse_sizes(text, 50) == GPT2Config(
        50, 16, 8, 1, 2, n_inner=20, activation_function="gelu", layer_norm=UER, layer_norm_epsilon=1e-6
    )


BROKEN = {
    "layers=4,hidden=208,heads=4": "positions is missing: expected layers=N, hidden=N, heads=N, positions=N",
    "": "'': expected name=value, of layers, hidden",
    "4,208,4,256": "'4': expected name=value, of layers, hidden",
    "layers=4,hidden=208,heads=4,positions=256,depth=3": "'depth=3': expected name=value, of layers",
    "layers=4,hidden=208,heads=4,positions=": "'positions=': expected name=value",
    "layers=4,hidden=208,heads=4,positions=256,layers=5": "layers is there twice",
    "layers=4,hidden=208,heads=5,positions=256": "5 heads do not divide the hidden size 208",
    "layers=0,hidden=208,heads=4,positions=256": "layers is '0': expected a whole number above 0",
    "layers=4,hidden=2e2,heads=4,positions=256": "hidden is '2e2': expected a whole number above 0",
    "layers=4,hidden=208,heads=4,positions=9999999999": "n_positions is 9999999999: expected a whole number from 1",
    "layers=4,hidden=208,heads=4,positions=256,activation=swish": "activation_function 'swish': known are gelu_new",
    "layers=4,hidden=208,heads=4,positions=256,layer_norm=rms": "layer_norm 'rms': known are standard, uer",
}


@pytest.mark.parametrize("text", BROKEN)
def test_sizes_that_make_no_model_are_one_line(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_sizes(text, 6000)
    assert str(error.value).startswith("--init: ")
    assert BROKEN[text] in str(error.value)
    assert "\n" not in str(error.value)
