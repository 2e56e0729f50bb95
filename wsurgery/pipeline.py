"""The same edits in Python: `wsurgery.open("a.safetensors").meanvar(seed=7).write("b.safetensors")`.

Every edit is a method with the command's names and defaults, and `write` gives the bytes of the shell pipe. Headers are all
that is read before `write`, `state_dict`, `tensors` or `load`; then every source is read once, however many edits there are.
"""

import builtins
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsurgery.anatomy import MAX_BLOCK_MAP, Selection, parse_block_map
from wsurgery.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from wsurgery.checkpoint.dtypes import dtype_name
from wsurgery.checkpoint.provenance import History, as_pipeline
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.declaration import Edit, Parameter
from wsurgery.operations.planning import Made, Planned, in_turn, plan
from wsurgery.registry import command_modules, edits, find_edit, plug_ins
from wsurgery.untrusted import read_regular

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from wsurgery.models.own import Model

_SELECTORS = {field.name: None for field in fields(Selection) if field.name != "aliases"}


class Pipeline:
    """A checkpoint, and the edits that are to be made to it. It is not changed: each edit gives a new one.

    `print` shows it as the shell pipeline that does the same.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getattr__(self, name: str) -> Callable[..., "Pipeline"]:
        edit = None if name.startswith("_") else _find(name)
        if edit is None or edit.flows is None:
            raise AttributeError(f"wsurgery has no edit {name!r}")
        return _callable(edit, self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name.replace("-", "_") for name, edit in edits().items() if edit.flows)]

    def __repr__(self) -> str:
        log = History.of(self._checkpoint).log if isinstance(self._checkpoint, Planned) else ()
        return as_pipeline(log) if log else self._checkpoint.label

    def _repr_html_(self) -> str:
        from wsurgery.figures.notebook import checkpoint_html

        return checkpoint_html(self._checkpoint)

    @property
    def names(self) -> list[str]:
        """The tensors' names, in order."""
        return list(self._checkpoint.tensors)

    def write(
        self,
        path: str | Path,
        *,
        force: bool = False,
        threads: int | None = None,
        shard_size: int | str | None = None,
        part: str | None = None,
    ) -> Path | str:
        """Write a file, an object (s3://), or with a name that ends in `/` a folder of shards; each appears whole or not at all.

        Args:
            path: where to.
            force: whether what is there is replaced.
            threads: default all cores; they do not change the result.
            shard_size: bytes a shard: a number, or as `5GB`.
            part: `K/N` writes the K-th of N groups of shards only.

        Returns:
            The path.

        Raises:
            UsageError: it exists, and `force` is off.
            WsurgeryError: an input is damaged, or an edit cannot work on a tensor; the message names it.
        """
        from wsurgery.operations.rewrite import destination, rewrite

        with self._opened() as planned:
            target = destination(str(path), shard_size, part, like=planned.flows)
            said = rewrite(planned, target, force=force, threads=threads)
            for line in (*said, *planned.warnings()):
                warnings.warn(line, stacklevel=2)
        return path if "://" in str(path) else Path(path)

    def tensors(self, *, threads: int | None = None) -> "Iterator[tuple[str, np.ndarray[Any, Any]]]":
        """Yield each tensor's name and array, in order and in its own dtype, with a few of them in memory."""
        from wsurgery.operations.rewrite import arrays

        with self._opened() as planned:
            yield from arrays(planned, threads)

    def state_dict(self, *, torch: bool = False, threads: int | None = None) -> dict[str, Any]:
        """Return all tensors by name: numpy arrays (ml_dtypes' types for bfloat16 and float8), or torch tensors."""
        state = dict(self.tensors(threads=threads))
        if not torch:
            return state
        from wsurgery.models.load import as_tensors

        return as_tensors(state)

    def load(self, arch: str | None = None, *, model: "Model | None" = None) -> "nn.Module":
        """Return the network with these weights, in eval mode; see `wsurgery.models.load`."""
        from wsurgery.models.load import load_checkpoint

        with self._opened() as planned:
            return load_checkpoint(planned, arch, model=model)

    def load_into(self, model: "nn.Module") -> "nn.Module":
        """Copy the tensors into a network of exactly the same names and shapes, and return it."""
        from wsurgery.models.load import load_into

        with self._opened() as planned:
            load_into(model, planned)
        return model

    @contextmanager
    def _opened(self) -> Iterator[Planned]:
        checkpoint = self._checkpoint
        checkpoint.reopen()
        try:
            yield checkpoint if isinstance(checkpoint, Planned) else _unchanged(checkpoint)
        finally:
            checkpoint.rest()


