"""`wsurgery.path`."""

import csv as csv_module
import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from wsurgery.checkpoint.sink import write_all
from wsurgery.checkpoint.writer import AtomicFile, require_free
from wsurgery.data.dataset import Dataset
from wsurgery.data.sources import open_data
from wsurgery.devices import choose_device, on_device, threads_used
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.models.inputs import image_statistics
from wsurgery.models.load import see_as_trained
from wsurgery.models.own import Model
from wsurgery.processes import ALONE
from wsurgery.statistics.auc import macro
from wsurgery.studies._checkpoints import describe, models_of, network_of, unedited
from wsurgery.studies._given import Say, Source, label, require_at_least, warn
from wsurgery.studies._images import Images, common_images, predictions_of
from wsurgery.training.evaluation import aucs_of, loss_of
from wsurgery.training.recalibration import batch_norms
from wsurgery.training.recalibration import recalibrate as recalibrate_network
from wsurgery.training.recorded import record_of


def path(
    a: Source,
    b: Source,
    *,
    data: str | Path,
    points: int = 11,
    split: str = "test",
    recalibrate: bool = True,
    images: int = 512,
    image_size: int | None = None,
    skip_bad: bool = False,
    bad_list: str | Path | None = None,
    arch: str | None = None,
    model: Model | None = None,
    device: str = "auto",
    threads: int | None = None,
    csv: str | Path | None = None,
    plot: str | Path | None = None,
    force: bool = False,
    say: Say = warn,
) -> dict[str, Any]:
    """Evaluate networks along the line from one to another: (1 - t) A + t B, in float64 and rounded once to A's types.

    The barrier is the largest excess over the line between the ends' values, of the loss and of 1 - macro AUC: Entezari et al.
    2022, arXiv 2110.06296; of ends that are equal, the instability of Frankle et al. 2020, arXiv 1912.05671.

    Args:
        a: the network at t = 0.
        b: that at t = 1, with tensors of the same names and shapes.
        data: a manifest, or `scheme:argument?key=value`.
        points: on the line, the ends with them; at equal distances.
        split: the split to evaluate on.
        recalibrate: whether batch norm between the ends gets the running statistics of images of the split `train`, as
            `recalibrate-bn` finds them; else they are interpolated, too. The ends keep their own.
        images: how many, in whole patients.
        image_size: pixels a side. Default: those of the training, if a record says it, else the data's own.
        skip_bad: leave out images that are missing or cannot be read.
        bad_list: do so, and list them in this file, CSV: split, path, reason.
        arch: the timm model, where a checkpoint does not say it.
        model: what makes the network, if timm does not: `FILE.py:CALLABLE`, `package.module:CALLABLE`, or the callable.
        device: `auto` (cuda or cpu), `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: default all cores. Another number may round otherwise.
        csv: write a table with a line a point to this file.
        plot: draw loss and AUC along the line: .pdf, .svg or .png.
        force: overwrite these files.
        say: takes a message for people.

    Returns:
        What `path --json` prints: `points`, each with `t`, `loss` (nats, as in training, labels weighted alike), `macro_auc` and
        `auc` by label (0 to 1 or None); `barrier`, with `loss` and `error` (of 1 - macro AUC), each with its `value`, at least
        0, and the `t` where it is, `error` None without an AUC; `recalibrated`, the images that batch norm saw, or None; and
        what was evaluated.

    Raises:
        UsageError: an option that cannot be, no such data or split, or a file exists.
        WsurgeryError: checkpoints and data do not fit together.
    """
    require_at_least(2, points=points, images=images)
    require_at_least(1, threads=threads, image_size=image_size)
    figure = None if plot is None else Path(plot)
    if figure is not None and figure.suffix.lower() not in (".pdf", ".svg", ".png"):
        raise UsageError(f"{printable(str(figure))}: a figure is a .pdf, .svg or .png file")
    if figure is not None:
        require_free(figure, force=force)
    ends = unedited(a), unedited(b)
    with ExitStack() as stack:
        stack.enter_context(threads_used(threads))
        table = stack.enter_context(AtomicFile(Path(csv), force=force)) if csv is not None else None
        where = choose_device(device)
        networks = [network_of(end, arch, own) for end, own in zip(ends, models_of(ends, model), strict=True)]
        names = label(ends[0]), label(ends[1])
        _require_alike(networks, names)
        _share_record(networks, names)
        size, _ = common_images(str(data), image_size, *networks)
        source = Images(data, split=split, image_size=size, skip_bad=skip_bad, bad_list=bad_list, say=say)
        dataset = source.at(record_of(networks[0]))
        seen = None
        if recalibrate and points > 2 and batch_norms(networks[0]):
            there = len(open_data(str(data)).where("train"))
            if there < 2:
                raise UsageError(
                    f"{printable(str(data))} has {there} images of the split train, of which batch norm's statistics need two: "
                    "add --no-recalibrate"
                )
            seen = source.other("train", dataset, subset=min(images, there))
        states = [{name: x.detach().cpu().clone() for name, x in each.state_dict().items()} for each in networks]
        found = []
        with on_device(where):
            for i in range(points):
                t = i / (points - 1)
                found.append(_point(networks[0], states, t, dataset, seen, where, names[0], say if i == 0 else _silent))
        result = {
            "a": describe(ends[0]),
            "b": describe(ends[1]),
            "data": {
                "spec": str(data),
                "split": split,
                "image_size": dataset.images.shape[1],
                "digest": dataset.digest,
            },
            "n": len(dataset.images),
            "recalibrated": None if seen is None else len(seen.images),
            "points": found,
            "barrier": {"loss": _barrier(found, "loss", 1), "error": _barrier(found, "macro_auc", -1)},
        }
        if figure is not None:
            from wsurgery.figures.paths import draw_path
            from wsurgery.figures.style import save

            save(
                draw_path(result, title="A: {}, B: {}".format(*("/".join(Path(n).parts[-3:]) for n in names))),
                figure,
                force=force,
            )
        if table:
            write_all(table, _as_csv(found).encode())
    return result


