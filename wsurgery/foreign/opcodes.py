"""A pickle read by a machine that knows what a checkpoint needs, and runs nothing.

The opcodes are Python's (Lib/pickletools.py says what each does), without those that torch.save never writes: protocol 0's
text, instances of old classes, extensions, buffers out of band. Memory is counted as it is taken, and may grow only
with the bytes of the file; a key has a hash that costs little and that nobody can foresee.
"""

import struct
from collections.abc import Callable
from functools import partial
from mmap import mmap
from pickle import decode_long
from typing import Any

from wsurgery.checkpoint.header import MAX_HEADER
from wsurgery.errors import WsurgeryError

_FREE = 64 << 20  # bytes that any pickle may take
_A_BYTE = 40  # and for each of its bytes in the file: those of torch.save take 10 to 25
_AN_ENTRY = 100  # bytes in a dict or a set
_UNCOUNTED = 1000  # steps between two looks at what has been counted
_FEW = 64  # elements or bytes that are in what a step is said to take
_SHORT = 1 << 16  # bytes of a string that is taken into memory
_LONGEST = 512  # bytes of a number, or of the name of a module or a class
_KEY_ELEMENTS = 64  # in all, of a tuple that is a key
_KEY_NUMBER = (1 << 61) - 1  # from here on whole numbers have the same hash as smaller ones


class Ignored:
    """Stands for a class or function that is not known here, and for what it would have made: runs nothing.

    Attributes:
        name: of the class or function, with its module's.
        state: what an object's attributes were restored from, mostly a dict; None if they were not.
        entries: its items, of an object that is a mapping.
    """

    __slots__ = ("entries", "name", "state")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.state: Any = None
        self.entries: dict[Any, Any] | None = None

    def build(self, state: Any) -> None:
        """Keep what the attributes are to be restored from."""
        self.state = state


class Span:
    """A long string of bytes, or text, that stays in the file until it is needed.

    Args:
        data: the file, or the part of it, that holds the pickle.
        start: where it begins in `data`.
        size: its bytes there.
        is_text: whether it stands there as UTF-8, and what is meant are the bytes of Latin-1.
    """

    __slots__ = ("data", "is_text", "size", "start")

    def __init__(self, data: bytes | mmap, start: int, size: int, *, is_text: bool) -> None:
        self.data, self.start, self.size, self.is_text = data, start, size, is_text

    def read(self) -> bytearray:
        """Return the bytes."""
        found = self.data[self.start : self.start + self.size]
        return bytearray(found.decode().encode("latin1") if self.is_text else found)


