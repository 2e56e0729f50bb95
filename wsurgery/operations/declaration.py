"""What a function says by its signature when it is declared as an edit."""

import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

from typer import Argument, Option
from typer.models import ArgumentInfo, OptionInfo

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import UsageError
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.tensor import Tensor

if TYPE_CHECKING:
    from wsurgery.operations.arrays import Array as Array
    from wsurgery.operations.arrays import Map as Map
else:

    class Array:
        """A numpy array; as the type of an edit's first parameter: one tensor, or a chunk of one."""

    class Map:
        """The built-in `map`, or a thread pool's: an edit that works in chunks of its own maps over them with it."""


InputFile = typing.NewType("InputFile", str)  # a file of any format, which the edit opens: an input, not an argument


@dataclass(frozen=True)
class Piped:
    """In the annotation of an optional checkpoint: on a command line, what is piped in stands for it.

    Attributes:
        unless: the option that says that none is wanted.
        hint: what to do if it cannot be read.
        clash: what is wrong with both.
    """

    unless: str
    hint: str
    clash: str


@dataclass(frozen=True)
class Parameter:
    """An option or argument of an edit.

    Attributes:
        name: in Python.
        hint: its type, without what `Annotated` adds.
        default: `inspect.Parameter.empty` where it must be given.
        info: how the command line has it.
        declared: whether its annotation says how.
        extra: what else its annotation says.
    """

    name: str
    hint: Any
    default: Any
    info: OptionInfo | ArgumentInfo
    declared: bool
    extra: tuple[Any, ...] = ()

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty

    @property
    def is_argument(self) -> bool:
        """Whether it stands by its position."""
        return isinstance(self.info, ArgumentInfo)

    @property
    def option(self) -> str:
        """How it is typed: `--std`."""
        return next(filter(None, self.switches))

    @property
    def switches(self) -> tuple[str, str]:
        """How it is typed, and how its False is: `--fast` and `--slow`, "" where there is no such word."""
        # The first word of an Option in Annotated is where the default would be elsewhere.
        words = [word for word in (self.info.default, *(self.info.param_decls or ())) if isinstance(word, str)]
        name = self.name.replace("_", "-")
        words = words or [f"--{name}/--no-{name}" if bool in self.kinds else f"--{name}"]
        on, off = (
            min(filter(None, map(str.strip, side)), key=lambda word: not word.startswith("--"), default="")
            for side in zip(*(word.partition("/")[::2] for word in words), strict=True)
        )
        return on, off

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint, or several."""
        return Checkpoint in self.kinds or list[Checkpoint] in self.kinds

    @property
    def piped(self) -> Piped | None:
        """Whether what is piped in stands for it."""
        return next((each for each in self.extra if isinstance(each, Piped)), None)

    @property
    def is_many(self) -> bool:
        """Whether it is a list."""
        return any(typing.get_origin(kind) is list for kind in self.kinds)

    @property
    def kinds(self) -> list[Any]:
        """The types of its values, None left out."""
        is_union = typing.get_origin(self.hint) in (typing.Union, types.UnionType)
        return [
            kind for kind in (typing.get_args(self.hint) if is_union else (self.hint,)) if kind is not types.NoneType
        ]

    @property
    def is_input(self) -> bool:
        """Whether a file is named with it."""
        return self.is_checkpoint or InputFile in self.kinds

    def checked(self, value: Any) -> Any:
        """Return a value from Python as the command line would give it.

        Raises:
            UsageError: it is none of the values that the option takes, or one that no command line gives.
        """
        found = self._checked(value)
        # A False without a word of its own is what a flag is that is not given.
        as_default = not self.default if self.is_many or found is False else found is self.default
        if not (self.is_input or self.words(found) or as_default):
            said = self.name if self.is_argument else self.option
            raise UsageError(f"{said} {found}: no command line says so, and the history could not: give another value")
        return found

    def _checked(self, value: Any) -> Any:
        kinds = self.kinds
        if value is None or self.is_input:
            return value
        said = self.name if self.is_argument else self.option
        if self.is_many:
            return [str(word) for word in ([value] if isinstance(value, str) else value)]
        if choices := [
            choice for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)
        ]:
            if value not in choices:
                raise UsageError(f"{said} {value}: one of {', '.join(map(str, choices))}")
            return value
        if float in kinds:
            value = float(value)
            if not math.isfinite(value):
                raise UsageError(f"{said} {value}: a finite number is needed")
        elif int in kinds and not isinstance(value, bool):
            value = operator.index(value)
            if abs(value) >= 1 << 31:
                raise UsageError(f"{said}: a number below 2,147,483,648 is needed")
        elif bool in kinds:
            if value not in (True, False):
                raise UsageError(f"{said} {value}: True or False is needed")
            value = bool(value)
        elif str in kinds and isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        for bound, beyond, word in ((self.info.min, operator.lt, "least"), (self.info.max, operator.gt, "most")):
            if bound is not None and beyond(value, bound):
                raise UsageError(f"{said} {value}: at {word} {bound:g}")
        return value

    def words(self, value: Any) -> list[str]:
        """Write it as it is typed in a shell; nothing for what is not given, or is a default of False."""
        if value is None or (value is False and self.default is False):
            return []
        values = [str(word) for word in value] if self.is_many else [str(value)]
        if self.is_argument:
            return values
        if isinstance(value, bool):
            return [word for word in [self.switches[not value]] if word]
        return [word for each in values for word in (self.option, each)]


@dataclass(frozen=True)
class Edit:
    """A declared edit: what its function takes, and so its command, its method and its record.

    Attributes:
        name: of the command: `add-noise`.
        function: what does it.
        parameters: its checkpoints, options and arguments by name, in the order of the signature.
        takes: parameter name → which of `RandomStream`, `Tensor`, `Map`, `Selection` it is.
        of_tensors: whether it changes one tensor after another.
        elementwise: see `edit`.
        resamples: see `edit`.
        flows: the checkpoint that flows through: its history goes on in the result. None for a source.
        in_order: see `edit`.
        needs_part: see `edit`.
        json: see `edit`.
        exports: see `edit`.
        package: name and version of the package that it comes from, if that is not wsurgery.
    """

    name: str
    function: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    takes: Mapping[str, Any]
    of_tensors: bool
    elementwise: bool
    resamples: bool
    flows: str | None
    in_order: Collection[str]
    needs_part: str | None
    json: Callable[[History], Any] | None
    exports: bool = False
    package: Mapping[str, str] | None = None

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """What its help says."""
        return inspect.getdoc(self.function) or ""

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return RandomStream in self.takes.values()

    @property
    def takes_part(self) -> bool:
        """Whether it acts on the selected part."""
        return self.of_tensors or Selection in self.takes.values()

    @property
    def inputs(self) -> list[Parameter]:
        """The checkpoints, and files, that it reads."""
        return [parameter for parameter in self.parameters.values() if parameter.is_input]

    @property
    def options(self) -> dict[str, Parameter]:
        """All other parameters that a user gives."""
        return {name: parameter for name, parameter in self.parameters.items() if not parameter.is_input}

    def require(self, inputs: Mapping[str, Any], options: Mapping[str, Any], selection: Selection) -> None:
        """Refuse what cannot mean anything, before anything is opened.

        Raises:
            UsageError: no part is selected where one is needed, or two inputs exclude each other.
        """
        if self.needs_part and not selection.arguments:
            raise UsageError(self.needs_part)
        for parameter in self.inputs:
            if (piped := parameter.piped) and inputs.get(parameter.name) and options.get(piped.unless):
                raise UsageError(piped.clash)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Call the function itself."""
        return self.function(*positional, **named)

    def words(self, options: Mapping[str, Any], part: Sequence[str]) -> list[str]:
        """Write the options as typed in a shell, for the record: those of the part before the first flag, or in the place
        that the signature has for them.

        Args:
            options: their values; None where one is not recorded.
            part: the selectors, as typed.
        """
        words: list[str] = []
        last: list[str] = []
        placed = False
        order = list(inspect.signature(self.function).parameters)
        if self.resamples:
            order.append("bn")
        behind_dashes = any(
            str(options[name]).startswith("-") for name, parameter in self.options.items() if parameter.is_argument
        )
        for name in order:
            parameter = self.options.get(name)
            flag = parameter is not None and parameter.hint is bool
            if not placed and (self.takes.get(name) is Selection or (self.of_tensors and flag)):
                words += part
                placed = True
            if parameter is not None:
                (last if behind_dashes and parameter.is_argument else words).extend(parameter.words(options[name]))
        words += [] if placed else part
        return [*words, "--", *last] if behind_dashes else words


