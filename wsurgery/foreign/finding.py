"""Where in a saved file the weights are."""

from collections.abc import Iterator, Mapping
from typing import Any

from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.foreign.opcodes import Ignored
from wsurgery.foreign.pickles import Array
from wsurgery.foreign.stored import StoredTensor, Unheld

Found = StoredTensor | Unheld

# Names under which training scripts save the weights beside other things, in the order in which they are taken.
WRAPPERS = (
    "state_dict", "model", "model_state_dict", "model_ema", "ema", "state_dict_ema", "teacher", "student", "net",
    "network", "module", "params", "backbone", "online_network", "online_network_state_dict", "classy_state_dict",
    "base_model", "trunk",
)  # fmt: skip
_DEPTH = 6  # wrappers in wrappers, and modules in modules, that are looked into
_LONGEST_NAME = 200  # characters of a model's
_MOST_MODULES, _DEEPEST_MODULE = 100_000, 64  # of a pickled network, whose modules may stand in one another
# How torch makes of what safetensors cannot hold what it can.
_REMEDIES = {
    "sparse": ".to_dense()", "complex128": ".to(torch.complex64)", "complex32": ".to(torch.complex64)",
    **dict.fromkeys(("qint8", "quint8", "qint32", "quint4x2", "quint2x4"), ".dequantize()"),
}  # fmt: skip


def find_tensors(content: Any, key: str | None = None) -> tuple[dict[str, StoredTensor], list[str]]:
    """Find the state dict in what was saved.

    Args:
        content: nested dicts, and objects, with a `StoredTensor` for each tensor. Arrays count where there is no tensor:
            beside tensors they are of the bookkeeping.
        key: the entry to look in, `a.b.c` for one in others; its last parts may be what names begin with. Default: the
            first of `WRAPPERS`, or the only one.

    Returns:
        Name → tensor in file order; and what was chosen and left out, in words.

    Raises:
        WsurgeryError: there is none.
        UsageError: there are several under names that are not known, or deeper ones only, or none under `key`.
    """
    try:
        found = _Search(arrays=False).find(content, key)
    except WsurgeryError as error:
        if key is None and isinstance(error, UsageError):
            raise
        try:
            return _Search(arrays=True).find(content, key)
        except WsurgeryError:
            raise error from None
    if key is None and not _are_large(found[0]):  # bookkeeping, maybe, beside a network of arrays
        return _Search(arrays=True).find(content, None)
    return found


def architecture_said(content: Any) -> list[str]:
    """Return what a trainer's entries `arch`, `args.arch` and `args.model` say the network is, timm's among others."""
    entries = content if isinstance(content, dict) else {}
    args = entries.get("args")
    state = args.state if isinstance(args, Ignored) else args
    state = state if isinstance(state, dict) else {}
    said = (entries.get("arch"), state.get("model"), state.get("arch"))
    return list(dict.fromkeys(name for name in said if isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME))