class Unpickler:
    """Reads one pickle.

    Args:
        data: the file, or the part of it, that holds the pickle.
        start: where it begins in `data`.
        find_global: gives what stands for a module's and a name: a function; an `Ignored`; dict, list, set, frozenset
            or tuple, which are built here; or what cannot be called.
        find_persistent: gives what stands for a persistent identifier.
        share: how many bytes of the file a byte of `data` is: less than 1 if it was compressed.

    Attributes:
        position: after `load`, where the pickle ends.
    """

    __slots__ = (
        "a_byte", "data", "find_global", "find_persistent", "memo", "outer", "passed", "position", "spent", "stack",
        "start",
    )  # fmt: skip

    def __init__(
        self,
        data: bytes | mmap,
        start: int,
        find_global: Callable[[str, str], Any],
        find_persistent: Callable[[Any], Any],
        *,
        share: float = 1,
    ) -> None:
        self.data, self.start, self.position = data, start, start
        self.find_global, self.find_persistent = find_global, find_persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # what lies below each mark
        self.memo: dict[int, Any] = {}
        self.spent, self.a_byte = 0, _A_BYTE * share
        self.passed = 0  # bytes of the file that were left in it

    def load(self) -> Any:
        """Return what was pickled.

        Raises:
            WsurgeryError: it holds what no checkpoint does.
            Exception: it is damaged: nearly any.
        """
        data, steps = self.data, _STEPS
        while True:
            spent = 0
            for _ in range(_UNCOUNTED):
                code = data[self.position]
                self.position += 1
                if code == _STOP:
                    return self.stack.pop()
                try:
                    step, cost = steps[code]
                except KeyError:
                    what = f"has a pickle with the opcode {code:#x}, which torch.save does not write"
                    raise WsurgeryError(what) from None
                spent += cost
                step(self)
            self.spend(spent)

    def spend(self, n: int) -> None:
        """Count n bytes that are about to be taken."""
        self.spent += n
        read = self.position - self.start - self.passed
        if self.spent > _FREE + self.a_byte * read or read > MAX_HEADER:
            raise WsurgeryError("has a pickle that would take far more memory than tensors' descriptions do")

    def take(self, n: int) -> bytes:
        """Return the next n bytes."""
        first = self.position
        self.position += n
        if n < 0 or self.position > len(self.data):
            raise EOFError("a pickle ends early")
        taken: bytes = self.data[first : self.position]
        return taken

    def take_long(self, width: int, *, is_text: bool) -> bytes | Span:
        """Return as many bytes as the next `width` bytes say, or where they are."""
        n = int.from_bytes(self.take(width), "little")
        if n > _SHORT and self.a_byte == _A_BYTE:  # what was packed is in memory already
            first = self.position
            self.position += n
            if self.position > len(self.data):
                raise EOFError("a pickle ends early")
            self.passed += n
            return Span(self.data, first, n, is_text=is_text)
        if n > _FEW:
            self.spend(4 * n)  # as text, one such byte may take as many
        return self.take(n)

    def take_line(self) -> str:
        """Return the text up to the end of the line."""
        end = self.data.find(b"\n", self.position, self.position + _LONGEST)
        if end < 0:
            raise WsurgeryError(f"has a pickle with a name or a number of more than {_LONGEST} characters")
        return self.take(end + 1 - self.position)[:-1].decode()

    def take_marked(self) -> list[Any]:
        """Return what lies above the last mark, and take it off."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def call(self, function: Any, arguments: Any) -> Any:
        """Return what a thing that `find_global` gave makes of arguments."""
        if not isinstance(arguments, tuple):
            raise TypeError("arguments are no tuple")
        if len(arguments) > _FEW:
            self.spend(8 * len(arguments))
        if isinstance(function, Ignored):
            return Ignored(function.name)
        return self.container(function, *arguments) if isinstance(function, type) else function(*arguments)

    def container(self, kind: Any, content: Any = ()) -> Any:
        """Return a dict, list, set, frozenset or tuple of what one of them, or pairs, hold."""
        if not content and kind is dict:
            return {}
        if not isinstance(content, (dict, list, set, frozenset, tuple)):
            raise TypeError(f"a {kind.__name__} is made of a {type(content).__name__}")
        self.spend(_AN_ENTRY * len(content))
        if kind is dict:
            pairs = content.items() if isinstance(content, dict) else content
            return {as_key(key): value for key, value in pairs}
        return kind(map(as_key, content)) if issubclass(kind, (set, frozenset)) else kind(content)

    def set_items(self, target: Any, items: list[Any]) -> None:
        """Put keys and values, in turn, into a dict."""
        self.spend(_AN_ENTRY * len(items) // 2)
        if isinstance(target, dict):
            for i in range(0, len(items), 2):
                target[as_key(items[i])] = items[i + 1]
        elif isinstance(target, Ignored):
            target.entries = {} if target.entries is None else target.entries
            self.set_items(target.entries, items)
        else:
            raise TypeError(f"items of a {type(target).__name__}")


class _Tuple(tuple[Any, ...]):
    """A tuple that is a key: without the salt, numbers could be chosen that all have one hash."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash((_SALT, *self))


_SALT = object()


def as_key(value: Any) -> Any:
    """Return a value as a key of a dict or an element of a set.

    A tuple's hash is made of those of its elements each time: of a hundred tuples, each twice in the next, in no time
    that anybody has.

    Raises:
        WsurgeryError: no checkpoint has such a key.
    """
    return value if type(value) is str else _as_key(value, [_KEY_ELEMENTS])


