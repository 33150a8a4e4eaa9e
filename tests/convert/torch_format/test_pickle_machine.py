"""The pickle machine agrees with Python's pickle on plain data, over all protocols."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.torch_format.pickle_machine import PickleError, loads

KEY_INTEGERS = st.integers(-(2**61) + 2, 2**61 - 2)
"""Larger ones are refused as keys: they could be made to collide."""
KEYS = st.one_of(
    st.none(),
    st.booleans(),
    KEY_INTEGERS,
    st.text(max_size=8),
    st.binary(max_size=8),
    st.tuples(KEY_INTEGERS, st.text()),
)
SCALARS = st.one_of(
    KEYS,
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.binary(max_size=300),
    st.binary(max_size=20).map(bytearray),
    st.text(st.characters(), max_size=300),
    st.sets(KEYS, max_size=5),
    st.frozensets(KEYS, max_size=5),
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
        st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict),
        inner.map(lambda item: [item, item]),
    ),
    max_leaves=20,
)


def kinds(item: Any) -> Any:
    """The types in plain data; True and 1 are equal, but not the same."""
    if isinstance(item, dict):
        return "dict", [(kinds(key), kinds(value)) for key, value in item.items()]
    if isinstance(item, (list, tuple)):
        return type(item).__name__, [kinds(inner) for inner in item]
    if isinstance(item, (set, frozenset)):
        return type(item).__name__, sorted(map(repr, item))
    return type(item).__name__, repr(item)


@given(PLAIN)
@settings(max_examples=150, deadline=None)
def test_plain_data_is_what_pickle_reads(value: Any) -> None:
    for protocol in range(6):
        data = pickle.dumps(value, protocol)
        expected, found = pickle.loads(data), loads(data)
        assert found == expected
        assert kinds(found) == kinds(expected)


def test_objects_may_contain_themselves() -> None:
    value: list[Any] = [1]
    value.append({"self": value})
    for protocol in range(6):
        found = loads(pickle.dumps(value, protocol))
        assert found[1]["self"] is found


def test_strings_of_python_2_are_read() -> None:
    assert loads(b"\x80\x02U\x06\xe5\x8d\x83abc.") == "千abc"
    assert loads(b"\x80\x02U\x02\xff\xfe.") == "\xff\xfe"
    assert loads(b"(S'a'\nI01\nL5L\nd.".replace(b"L5L\n", b"")) == {"a": True}


def test_keys_that_collide_are_refused() -> None:
    """Multiples of 2^61 - 1 all have the hash 0: a dict of many would take a time that is quadratic."""
    numbers = b"".join(b"\x8a\x0e" + (i * (2**61 - 1)).to_bytes(14, "little") + b"N" for i in range(1, 60_001))
    with pytest.raises(PickleError, match="a number beyond"):
        loads(b"\x80\x02}(" + numbers + b"u.")
