"""Reads pickles, protocols 0 to 5, without importing or calling anything that they name.

``pickletools.genops`` of the standard library cuts the bytes into opcodes; what an opcode means is decided here. A
name in the pickle (``os.system``, ``torch.FloatStorage``, a class of the program that wrote the file) is looked up in a
table that the caller gives. A name that the table lacks becomes an inert ``Placeholder``, which also stands for
everything that the pickle makes of it: instances, attributes, entries.

Time and memory are linear in the size of the pickle, whatever it says: there is no recursion over the data; lengths are
compared with the bytes that are left before they are read; the memo is a dict; copies made by constructors are paid for
by bytes read; and dict keys are small.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from convert.torch_format.pickle_values import PLAIN, Function, Placeholder, checked_key, frozen_set
from support.messages import short_repr

_PROTOCOL = 5
_INTEGER_BYTES = 512  # hashing an int takes time in its size, and nothing remembers the hash
_NUMBER_LINE, _LINE = 5000, 1 << 20  # characters of a number in digits, and of any other argument that ends in "\n"
_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)


class PickleError(ValueError):
    """Bytes that are not a pickle, or one that does what no checkpoint does; the message is one line."""


class _Source:
    """At most ``size`` bytes of a stream, from where it stands; a read that asks for more than is left is an error.

    Without that comparison a buffered reader allocates what a pickle merely declares.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size, self._position, self._code = stream, size, 0, b""

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        left = self._size - self._position
        if size > left > 0:
            raise ValueError(f"{size} bytes are declared, but {left} are left")
        self._code = data = self._stream.read(min(size, left))
        self._position += len(data)
        return data

    def readline(self) -> bytes:
        """Return the rest of a line; the byte read before is the opcode: of INT, LONG, GET, PUT, which have digits."""
        limit = _NUMBER_LINE if self._code in (b"I", b"L", b"g", b"p") else _LINE
        data = self._stream.readline(min(limit, self._size - self._position))
        self._position += len(data)
        return data


