"""Two networks on the same images, for `wsurgery.cca`."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from wsurgery.data.dataset import load_dataset, report_skipped
from wsurgery.devices import choose_device, memory_errors, on_device, threads_used
from wsurgery.models.own import Model
from wsurgery.processes import Processes
from wsurgery.similarity.compare import compare
from wsurgery.similarity.initialisation import find_initialisation
from wsurgery.similarity.results import LayerSimilarity
from wsurgery.studies._checkpoints import describe, models_of, network_of, unedited
from wsurgery.studies._given import Say, Source, label, path_of
from wsurgery.studies._images import common_images, load_once
from wsurgery.training.recorded import record_of, say_other_images


def compare_checkpoints(
    a: Source,
    b: Source | None,
    *,
    data: str,
    layers: Sequence[str] | Literal["all"] | None,
    split: str,
    image_size: int | None,
    skip_bad: bool,
    bad_list: str | Path | None,
    images: int,
    device: str,
    arch: str | None,
    model: Model | None,
    threads: int | None,
    say: Say,
    processes: Processes,
    arguments: dict[str, Any],
) -> tuple[list[LayerSimilarity], dict[str, Any], tuple[Source, Source]]:
    """Compare two networks as `wsurgery.cca` does, whose arguments these are; B is None for what A was trained from.

    Args:
        arguments: the others, of `wsurgery.similarity.compare.compare`.

    Returns:
        What was found; what was compared, and how, as the result says it; A and B.
    """
    a = unedited(a)
    other = unedited(b) if b is not None else find_initialisation(path_of(a, "--with-init"))
    first, skip_bad = processes.is_first, skip_bad or bad_list is not None
    with threads_used(threads) if threads else nullcontext():
        where = choose_device(device, processes)
        compared: dict[str, Any] = {"a": describe(a), "b": describe(other)}
        sides = zip((a, other), models_of((a, other), model), strict=True)
        network_a, network_b = (network_of(side, arch, own) for side, own in sides)
        _share_blocks(network_a, network_b, say if first else lambda line: None)
        size, rendering = common_images(data, image_size, network_a, network_b)
        load = partial(load_dataset, data, split=split, image_size=size, skip_bad=skip_bad, trained=rendering)
        dataset = load_once(load, processes)
        for side, network in ((a, network_a), (other, network_b)) if first else ():
            say_other_images(label(side), record_of(network), dataset, say)
        if first:
            report_skipped({split: dataset.skipped}, say, bad_list)
        with on_device(where), memory_errors(where, "use a smaller --image-size, or fewer --layers or --repeats"):
            found = compare(
                network_a,
                network_b,
                dataset.images,
                layers=layers,
                n_images=images,
                patients=dataset.patients if dataset.has_patients else None,
                device=where,
                processes=processes,
                **arguments,
            )
    compared["data"] = {
        "spec": data, "split": split, "image_size": dataset.images.shape[1], "digest": dataset.digest,
        "skip_bad": skip_bad, **dataset.rendering.keys,
    }  # fmt: skip
    compared["arguments"] = {
        **arguments, "layers": layers, "images": images, "arch": arch, "device": str(where),
        "with_init": b is None, "processes": processes.count,
    }  # fmt: skip
    return found, compared, (a, other)


def _share_blocks(a: nn.Module, b: nn.Module, say: Say) -> None:
    """Give networks of the same tensors one block map: under one name would else be other layers."""
    maps = [getattr(network, "block_globs", None) for network in (a, b)]
    if maps[0] == maps[1] or a.state_dict().keys() != b.state_dict().keys():
        return
    a.block_globs = b.block_globs = maps[0] or maps[1]  # type: ignore[assignment]
    say(f"A and B have other block maps: blocks are {'A' if maps[0] else 'B'}'s in both")