def open(source: Any) -> Pipeline:
    """Open a checkpoint: what the commands take as `IN`, a state dict of numpy arrays or torch tensors, or an `nn.Module`.

    Raises:
        WsurgeryError: it is no checkpoint, or a damaged one.
        OSError: it cannot be opened.
    """
    return source if isinstance(source, Pipeline) else Pipeline(_as_checkpoint(source))


def function(name: str) -> Callable[..., Pipeline] | None:
    """Return an edit as a function: of those that begin with no checkpoint, or with several; None where there is none."""
    edit = _find(name)
    return _callable(edit, None) if edit and is_function(edit) else None


def _find(name: str) -> Edit | None:
    """Find an edit by its name in Python: a plug-in's command may have underscores of its own."""
    dashed = name.replace("_", "-")
    known = (
        each for names in (command_modules, plug_ins) for each in sorted(names()) if each.replace("_", "-") == dashed
    )
    return find_edit(next(known, dashed))


def functions() -> list[str]:
    """Name wsurgery's own edits that are functions."""
    return [name.replace("-", "_") for name, edit in edits().items() if is_function(edit)]


def is_function(edit: Edit) -> bool:
    """Whether it stands for itself in Python, too, and not only as a method."""
    return edit.flows is None or edit.parameters[edit.flows].declared


def signature(edit: Edit, *, method: bool) -> inspect.Signature:
    """Return how an edit is called in Python, without `self`.

    Args:
        edit: the edit.
        method: whether the checkpoint that flows through is `self`.
    """
    found: list[inspect.Parameter] = []

    def add(name: str, kind: Any, default: Any, annotation: Any) -> None:
        found.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

    own = inspect.signature(edit.function).parameters
    for name, parameter in edit.parameters.items():
        flows = method and name == edit.flows
        if parameter.is_many and parameter.is_checkpoint:
            add("others" if flows else name, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.empty, Any)
        elif not flows:
            keyword = name not in own or own[name].kind is inspect.Parameter.KEYWORD_ONLY
            kind = inspect.Parameter.KEYWORD_ONLY if keyword else inspect.Parameter.POSITIONAL_OR_KEYWORD
            add(name, kind, parameter.default, Any if parameter.is_input else parameter.hint)
    if edit.draws:
        add("seed", inspect.Parameter.KEYWORD_ONLY, 0, int)
    if edit.takes_part:
        for selector in _SELECTORS:
            add(selector, inspect.Parameter.KEYWORD_ONLY, None, Any)
    found.sort(key=lambda parameter: parameter.kind)
    return inspect.Signature(found)


def _callable(edit: Edit, flows: Pipeline | None) -> Callable[..., Pipeline]:
    bound_to = signature(edit, method=flows is not None)

    def call(*positional: Any, **named: Any) -> Pipeline:
        bound = bound_to.bind(*positional, **named)
        bound.apply_defaults()
        given = bound.arguments
        inputs = {parameter.name: _input(parameter, edit, given, flows) for parameter in edit.inputs}
        known = in_turn(edit, inputs)
        with ExitStack() as opened:
            for each in known:
                each.reopen()  # some edits read what they decide by
                opened.callback(each.rest)
            planned = plan(
                edit,
                inputs,
                {name: given[name] for name in edit.options},
                selection=_selection({name: given.get(name) for name in _SELECTORS}),
                seed=given.get("seed", 0),
            )
        for each in planned.inputs:
            if each not in known:  # the edit opened it itself
                each.rest()
        return Pipeline(planned)

    call.__name__ = call.__qualname__ = edit.name.replace("-", "_")
    call.__doc__ = edit.__doc__
    call.__signature__ = bound_to  # type: ignore[attr-defined]
    return call