class _Search:
    """A search for tensors, or for arrays as well."""

    def __init__(self, *, arrays: bool) -> None:
        self._arrays = arrays
        self._sizes: dict[int, int] = {}  # of what has been looked at, by `id`

    def find(self, content: Any, key: str | None) -> tuple[dict[str, StoredTensor], list[str]]:
        notes: list[str] = []
        if key is not None:
            content = self._entry(content, key)
            notes.append(f"took {printable(key)}")
        for _ in range(_DEPTH + 1):
            pickled = isinstance(content, Ignored)
            entries = _entries(content)
            inner, direct = self._without_bookkeeping(entries)
            chosen = next((name for name in WRAPPERS if name in inner), None)
            if chosen is None and inner and not any(isinstance(name, str) and "." in name for name in direct):
                if direct or len(inner) > 1:
                    what = f"tensors ({_listed(list(map(str, direct)))}) and" if direct else "several"
                    raise UsageError(f"holds {what} dicts of tensors: choose with --key, one of {_listed(inner)}")
                chosen = inner[0]
            if chosen is None:
                if not _are_large(direct) and (deeper := self._deeper(entries, large=bool(direct))):
                    raise UsageError(
                        f"holds its tensors in dicts of dicts: choose with --key, one of {_listed(deeper)}"
                    )
                if not direct:
                    break
                if pickled:
                    notes.append("took the tensors of a pickled object, whose code was not run")
                if inner:
                    notes.append(f"--key takes another: {_listed(inner)}")
                taken = direct.keys() | set(inner)
                left_out = [name for name in entries if isinstance(name, str) and name not in taken]
                if left_out:
                    notes.append(f"left out what is not a tensor: {_listed(left_out)}")
                unheld = list(_unheld(direct))
                held = {name: found for name, found in direct.items() if isinstance(found, StoredTensor)}
                if not held:
                    raise WsurgeryError(f"holds no tensor that can be kept: {unheld[0]}")
                return {checked_name(name): stored for name, stored in held.items()}, notes + unheld
            others = [name for name in inner if name != chosen]
            said = f"took {printable(chosen)}" + (f"; --key takes another: {_listed(others)}" if others else "")
            if said != f"took {printable(key or '')}":
                notes.append(said)
            content, key = entries[chosen], None
        raise WsurgeryError("holds no dict of tensors: save the model's state_dict() with torch.save")

    def _entry(self, content: Any, key: str, depth: int = 0) -> Any:
        """Return what stands under a key, `a.b.c` for an entry of an entry, or the tensors whose names begin so.

        Where nothing does, the key is looked for in the wrapper that is taken without one.

        Raises:
            UsageError: nothing does.
        """
        entries = _entries(content)
        if self._holds(entries.get(key)):
            return entries[key]
        for i in (i for i, character in enumerate(key) if character == "."):
            if self._holds(entries.get(key[:i]), anywhere=True):
                return self._entry(entries[key[:i]], key[i + 1 :])
        tensors = self._tensors(entries)
        begin = f"{key}."
        named = {name: tensor for name, tensor in tensors.items() if isinstance(name, str) and name.startswith(begin)}
        if named:
            return {name[len(begin) :]: tensor for name, tensor in named.items()}
        inner = self._inner(entries)
        wrapper = next((name for name in WRAPPERS if name in inner), None)
        if wrapper is not None and depth < _DEPTH:
            try:
                return self._entry(entries[wrapper], key, depth + 1)
            except UsageError:
                inner += [f"{wrapper}.{name}" for name in self._beginnings(entries[wrapper])]
        inner = inner or self._deeper(entries) or self._beginnings(entries)
        raise UsageError(f"has no dict of tensors under {printable(key)!r}: {_listed(inner) or 'there is none'}")

    def _beginnings(self, content: Any) -> list[str]:
        """What `--key` may say in a wrapper: its dicts of tensors, or else what the names in it begin with."""
        entries = _entries(content)
        return self._inner(entries) or sorted({str(name).partition(".")[0] for name in self._tensors(entries)})

    def _deeper(self, entries: Mapping[Any, Any], *, large: bool = False) -> list[str]:
        """The dicts of tensors in others, as `--key` names them; `large`: without those of single numbers."""
        found: list[str] = []
        seen: set[int] = set()
        level: list[tuple[str, Any]] = [("", entries)]
        for _ in range(_DEPTH):
            inside = [
                (f"{path}.{name}" if path else name, inner)
                for path, value in level
                for name, inner in _entries(value).items()
                if isinstance(name, str) and isinstance(inner, (dict, Ignored))
            ]
            level = list({id(inner): (path, inner) for path, inner in inside if id(inner) not in seen}.values())
            seen |= {id(inner) for _, inner in level}
            found += [path for path, inner in level if self._size(inner) > large]
        return found

    def _without_bookkeeping(self, entries: Mapping[Any, Any]) -> tuple[list[str], dict[Any, Found]]:
        """The dicts of tensors in a dict, and the tensors; without those of single numbers (a best accuracy) beside others."""
        inner, direct = self._inner(entries), self._tensors(entries)
        large = [name for name in inner if self._holds(entries[name], large=True)]
        if _are_large(direct):
            return large, direct
        return (large, {}) if large else (inner, direct)

    def _inner(self, entries: Mapping[Any, Any]) -> list[str]:
        return [name for name, value in entries.items() if isinstance(name, str) and self._holds(value)]

    def _size(self, value: Any) -> int:
        """2 if there are tensors in it itself, 1 if only single numbers, else 0."""
        if id(value) not in self._sizes:
            tensors = self._tensors(_entries(value))
            self._sizes[id(value)] = bool(tensors) + _are_large(tensors)
        return self._sizes[id(value)]

    def _holds(self, value: Any, *, anywhere: bool = False, large: bool = False) -> bool:
        """Whether there are tensors in it, or in a wrapper in it; or in whatever is in it."""
        seen: set[int] = set()
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if id(one) in seen or not isinstance(one, (dict, Ignored)):
                continue
            seen.add(id(one))
            if self._size(one) > large:
                return True
            held = one if isinstance(one, dict) else one.entries or {}
            waiting += held.values() if anywhere else [held[name] for name in WRAPPERS if name in held]
        return False

    def _tensors(self, entries: Mapping[Any, Any]) -> dict[Any, Found]:
        direct: dict[Any, Found] = {name: value for name, value in entries.items() if isinstance(value, Found)}
        if direct or not self._arrays:
            return direct
        arrays = {name: value.tensor for name, value in entries.items() if isinstance(value, Array)}
        return {name: tensor for name, tensor in arrays.items() if tensor is not None}


