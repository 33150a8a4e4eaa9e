"""What pickles are made of, as far as this project is concerned: plain data, and placeholders for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from support.messages import short_repr

_KEY_NODES = 32  # items of a nested tuple that is a dict key or an element of a set
_LARGEST_KEY = 2**61 - 2
_COLLECTIONS = (list, tuple, set, frozenset)


class Placeholder:
    """Something that a pickle names and nobody here knows: a class or function, or what calling it would have given.

    Attributes:
        module, name: the two halves of the name, as the pickle has them.
        args: what the pickle calls it with; None while it is the class or function itself.
        kwargs: the keyword arguments of that call, None mostly.
        state: what the pickle gives to ``__setstate__`` or ``__dict__``.
        items: what it appends, or adds as to a set.
        entries: what it sets as if this were a dict.
    """

    __slots__ = ("args", "entries", "items", "kwargs", "module", "name", "state")

    def __init__(
        self, module: str, name: str, args: tuple[Any, ...] | None = None, kwargs: dict[Any, Any] | None = None
    ) -> None:
        self.module, self.name, self.args, self.kwargs = module, name, args, kwargs
        self.state: Any = None
        self.items: list[Any] | None = None
        self.entries: dict[Any, Any] | None = None

    @property
    def qualified_name(self) -> str:
        return f"{self.module}.{self.name}"

    def called(self, args: tuple[Any, ...], kwargs: dict[Any, Any] | None = None) -> Placeholder:
        """Return the inert result of calling this, or of calling what calling it gave."""
        return Placeholder(self.module, self.name, args, kwargs)

    def __repr__(self) -> str:
        name = f"{self.module[:100]}.{self.name[:100]}"  # a pickle may hold names of megabytes, and line feeds in them
        return name if name.isprintable() else repr(name)


@dataclass(frozen=True)
class Function:
    """What stands in a caller's table for a name that a pickle may call; ``ValueError`` is how ``call`` refuses.

    Attributes:
        name: for messages.
        call: is given the arguments as the pickle has them, so it must check their number and types.
        copies: the result is a copy of the arguments; the elements copied count against the size of the pickle, or
            a short pickle could have a long list copied at the price of a few bytes each time.
    """

    name: str
    call: Callable[[tuple[Any, ...]], Any]
    copies: bool = False


def _elements(name: str, args: tuple[Any, ...]) -> Any:
    """Return the elements that a constructor such as ``set`` gets: no argument, or a list, tuple or set."""
    if not args:
        return ()
    if len(args) > 1 or not isinstance(args[0], _COLLECTIONS):
        raise ValueError(f"{name} is called with {short_repr(args[0])}")
    return args[0]


def checked_key(key: Any) -> Any:
    """Return ``key`` if it can be a dict key.

    Tuples are the one thing that Python walks by itself, for their hash: deep ones overflow its stack, and of a tuple
    that has another one twice, which has another one twice..., it follows every path. So they must be small. Numbers
    hash to their remainder by 2^61 - 1: beyond that, any number of them may collide, and a dict of them takes forever.
    """
    pending, nodes = [key], 1
    while pending:
        item = pending.pop()
        if isinstance(item, (int, float)) and math.isfinite(item) and abs(item) > _LARGEST_KEY:
            raise ValueError(f"a number beyond {_LARGEST_KEY} is a dict key or element of a set")
        if isinstance(item, (tuple, frozenset)):
            nodes += len(item)
            if nodes > _KEY_NODES:
                raise ValueError(f"a dict key or element of a set is a nested tuple of more than {_KEY_NODES} items")
            pending.extend(item)
    try:
        hash(key)
    except TypeError:
        raise ValueError(f"{short_repr(key)} (or something in it) cannot be a dict key or element of a set") from None
    return key


def _set(args: tuple[Any, ...]) -> set[Any]:
    return {checked_key(item) for item in _elements("set", args)}


def frozen_set(args: tuple[Any, ...]) -> frozenset[Any]:
    """Make the frozenset of the elements in ``args``."""
    return frozenset(checked_key(item) for item in _elements("frozenset", args))


def _dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    if len(args) == 1 and isinstance(args[0], dict):
        return dict(args[0])
    result = {}
    for pair in _elements("dict", args):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError(f"dict is called with {short_repr(pair)} where a key and a value belong")
        result[checked_key(pair[0])] = pair[1]
    return result


def _bytes(args: tuple[Any, ...]) -> bytes:
    """Make bytes of no argument, of bytes, or of text in Latin-1, which is how protocols 0 to 2 have bytes."""
    if not args:
        return b""
    if len(args) == 1 and isinstance(args[0], (bytes, bytearray)):
        return bytes(args[0])
    if len(args) == 2 and all(isinstance(arg, str) for arg in args) and args[1] in ("latin1", "latin-1", "iso-8859-1"):
        return str(args[0]).encode("latin-1")
    raise ValueError(f"bytes are made of {', '.join(map(short_repr, args[:3]))}")


def _complex(args: tuple[Any, ...]) -> complex:
    if len(args) > 2 or not all(type(arg) is float for arg in args):
        raise ValueError("complex is called with something else than two floats")
    return complex(*args)


def _plain() -> dict[tuple[str, str], Any]:
    constructors = {
        "set": _set,
        "frozenset": frozen_set,
        "list": lambda args: list(_elements("list", args)),
        "tuple": lambda args: tuple(_elements("tuple", args)),
        "dict": _dict,
        "bytes": _bytes,
        "bytearray": lambda args: bytearray(_bytes(args)),
        "complex": _complex,
    }
    table = {
        (module, name): Function(name, call, copies=True)
        for module in ("builtins", "__builtin__")  # the latter in protocols 0 to 2
        for name, call in constructors.items()
    }
    table["_codecs", "encode"] = Function("_codecs.encode", _bytes, copies=True)
    table["collections", "OrderedDict"] = Function("OrderedDict", _dict, copies=True)
    # The first argument is the factory of missing values, of which nothing is kept.
    table["collections", "defaultdict"] = Function("defaultdict", lambda args: _dict(args[1:]), copies=True)
    return table


PLAIN: Final[Mapping[tuple[str, str], Any]] = _plain()
"""The names that plain data of Python is made with: sets, bytes, complex numbers, ordered and default dicts."""