def _as_key(value: Any, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] >= 0:
        if isinstance(value, (str, bytes, float)) or (isinstance(value, int) and abs(value) < _KEY_NUMBER):
            return value
        own: object = type(value).__hash__
        if value is None or own is object.__hash__:  # which is its place in memory
            return value
        if isinstance(value, tuple):
            return _Tuple(_as_key(element, left) for element in value)
    raise WsurgeryError(f"has a pickle with a key ({type(value).__name__}) that no checkpoint has")


def _append(machine: Unpickler) -> None:
    item = machine.stack.pop()
    _extend(machine.stack[-1], [item])


def _append_marked(machine: Unpickler) -> None:
    items = machine.take_marked()
    _extend(machine.stack[-1], items)


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target += items
    elif not isinstance(target, Ignored):
        raise TypeError(f"items of a {type(target).__name__}")


def _add_items(machine: Unpickler) -> None:
    items, target = machine.take_marked(), machine.stack[-1]
    machine.spend(_AN_ENTRY * len(items))
    if isinstance(target, set):
        target.update(map(as_key, items))
    elif not isinstance(target, Ignored):
        raise TypeError(f"elements of a {type(target).__name__}")


def _set_item(machine: Unpickler) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _set_items(machine: Unpickler) -> None:
    items = machine.take_marked()
    machine.set_items(machine.stack[-1], items)


def _mark(machine: Unpickler) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _pop(machine: Unpickler) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.take_marked()


def _tuple_of_one(machine: Unpickler) -> None:
    machine.stack[-1] = (machine.stack[-1],)


def _tuple_of_two(machine: Unpickler) -> None:
    machine.stack[-2:] = [(machine.stack[-2], machine.stack[-1])]


def _tuple_of_three(machine: Unpickler) -> None:
    machine.stack[-3:] = [(machine.stack[-3], machine.stack[-2], machine.stack[-1])]


def _global(machine: Unpickler) -> None:
    module, name = machine.take_line(), machine.take_line()
    machine.stack.append(machine.find_global(module, name))


def _stack_global(machine: Unpickler) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str) and len(name) + len(module) <= _LONGEST):
        raise TypeError("a module and a name are no short strings")
    machine.stack.append(machine.find_global(module, name))


def _call(machine: Unpickler) -> None:
    arguments = machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], arguments)


def _call_with_keywords(machine: Unpickler) -> None:
    keywords = machine.stack.pop()
    if keywords and not isinstance(machine.stack[-2], Ignored):
        raise TypeError("keywords")
    _call(machine)


def _build(machine: Unpickler) -> None:
    # Setting attributes on whatever else is on the stack would be a risk.
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Ignored):
        target.build(state)


def _persistent(machine: Unpickler) -> None:
    machine.stack[-1] = machine.find_persistent(machine.stack[-1])


def _push(value: Callable[[Unpickler], Any]) -> Callable[[Unpickler], None]:
    def step(machine: Unpickler) -> None:
        pushed = value(machine)
        machine.stack.append(pushed)  # what took a mark off has changed the stack

    return step


def _get(machine: Unpickler) -> None:
    machine.stack.append(machine.memo[machine.data[machine.position]])
    machine.position += 1


def _get_long(machine: Unpickler) -> None:
    (index,) = _four_bytes(machine.data, machine.position)
    machine.stack.append(machine.memo[index])
    machine.position += 4


def _put(machine: Unpickler) -> None:
    machine.memo[machine.data[machine.position]] = machine.stack[-1]
    machine.position += 1


def _put_long(machine: Unpickler) -> None:
    (index,) = _four_bytes(machine.data, machine.position)
    machine.memo[index] = machine.stack[-1]
    machine.position += 4


def _memoize(machine: Unpickler) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _byte(machine: Unpickler) -> None:
    machine.stack.append(machine.data[machine.position])
    machine.position += 1


def _string(width: int, kind: Callable[[bytes], object], *, is_text: bool = False) -> Callable[[Unpickler], None]:
    def step(machine: Unpickler) -> None:
        taken = machine.take_long(width, is_text=is_text)
        machine.stack.append(taken if isinstance(taken, Span) else kind(taken))

    return step