def _are_large(tensors: Mapping[Any, Found]) -> bool:
    """Whether one of them is more than a single number."""
    return any(isinstance(tensor, Unheld) or any(size != 1 for size in tensor.shape) for tensor in tensors.values())


def _unheld(tensors: Mapping[Any, Found]) -> Iterator[str]:
    """Say which tensors cannot be kept, a line for each kind, and how they could."""
    kinds: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Unheld):
            kinds.setdefault(tensor.name, []).append(str(name))
    for kind, names in kinds.items():
        remedy = f"with {_REMEDIES[kind]}" if kind in _REMEDIES else "as a plain one"
        yield f"left out {_listed(names)} ({printable(kind)}), which safetensors cannot hold: save it again, {remedy}"


def _entries(content: Any) -> dict[Any, Any]:
    """Return the entries of a dict, of an object that is a mapping, or the tensors of a pickled network."""
    if isinstance(content, dict):
        return content
    return (content.entries or _of_module(content)) if isinstance(content, Ignored) else {}


def _of_module(module: Ignored) -> dict[Any, Any]:
    """Give the parameters and buffers of a pickled nn.Module the names that its state_dict() has; {} if it is none."""
    found: dict[Any, Any] = {}
    waiting: list[tuple[str, Any, int]] = [("", module, 0)]
    for _ in range(_MOST_MODULES):
        if not waiting:
            break
        prefix, one, depth = waiting.pop()
        state = one.state if isinstance(one, Ignored) else None
        if not isinstance(state, dict) or "_parameters" not in state or depth > _DEEPEST_MODULE:
            continue
        parts = [state.get(part) for part in ("_parameters", "_buffers", "_modules")]
        parameters, buffers, modules = (part if isinstance(part, dict) else {} for part in parts)
        passing = state.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set) else set()
        own = {**parameters, **{name: value for name, value in buffers.items() if name not in passing}}
        found |= {f"{prefix}{name}": value for name, value in own.items() if isinstance(value, Found)}
        waiting += [(f"{prefix}{name}.", inner, depth + 1) for name, inner in reversed(modules.items())]
    return found


def checked_name(name: Any) -> str:
    """Return a tensor's name if a header can have it.

    Raises:
        WsurgeryError: it is no string, no Unicode, or taken.
    """
    if not isinstance(name, str):
        raise WsurgeryError(f"has a tensor whose name is not a string but {type(name).__name__}: is it a state dict?")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise WsurgeryError(f"has a tensor name that is not valid Unicode: {printable(name)}") from None
    if name == "__metadata__":
        raise WsurgeryError("has a tensor named __metadata__, which safetensors keeps for itself")
    return name


def _listed(names: list[str]) -> str:
    return printable(", ".join(names[:20]))
