"""From a declared edit to its subcommand."""

import contextlib
import inspect
import io
import json as json_module
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from wsurgery.anatomy import Selection
from wsurgery.commands._shared import Input, Json, Part, Seed, SurgeryOutput, command, foretell, write_surgery
from wsurgery.cores import asked_cores
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.operations.declaration import Edit, Parameter

if TYPE_CHECKING:
    from wsurgery.checkpoint import Checkpoint

_SOURCE = "source"  # the checkpoint of an edit that names none by itself


def as_command(edit: Edit) -> Callable[..., None]:
    """Return the function of which typer makes the edit's subcommand."""

    def run(
        *, output: SurgeryOutput, part: Part | None = None, seed: int = 0, json: bool = False, **given: Any
    ) -> None:
        from wsurgery.operations.planning import plan

        if edit.of_tensors:  # its own threads would wait for those that OpenBLAS starts when numpy is imported
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        named = {parameter.name: given.get(_typed(parameter)) for parameter in edit.inputs}
        options = {name: given[name] for name in edit.options}
        selection = part.selection if part else Selection()
        edit.require(named, options, selection)
        with ExitStack() as stack:
            stack.enter_context(asked_cores(output.threads))  # for what reads while it plans, too
            inputs = _opened(edit, named, options, stack)
            planned = plan(edit, inputs, options, selection=selection, seed=seed, digests=not output.no_digest)
            stack.callback(planned.close)
            if json:
                assert edit.json is not None
                typer.echo(json_module.dumps(edit.json(planned.history)))
            elif output.dry_run:
                foretell(planned)
            else:
                write_surgery(planned, output, exports=edit.exports)
                return
            planned.finish()

    run.__name__, run.__doc__ = edit.name.replace("-", "_"), edit.__doc__
    run.__module__ = run.__name__  # its messages begin with its name, whatever the module's
    parameters = list(_signature(edit))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command(run)


def parsed(edit: Edit, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], Selection, int]:
    """Read words as the edit's subcommand does, and run nothing.

    Returns:
        Its inputs by parameter, as they are named; its options; the part; and the seed.

    Raises:
        UsageError: they are not what the command takes, or name a file beside its inputs.
    """
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)
    app.command(edit.name)(as_command(edit))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # --help
            given = typer.main.get_command(app).make_context(edit.name, list(words)).params
    except Exception as error:  # of the click that typer has in it
        said = error.format_message() if hasattr(error, "format_message") else "it asks for help"
        raise UsageError(said) from None
    selectors = Part(**{field.name: given.get(field.name) for field in fields(Part)}) if edit.takes_part else Part()
    if selectors.block_map is not None and not selectors.block_map.startswith("{"):
        raise UsageError("its block map is a file")
    named = {parameter.name: given.get(_typed(parameter)) for parameter in edit.inputs}
    options = {name: given[name] for name in edit.options}
    return named, options, selectors.selection, given.get("seed", 0)


def _typed(parameter: Parameter) -> str:
    """The name under which typer knows it: a checkpoint without an annotation of its own is the common `[IN]`."""
    return _SOURCE if _is_common(parameter) else parameter.name


def _is_common(parameter: Parameter) -> bool:
    return parameter.is_checkpoint and not parameter.declared


def _signature(edit: Edit) -> Iterator[inspect.Parameter]:
    def of(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    for parameter in edit.parameters.values():
        if not _is_common(parameter):
            hint = parameter.hint
            if parameter.is_input:
                hint = list[str] if parameter.is_many else str if parameter.required else Optional[str]  # noqa: UP045
            yield of(parameter.name, Annotated[hint, parameter.info], parameter.default)
    if any(_is_common(parameter) for parameter in edit.inputs):
        yield of(_SOURCE, Input, None)
    if edit.draws:
        yield of("seed", Seed, 0)
    if edit.json:
        yield of("json", Json, False)
    if edit.takes_part:
        yield of("part", Part)
    yield of("output", SurgeryOutput)


def _opened(edit: Edit, named: Mapping[str, Any], options: Mapping[str, Any], stack: ExitStack) -> dict[str, Any]:
    """Open the checkpoints that the command line names, each until the command ends."""
    from wsurgery.checkpoint import open_checkpoint, stdin_is_piped

    words = [word for name in named.values() for word in (name if isinstance(name, list) else [name])]
    if words.count("-") > 1:
        raise UsageError("standard input can be one of the checkpoints only: name a file for the others")

    def opened(name: str | None) -> "Checkpoint":
        checkpoint = open_checkpoint(name)
        stack.callback(checkpoint.close)
        return checkpoint

    inputs: dict[str, Any] = {}
    for parameter in edit.inputs:
        name = named[parameter.name]
        piped = parameter.piped
        if not parameter.is_checkpoint:
            inputs[parameter.name] = name
        elif isinstance(name, list):
            inputs[parameter.name] = [opened(each) for each in name]
        elif name is not None or _is_common(parameter):
            inputs[parameter.name] = opened(name)
        elif piped and options[piped.unless] is None and "-" not in words and stdin_is_piped():
            try:
                inputs[parameter.name] = opened("-")
            except WsurgeryError as error:
                raise type(error)(f"{error}; {piped.hint}") from None
        else:
            inputs[parameter.name] = None
    return inputs