_text = partial(str, encoding="utf-8", errors="surrogatepass")
_latin = partial(str, encoding="latin1")  # what Python 2 wrote as bytes


def _long(width: int) -> Callable[[Unpickler], None]:
    def value(machine: Unpickler) -> int:
        if (n := int.from_bytes(machine.take(width), "little")) > _LONGEST:
            raise WsurgeryError(f"has a pickle with a number of {n} bytes")
        return decode_long(machine.take(n))

    return _push(value)


def _int_line(machine: Unpickler) -> int | bool:
    text = machine.take_line()
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L"))


_four_bytes = struct.Struct("<I").unpack_from
_STOP = ord(".")
# Opcode → what it does, and the bytes that it takes without what it reads: a pointer on the stack, and the object.
_STEPS: dict[int, tuple[Callable[[Unpickler], object], int]] = {
    ord(code): (step, cost)
    for code, step, cost in (
        ("\x80", lambda machine: machine.take(1), 8),  # PROTO
        ("\x95", lambda machine: machine.take(8), 8),  # FRAME: what is in memory needs none
        ("(", _mark, 72),
        ("0", _pop, 8),
        ("1", Unpickler.take_marked, 8),  # POP_MARK
        ("2", _push(lambda machine: machine.stack[-1]), 8),  # DUP
        ("N", lambda machine: machine.stack.append(None), 8),
        ("\x88", lambda machine: machine.stack.append(True), 8),
        ("\x89", lambda machine: machine.stack.append(False), 8),
        ("I", _push(_int_line), 40),
        ("L", _push(_int_line), 40),
        ("J", _push(lambda machine: int.from_bytes(machine.take(4), "little", signed=True)), 40),
        ("K", _byte, 8),  # BININT1
        ("M", _push(lambda machine: int.from_bytes(machine.take(2), "little")), 40),  # BININT2
        ("\x8a", _long(1), 40),
        ("\x8b", _long(4), 40),
        ("G", _push(lambda machine: struct.unpack(">d", machine.take(8))[0]), 32),  # BINFLOAT
        ("T", _string(4, _latin), 64),  # BINSTRING
        ("U", _string(1, _latin), 64),
        ("X", _string(4, _text, is_text=True), 64),  # BINUNICODE
        ("\x8c", _string(1, _text, is_text=True), 64),
        ("\x8d", _string(8, _text, is_text=True), 64),
        ("B", _string(4, bytes), 48),  # BINBYTES
        ("C", _string(1, bytes), 48),
        ("\x8e", _string(8, bytes), 48),
        ("\x96", _string(8, bytearray), 64),  # BYTEARRAY8
        (")", lambda machine: machine.stack.append(()), 8),
        ("t", _push(lambda machine: tuple(machine.take_marked())), 64),
        ("\x85", _tuple_of_one, 64),
        ("\x86", _tuple_of_two, 64),
        ("\x87", _tuple_of_three, 72),
        ("]", lambda machine: machine.stack.append([]), 64),
        ("a", _append, 16),
        ("e", _append_marked, 16),
        ("}", lambda machine: machine.stack.append({}), 72),
        ("s", _set_item, 8),
        ("u", _set_items, 8),
        ("\x8f", lambda machine: machine.stack.append(set()), 224),
        ("\x90", _add_items, 8),
        ("\x91", _push(lambda machine: machine.container(frozenset, machine.take_marked())), 224),
        ("c", _global, 8),
        ("\x93", _stack_global, 8),
        ("R", _call, 240),
        ("\x81", _call, 240),  # NEWOBJ
        ("\x92", _call_with_keywords, 240),  # NEWOBJ_EX
        ("b", _build, 8),
        ("Q", _persistent, 160),  # BINPERSID
        ("h", _get, 8),  # BINGET
        ("j", _get_long, 8),
        ("q", _put, 120),  # BINPUT
        ("r", _put_long, 120),
        ("\x94", _memoize, 120),
    )
}
