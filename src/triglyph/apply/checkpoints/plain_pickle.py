"""A pickle read as data: nothing that it names is imported, looked up or called.

Python's unpickler calls whatever a file names. This is a machine of its own for the opcodes that `torch.save` writes
(those of protocol 2 that torch's own restricted loader knows); every other opcode is refused. It can build
dictionaries, lists, tuples, strings and numbers; a tensor becomes a `StoredTensor`, which says where its bytes lie and
reads none of them; an instance of an allowed class becomes a `Record` of its fields. A name stays a name: `Global` is
two strings.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Class of a storage in `torch` -> type of its numbers."""
_KNOWN = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", name) for name in (*STORAGES, *STORAGES.values())),
}
"""What a file may name beside its records; what calling the first three gives is written out in `_call`."""
_MOST_AXES = 8


class Refused(Exception):
    """The pickle is damaged, or holds something that is not data; says which, in one line."""


class Global(NamedTuple):
    """What a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        # A name comes from the file: no control character of it reaches a terminal, and no page of it an error.
        return ascii(f"{self.module}.{self.name}")[1:-1][:80]


class Storage(NamedTuple):
    """Bytes beside the pickle."""

    dtype: str
    key: str
    numel: int


class StoredTensor(NamedTuple):
    """A tensor whose bytes were not read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Record:
    """An instance of an allowed class: its name and its fields, and nothing of its code."""

    kind: Global
    fields: dict[str, Any] = field(default_factory=dict)


def read_pickle(data: bytes, *, records: re.Pattern[str]) -> Any:
    """The value of a pickle.

    Parameters
    ----------
    data
        All of it.
    records
        Matches `module.Class`, whole, of the classes that become a `Record`.

    Raises
    ------
    Refused
        It is damaged, or names or does anything but the above.
    """
    machine = _Machine(records)
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.result(at_end=position == len(data) - 1)
            machine.step(opcode.name, argument)
    except (ValueError, LookupError) as error:
        # Of `genops` on bytes that are no pickle, of an empty stack, or of a memo that holds no such number.
        raise Refused(f"the pickle is damaged ({ascii(str(error))[1:-1][:80]})") from None
    raise Refused("the pickle is damaged (it does not end)")


class _Machine:
    def __init__(self, records: re.Pattern[str]) -> None:
        self.records = records
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def result(self, *, at_end: bool) -> Any:
        value = self.stack.pop()
        if self.stack or self.marks or not at_end:
            raise Refused("the pickle is damaged (something is left over)")
        return value

    def step(self, opcode: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match opcode:
            case "PROTO":
                if argument != 2:
                    raise Refused(f"a pickle of protocol {argument}, where torch.save writes 2")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                push(argument)
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(opcode == "NEWTRUE")
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                push(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([pop() for _ in range(int(opcode[-1]))])))
            case "APPEND" | "APPENDS":
                values = [pop()] if opcode == "APPEND" else self._since_mark()
                self._top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                items = [pop(), pop()][::-1] if opcode == "SETITEM" else self._since_mark()
                self._set_items(self._top(dict), items)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(self._named(argument))
            case "REDUCE":
                arguments, called = pop(), pop()
                push(_call(called, arguments))
            case "NEWOBJ":
                arguments, kind = pop(), pop()
                push(self._new(kind, arguments))
            case "BUILD":
                state = pop()
                _build(self.stack[-1], state)
            case "BINPERSID":
                push(_storage(pop()))
            case _:
                raise Refused(f"the pickle holds the opcode {opcode}, which torch.save does not write")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        if start > len(self.stack):
            raise Refused("the pickle is damaged (a mark above the stack)")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f"the pickle fills {_said(self.stack[-1])} as if it were a {kind.__name__}")
        return self.stack[-1]

    def _set_items(self, target: dict[Any, Any], items: list[Any]) -> None:
        if len(items) % 2:
            raise Refused("the pickle is damaged (a key without a value)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | None):
                raise Refused(f"a dictionary with {_said(key)} as a key")
            target[key] = value

    def _named(self, argument: str) -> Global:
        found = Global(*argument.split(" ", 1))
        if found not in _KNOWN and not self._is_record(found):
            raise Refused(f"the pickle names {found}, which is neither a tensor nor a configuration")
        return found

    def _is_record(self, value: Any) -> bool:
        return isinstance(value, Global) and self.records.fullmatch(f"{value.module}.{value.name}") is not None

    def _new(self, kind: Any, arguments: Any) -> Record:
        if not self._is_record(kind) or arguments != ():
            raise Refused(f"the pickle makes an instance of {_said(kind)}")
        return Record(kind)


def _call(called: Any, arguments: Any) -> Any:
    match called, arguments:
        case Global("collections", "OrderedDict"), ():
            return {}
        case Global("torch._utils", "_rebuild_tensor_v2"), (Storage(), _, tuple(), tuple(), bool(), hooks, *more):
            storage, offset, shape, stride = arguments[:4]
            axes = (*shape, *stride)
            if hooks != {} or more not in ([], [None]):
                raise Refused("a tensor with hooks or metadata")
            if not (len(shape) == len(stride) <= _MOST_AXES and all(map(_is_size, (offset, *axes)))):
                raise Refused("a tensor of an impossible shape")
            return StoredTensor(storage, offset, shape, stride)
        case Global("torch._utils", "_rebuild_parameter"), (StoredTensor(), bool(), hooks) if hooks == {}:
            return arguments[0]
    raise Refused(f"the pickle calls {_said(called)} in a way that makes no tensor")


def _build(target: Any, state: Any) -> None:
    fields = state if isinstance(state, dict) else None
    if isinstance(target, Record) and fields is not None and all(isinstance(key, str) for key in fields):
        target.fields.update(fields)
    # A module's state dict carries its version numbers as an attribute.
    elif not (type(target) is dict and fields is not None and set(fields) <= {"_metadata"}):
        raise Refused(f"the pickle sets attributes of {_said(target)}")


def _storage(named: Any) -> Storage:
    match named:
        case ("storage", Global("torch", name), str(key), str(), numel) if (
            name in STORAGES and re.fullmatch(r"\d{1,9}", key, re.ASCII) and _is_size(numel)
        ):
            return Storage(STORAGES[name], key, numel)
    raise Refused(f"a persistent id that is no storage: {_said(named)}")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**40


def _said(value: Any) -> str:
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"