@overload
def edit(function: Callable[..., Any], /) -> Edit: ...


@overload
def edit(
    *,
    elementwise: bool = False,
    resamples: bool = False,
    flows: str | None = None,
    starts: bool = False,
    in_order: Collection[str] = (),
    needs_part: str | None = None,
    json: Callable[[History], Any] | None = None,
    exports: bool = False,
) -> Callable[[Callable[..., Any]], Edit]: ...


def edit(
    function: Callable[..., Any] | None = None,
    /,
    *,
    elementwise: bool = False,
    resamples: bool = False,
    flows: str | None = None,
    starts: bool = False,
    in_order: Collection[str] = (),
    needs_part: str | None = None,
    json: Callable[[History], Any] | None = None,
    exports: bool = False,
) -> Edit | Callable[[Callable[..., Any]], Edit]:
    """Declare an edit: `@edit`, or `@edit(elementwise=True)`.

    Args:
        function: what does it, where the decorator has no parentheses.
        elementwise: each element of the result depends on that element alone (and on its draw).
        resamples: it draws a tensor anew from itself: batch norm follows `--bn`, and what has no spread is copied.
        flows: the checkpoint that flows through. Default: the first.
        starts: no checkpoint flows through: the history of the result begins here.
        in_order: checkpoints that it reads in their own order only; any other stream is copied to a file first.
        needs_part: the question to a user who gives no selector, where everything is not what anybody wants.
        json: gives, for the history of the result, what `--json` prints in place of writing.
        exports: whether the command writes other formats, too, by the ending of `-o`.

    Raises:
        TypeError: a parameter of the function has no type.
    """

    def declare(function: Callable[..., Any]) -> Edit:
        # As they are written: get_type_hints of Python 3.10 changes what has the default None.
        hints: dict[str, Any] = inspect.get_annotations(function, eval_str=True)
        parameters: dict[str, Parameter] = {}
        takes: dict[str, Any] = {}
        of_tensors = False
        for name, given in inspect.signature(function).parameters.items():
            if name not in hints or given.kind in (given.VAR_POSITIONAL, given.VAR_KEYWORD):
                raise TypeError(
                    f"the edit {function.__name__} has a parameter {name} without a type of its own: x: Array, say"
                )
            hint, *extra = (
                [hints[name]] if typing.get_origin(hints[name]) is not Annotated else typing.get_args(hints[name])
            )
            if hint is Array:
                of_tensors = True
                parameters["checkpoint"] = Parameter(
                    "checkpoint", Checkpoint, given.default, Argument(), declared=False
                )
            elif hint in (RandomStream, Tensor, Map, Selection):
                takes[name] = hint
            else:
                infos = [each for each in extra if isinstance(each, (OptionInfo, ArgumentInfo))]
                others = tuple(each for each in extra if each not in infos)
                parameters[name] = Parameter(
                    name, hint, given.default, infos[0] if infos else Option(), bool(infos), others
                )
        if resamples:
            parameters["bn"] = Parameter("bn", BatchNorm, "identity", Option(help=_BN), declared=True)
        checkpoints = [name for name, parameter in parameters.items() if parameter.is_checkpoint]
        return Edit(
            function.__name__.replace("_", "-"),
            function,
            parameters,
            takes,
            of_tensors,
            elementwise,
            resamples,
            flows or (checkpoints[0] if checkpoints and not starts else None),
            tuple(in_order),
            needs_part,
            json,
            exports,
        )

    return declare if function is None else declare(function)


BatchNorm = Literal["identity", "meanvar", "keep"]
_BN = "Batch norm: the identity, resampled by mean and variance, or kept."