def _input(parameter: Parameter, edit: Edit, given: Mapping[str, Any], flows: Pipeline | None) -> Any:
    """Return what an edit gets for a checkpoint parameter; for a file that it opens itself, the name."""
    is_self = flows is not None and parameter.name == edit.flows
    if parameter.is_many:
        own = [flows, *given["others"]] if is_self else given[parameter.name]
        return [_as_checkpoint(each) for each in own]
    value = flows if is_self else given[parameter.name]
    if value is None or not parameter.is_checkpoint:
        return value
    return _as_checkpoint(value)


def _as_checkpoint(source: Any) -> Checkpoint:
    """Open a checkpoint and close its file again: it is opened when it is read."""
    if isinstance(source, Pipeline):
        return source._checkpoint
    if isinstance(source, (str, Path)):
        checkpoint = open_checkpoint(source)
        checkpoint.rest()
        return checkpoint
    state = source.state_dict() if hasattr(source, "state_dict") else source
    if not isinstance(state, Mapping):
        raise UsageError(f"a {type(source).__name__} is no checkpoint: give a path, a state dict or a network")
    from wsurgery.operations.names import can_be_held

    for name in state:
        if not (isinstance(name, str) and can_be_held(name)):
            raise UsageError(f"a state dict: {name!r} is no name of a tensor")
    if any(type(value).__module__.partition(".")[0] == "torch" for value in state.values()):
        from wsurgery.models import as_checkpoint

        return as_checkpoint(state, "a state dict")
    return _of_arrays(state)


def _of_arrays(state: Mapping[str, Any]) -> Made:
    import numpy as np

    held = {name: np.asarray(value, order="C") for name, value in state.items()}
    held = {name: value.astype(value.dtype.newbyteorder("<"), copy=False) for name, value in held.items()}
    tensors = []
    for name, x in held.items():
        try:
            tensors.append(TensorInfo(name, dtype_name(x.dtype), x.shape, 0, 0).placed(0))
        except TypeError as error:
            raise WsurgeryError(f"a state dict: {printable(name)}: {error}: convert it, or leave it out") from None
    return Made(
        "a state dict", tensors, lambda tensor: held[tensor.name].reshape(-1).view(np.uint8).data, {"format": "pt"}
    )


def _unchanged(checkpoint: Checkpoint) -> Planned:
    from wsurgery.operations.tensor_edit import copies

    history = History.of(checkpoint)
    return Planned(checkpoint.label, copies(checkpoint), history, [checkpoint], flows=checkpoint)


def _selection(given: Mapping[str, Any]) -> Selection:
    """Return the selectors as a command line gives them: several words may be a list, a block map a dict or a file."""

    def listed(name: str) -> tuple[str, ...]:
        value = given[name]
        return () if value is None else (value,) if isinstance(value, str) else tuple(map(str, value))

    if given["only"] is not None and not listed("only"):
        raise UsageError("only is empty: say which, or leave it out for all")
    blocks, role = (None if given[name] is None else ",".join(listed(name)) for name in ("blocks", "role"))
    block_map = given["block_map"]
    if isinstance(block_map, (str, Path)):
        block_map = parse_block_map(read_regular(block_map, MAX_BLOCK_MAP))
    elif block_map is not None:
        block_map = {
            block: [globs] if isinstance(globs, str) else builtins.list(globs) for block, globs in block_map.items()
        }
    return Selection(given["upto"], blocks, role, listed("only"), listed("except_"), block_map)
