"""How large a network a checkpoint may ask for: its metadata is untrusted, and its tensors are what there is."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from wsurgery.anatomy.architecture import Architecture
from wsurgery.anatomy.blocks import Shapes
from wsurgery.errors import WsurgeryError, printable

# Elements beside four times those of the file: buffers that are not saved; and layers that somebody's own code replaces.
SPARE, SPARE_OF_OWN = 1 << 25, 1 << 27
_LARGEST_ARGUMENT = 10_000  # of what is no dimension of a tensor: an image's side


def require_small_arguments(label: str, shapes: Shapes, architecture: Architecture) -> None:
    """Check the integers that a network is built of: a list of them is made before any tensor is.

    Args:
        label: what messages call the file.
        shapes: of its tensors.
        architecture: as the metadata has it.

    Raises:
        WsurgeryError: one is larger than all dimensions in the file, and than an image's side.
    """
    sizes = (size for shape in shapes.values() if all(shape) for size in shape)
    largest = max(sizes, default=0)
    for key, number in _integers({key: architecture.get(key) for key in ("num_classes", "in_chans", "args")}):
        if abs(number) > max(_LARGEST_ARGUMENT, largest):
            raise WsurgeryError(
                f"{label}: {printable(architecture['name'])} with {printable(key, 40)} = {number:.3g}, as its "
                f"metadata says, and no dimension in the file is larger than {largest}: is the architecture right?"
            )


def _integers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield the integers in arguments, each with the key under which it stands."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            yield from _integers(inner, inner_key)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _integers(inner, key)
    elif isinstance(value, int):
        yield key, value


class _Undrawn(TorchFunctionMode):
    """Draws no normal numbers: for those on `meta`, where there are none, torch imports sympy, half a second of CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is torch.Tensor.normal_ else func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Build networks without values, on torch's device `meta`."""
    with torch.device("meta"), _Undrawn():
        yield


@contextmanager
def counted(label: str, shapes: Shapes, spare: float) -> Iterator[None]:
    """Refuse a network, while it is built, as soon as it has more tensors, elements or modules than a checkpoint bears.

    Args:
        label: what messages call the checkpoint.
        shapes: of its tensors.
        spare: elements that it may have beside four times those of the checkpoint.

    Raises:
        WsurgeryError: it has, out of whatever builds it.
    """
    most_tensors = 4 * len(shapes) + 10_000
    most_elements = 4 * sum(map(math.prod, shapes.values())) + spare
    tensors = elements = modules = 0

    def count(module: nn.Module, name: str, value: torch.Tensor | nn.Module | None) -> None:
        nonlocal tensors, elements, modules
        if isinstance(value, torch.Tensor):
            tensors, elements = tensors + 1, elements + value.numel()
        else:
            modules += 1
        if tensors > most_tensors or elements > most_elements or modules > 10 * most_tensors:
            raise WsurgeryError(
                f"{label}: its metadata asks for a network many times larger than the file: is the architecture right?"
            )

    with ExitStack() as stack:
        for register in (
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
            register_module_module_registration_hook,
        ):
            stack.callback(register(count).remove)
        yield
