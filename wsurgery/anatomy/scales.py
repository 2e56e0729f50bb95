"""Weights that are stored as small numbers times a scale, as quantised checkpoints have them."""

from collections import defaultdict
from collections.abc import Mapping

from wsurgery.anatomy.roles import Described
from wsurgery.errors import printable

# Of `weight`: `weight_scale` (compressed-tensors, vLLM), `weight_scale_inv` (DeepSeek, which multiplies by it all the same).
_AFTER = (
    "_scale", "_scale_inv", "_scales", "_scale_2", "_global_scale", "_zero_point", "_scale_and_zero",
)  # fmt: skip
# Beside `weight`: ComfyUI, DeepSeek's own format, bitsandbytes; beside `qweight`: GPTQ and AWQ.
_BESIDE = {"weight": ("scale_weight", "scale_inv", "scale", "SCB"), "qweight": ("scales",)}
_OF_PACKED = ("_packed", "_blocks")  # `weight_packed` with `weight_scale`, gpt-oss's `…_blocks` with `…_scales`
_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_SMALL = ("I8", "U8", "I32", "F4", "F6_E2M3", "F6_E3M2", *_FLOAT8)
_OF_ACTIVATIONS = ("input_scale", "output_scale", "scale_input", "scale_output")
MARKER = "scaled_fp8"  # by which ComfyUI knows a file of such weights


def scales(tensors: Mapping[str, Described]) -> dict[str, list[str]]:
    """Find the weights that mean something else than their numbers.

    Args:
        tensors: all of a checkpoint, by name.

    Returns:
        Name of a weight of 8 bits or less, or of packed ones → names of the tensors that scale it.
    """
    stored = [name for name, tensor in tensors.items() if tensor.dtype in _SMALL]
    if not stored:
        return {}
    inside: dict[str, list[str]] = defaultdict(list)  # of bitsandbytes: `weight.absmax`
    for name, tensor in tensors.items():
        if tensor.dtype not in _SMALL:
            inside[name.rpartition(".")[0]].append(name)
    found = {}
    for name in stored:
        module, _, part = name.rpartition(".")
        stems = [name, *(name.removesuffix(end) for end in _OF_PACKED if name.endswith(end))]
        wanted = [stem + end for stem in stems for end in _AFTER]
        wanted += [f"{module}.{word}" if module else word for word in _BESIDE.get(part, ())]
        # Beside a weight of 8 bits, a tensor that was made as small is one in its own right.
        small = _FLOAT8 if tensors[name].dtype in _FLOAT8 else ()
        own = [each for each in wanted if each in tensors and tensors[each].dtype not in small]
        if own := [*own, *inside.get(name, ())]:
            found[name] = own
    return found


def scaled_note(tensors: Mapping[str, Described], label: str) -> str | None:
    """Say that numbers of a checkpoint are shown as they are stored; None where there are no scaled weights."""
    found = scales(tensors)
    if not found:
        return None
    name = min(found)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return (
        f"{label}: {printable(name)}{more} is stored as {tensors[name].dtype} and scaled by {printable(found[name][0])}: numbers "
        "here are as stored; wsurgery cast --to bf16 multiplies them"
    )


def of_activations(weight: str) -> list[str]:
    """Name the tensors by which quantised arithmetic would scale what comes to a weight: without it they say nothing."""
    module = weight.rpartition(".")[0]
    return [f"{module}.{word}" if module else word for word in _OF_ACTIVATIONS]