class _Machine:
    """The stack and the memo; one method for every opcode that does more than push its argument."""

    def __init__(self, source: _Source, known: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any]) -> None:
        self.source, self.known, self.persistent = source, known, persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self) -> Any:
        position = 0
        operations = pickletools.genops(self.source)  # type: ignore[arg-type]  # it needs no more of a file than this
        try:
            for opcode, argument, at in operations:
                position = at or 0
                method = _METHODS.get(opcode.name)
                if method is not None:
                    method(self, argument)
                elif argument is not None:  # numbers, strings, bytes: they are what genops reads
                    self.push(argument)
                elif opcode.name != "STOP":  # the two of protocol 5 for buffers that are elsewhere
                    raise ValueError(f"the opcode {opcode.name} has no meaning in a file")
            result = self.pop()
        except (ValueError, Warning) as error:  # genops decodes escapes, of which Python warns, maybe with an exception
            text = str(error).replace("\n", " ")[:300]
            raise PickleError(f"bad pickle near its byte {position}: {text}") from error
        if self.stack or self.outer:
            raise PickleError(f"bad pickle near its byte {position}: it ends with things left on its stack")
        return result

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("it takes something from an empty stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Take what lies above the last mark off the stack."""
        if not self.outer:
            raise ValueError("it goes back to a mark which is not there")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def top(self) -> Any:
        if not self.stack:
            raise ValueError("it uses something on an empty stack")
        return self.stack[-1]

    def call(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        """Call ``Function`` of the table, never anything else: the one place where a pickle has something called."""
        if not isinstance(args, tuple) or not (kwargs is None or isinstance(kwargs, dict)):
            raise ValueError(
                f"{short_repr(function)} is called with {short_repr(args)}, {short_repr(kwargs)} as arguments"
            )
        if isinstance(function, Placeholder):
            return function.called(args, kwargs)
        if not isinstance(function, Function):
            raise ValueError(f"it calls {short_repr(function)}")
        if kwargs:
            raise ValueError(f"{function.name} is called with keyword arguments")
        if function.copies:
            self.copied += sum(len(arg) for arg in args if isinstance(arg, _SIZED))
            if self.copied > 2 * self.source.tell():
                raise ValueError("it copies more than it contains")
        return function.call(args)

    def find(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError(f"it names {short_repr(name)} of {short_repr(module)}")
        found = self.known.get((module, name))
        return Placeholder(module, name) if found is None else found

    # Literals and the stack

    def integer(self, value: int) -> None:
        if value.bit_length() > 8 * _INTEGER_BYTES:
            raise ValueError(f"{short_repr(value)} is too large")
        self.push(value)

    def text(self, value: str) -> None:
        """Push a str of Python 2, of which genops makes Latin-1: that stays, unless it is UTF-8."""
        try:
            self.push(value.encode("latin-1").decode("utf-8"))
        except UnicodeDecodeError:
            self.push(value)

    def protocol(self, version: int) -> None:
        if version > _PROTOCOL:
            raise ValueError(f"protocol {version}: known are 0 to {_PROTOCOL}")

    def mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def discard(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    # The memo: a dict, so that a huge index costs nothing

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"it recalls the object {short_repr(index)}, which it never stored")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        if index < 0:
            raise ValueError("it stores an object under a negative number")
        self.memo[index] = self.top()

    # Containers

    def make_tuple(self, size: int) -> None:
        items = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(items)))

    def put_dict(self, _: None) -> None:
        items = self.pop_mark()
        self.push({})
        self.set_items(items)

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Placeholder):
            target.items = target.items or []
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise ValueError(f"it appends to {short_repr(target)}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Placeholder):
            target.entries = target.entries or {}
            target = target.entries
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f"it sets {len(items)} keys and values in {short_repr(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def add_items(self, _: None) -> None:
        items = self.pop_mark()
        if isinstance(target := self.top(), set):
            target.update(checked_key(item) for item in items)
        elif isinstance(target, Placeholder):
            self.append(items)
        else:
            raise ValueError(f"it adds elements to {short_repr(target)}")

    # Names, calls, objects

    def put_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.push(self.find(module, name))

    def stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        self.push(self.find(module, name))

    def extension(self, code: int) -> None:
        """Push an inert value for a number that copyreg knew in the process that wrote the file."""
        self.push(Placeholder("copyreg.extension", str(code)))

    def reduce(self, _: None) -> None:
        args, function = self.pop(), self.pop()
        self.push(self.call(function, args))

    def new_object_ex(self, _: None) -> None:
        kwargs, args, function = self.pop(), self.pop(), self.pop()
        self.push(self.call(function, args, kwargs))

    def obj(self, _: None) -> None:
        items = self.pop_mark()
        if not items:
            raise ValueError("it makes an object of no class")
        self.push(self.call(items[0], tuple(items[1:])))

    def inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        items = self.pop_mark()
        self.push(self.call(self.find(module, name), tuple(items)))

    def build(self, _: None) -> None:
        """State is kept by placeholders. Here it is the attributes that a dict or tensor had as well: left out."""
        state = self.pop()
        if isinstance(target := self.top(), Placeholder):
            target.state = state

    def persistent_id(self, value: Any) -> None:
        self.push(self.persistent(value))


_METHODS: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), _Machine.integer),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Machine.text),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "PROTO": _Machine.protocol,
    "FRAME": lambda machine, _: None,  # a hint for buffering
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "DICT": _Machine.put_dict,
    "FROZENSET": lambda machine, _: machine.push(frozen_set((machine.pop_mark(),))),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "ADDITEMS": _Machine.add_items,
    "GLOBAL": _Machine.put_global,
    "STACK_GLOBAL": _Machine.stack_global,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "OBJ": _Machine.obj,
    "INST": _Machine.inst,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_id,
    "BINPERSID": lambda machine, _: machine.persistent_id(machine.pop()),
}


def _no_persistent_ids(value: Any) -> Any:
    raise ValueError(f"it refers to {short_repr(value)} outside of it")


def load(
    stream: BinaryIO,
    size: int,
    known: Mapping[tuple[str, str], Any] = PLAIN,
    persistent: Callable[[Any], Any] = _no_persistent_ids,
) -> tuple[Any, int]:
    """One pickle of a stream, which then stands behind it.

    Args:
        stream: at the pickle's first byte.
        size: the bytes that the pickle may have.
        known: what the names (module, name) stand for: a ``Function``, or a value that is used as it is. The table is
            not changed, but values that can be changed would be.
        persistent: is given the persistent ids, and returns what they stand for; ``ValueError`` is how it refuses.

    Returns:
        the object and the number of bytes read.

    Raises:
        PickleError: for whatever a file may contain.
        OSError: from the stream.
    """
    source = _Source(stream, size)
    return _Machine(source, known, persistent).run(), source.tell()


def loads(
    data: bytes,
    known: Mapping[tuple[str, str], Any] = PLAIN,
    persistent: Callable[[Any], Any] = _no_persistent_ids,
) -> Any:
    """``load`` for bytes that are one pickle and nothing else."""
    result, size = load(io.BytesIO(data), len(data), known, persistent)
    if size != len(data):
        raise PickleError(f"bad pickle: {len(data) - size} bytes follow its end at byte {size}")
    return result