def _share_record(networks: Sequence[nn.Module], names: tuple[str, str]) -> None:
    """Have a network that was never trained evaluated as the other, and refuse two that are evaluated in different ways."""
    known = [record_of(network) for network in networks]
    if known[0] is None and known[1] is not None:
        see_as_trained(networks[0], known[1])
    elif known[0] and known[1] and known[0].loss != known[1].loss:
        _refuse("loss", [each.loss for each in known if each], names)
    elif known[1] is not None or known[0] is None:
        statistics = [image_statistics(network) for network in networks]
        if statistics[0] != statistics[1]:
            _refuse("images of mean and standard deviation", statistics, names)


def _refuse(what: str, values: Sequence[object], names: tuple[str, str]) -> NoReturn:
    a, b = (printable(name) for name in names)
    raise UsageError(
        f"{a} has {what} {values[0]} and {b} {values[1]}: on a line between them they would have to be one"
    )


def _silent(line: str) -> None:
    """The first point has said it."""


def _require_alike(networks: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Require tensors of the same names and shapes, and outputs that stand for the same labels."""
    a, b = (each.state_dict() for each in networks)
    for name in [*a, *(name for name in b if name not in a)]:
        shapes = [tuple(each[name].shape) if name in each else None for each in (a, b)]
        if shapes[0] != shapes[1]:
            said = [
                f"{shape} in {printable(of)}" if shape is not None else f"not in {printable(of)}"
                for shape, of in zip(shapes, names, strict=True)
            ]
            raise WsurgeryError(
                f"{printable(name)} is {' and '.join(said)}: there is a line between networks of one architecture and as many "
                "classes only"
            )
    labels = [trained.labels if (trained := record_of(each)) else () for each in networks]
    if all(labels) and labels[0] != labels[1]:
        raise WsurgeryError(
            f"{printable(names[0])} was trained on the labels {printable(', '.join(labels[0]), 200)}, {printable(names[1])} on "
            f"{printable(', '.join(labels[1]), 200)}: between their outputs nothing stands for anything"
        )


def _point(
    network: nn.Module,
    states: Sequence[dict[str, torch.Tensor]],
    t: float,
    dataset: Dataset,
    seen: Dataset | None,
    device: torch.device,
    name: str,
    say: Say,
) -> dict[str, Any]:
    """Evaluate a point of the line, in a network that is overwritten."""
    a, b = states
    if t in (0, 1):
        network.load_state_dict(states[int(t)])
    else:
        network.load_state_dict(
            {
                key: (x.double() * (1 - t) + b[key].double() * t).to(x.dtype) if x.is_floating_point() else x
                for key, x in a.items()
            }
        )
        if seen is not None:
            recalibrate_network(network, seen, device=device)
    predictions, _ = predictions_of(name, network, dataset, device, say, ALONE)
    own, _ = aucs_of(predictions)
    return {"t": t, "loss": loss_of(predictions), "macro_auc": macro(own), "auc": own}


def _barrier(points: Sequence[dict[str, Any]], key: str, sign: int) -> dict[str, float] | None:
    """Return the largest excess of `sign` times a value over the line between the ends, and where it is; None without values."""
    values = [point[key] for point in points]
    if None in values:
        return None
    excess = [
        (sign * (value - (1 - point["t"]) * values[0] - point["t"] * values[-1]), -point["t"])
        for point, value in zip(points, values, strict=True)
    ]
    value, t = max(excess)
    return {"value": value + 0.0, "t": -t}  # no minus before a zero


def _as_csv(points: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(["t", "loss", "macro_auc"])
    writer.writerows([point["t"], point["loss"], point["macro_auc"]] for point in points)
    return text.getvalue()
