"""What a run says while it goes on: to whoever watches, and to loggers."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from wsurgery.checkpoint import AtomicFile
from wsurgery.data.dataset import Dataset
from wsurgery.errors import WsurgeryError, printable
from wsurgery.training.run_folder import Entry
from wsurgery.untrusted import read_regular

Report = Callable[[Entry], None]
Log = Callable[[int, dict[str, float]], None]  # step, values


def in_words(entry: Entry) -> str:
    """Write an entry of the log on one line."""
    parts = [f"step {entry['step']}"]
    if "loss" in entry:
        parts.append(f"loss {entry['loss']:.4f}")
    if "macro_auc" in entry:
        parts.append("macro AUC " + ("–" if entry["macro_auc"] is None else f"{entry['macro_auc']:.4f}"))
    if "top1" in entry:
        parts.append(f"top-1 {entry['top1']:.4f}")
    if "images_per_second" in entry:
        parts.append(f"{entry['images_per_second']:.0f} images/s")
    return "  ".join(parts)


@contextmanager
def watched(steps: int, training: Dataset, say: Callable[[str], None], *, live: bool) -> Iterator[Report]:
    """Show a run of `steps` steps: a line at each evaluation, and on a terminal one more that is kept up to date.

    Args:
        steps: the run's length.
        training: the images, of which the labels' names, the number and size, and how they are rendered are said first.
        say: prints a line.
        live: keep a line with bar and time left, once a second; for a terminal.
    """
    # Said once nothing can be wrong any more.
    n, height, width, _ = training.images.shape
    first = [
        f"labels: {printable(', '.join(training.label_names), 1000)}",
        f"images: {n:,} to train on, {height} × {width} pixels, {training.rendering.described}",
    ]

    def tell(entry: Entry) -> None:
        if "macro_auc" in entry:
            for line in (*first, in_words(entry)):
                say(line)
            first.clear()

    if not live:
        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("of {task.total}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, refresh_per_second=1) as bar:
        task = bar.add_task("step 0", total=steps)

        def show(entry: Entry) -> None:
            bar.update(task, description=in_words(entry), completed=entry["step"])
            tell(entry)

        yield show


@contextmanager
def logged(names: Sequence[str], run: Path, settings: dict[str, Any]) -> Iterator[Report]:
    """Send a run's entries to `tensorboard` (RUN/tensorboard), `wandb`, or both.

    A run that goes on replaces what it had sent of the steps that it takes again (tensorboard), or leaves them (wandb).

    Raises:
        ModuleNotFoundError: the package is not installed; nothing is written then.
    """
    for name in names:
        import_module(name)
    logs: list[Log] = []
    with ExitStack() as opened:

        def log(entry: Entry) -> None:
            step = entry["step"]
            if not logs:  # only now has the run's folder been found to be its own
                logs.extend(opened.enter_context(LOGGERS[name](run, settings, step)) for name in names)
            values = {key: value for key, value in entry.items() if isinstance(value, (int, float)) and key != "step"}
            for kind in ("auc", "distance_from_init"):
                values |= {f"{kind}/{name}": value for name, value in entry.get(kind, {}).items() if value is not None}
            for each in logs:
                each(step, values)

        yield log


@contextmanager
def _tensorboard(run: Path, settings: dict[str, Any], step: int) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(run / "tensorboard", purge_step=step) as writer:

        def log(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield log


@contextmanager
def _wandb(run: Path, settings: dict[str, Any], step: int) -> Iterator[Log]:
    import wandb

    name = "-".join(run.resolve().parts[-2:])  # ARM-SEED: other experiments have such a run, too
    identity = run / "wandb.id"
    if not identity.exists():
        with AtomicFile(identity) as stream:
            stream.write(uuid4().hex.encode())
    known = read_regular(identity, 100).decode(errors="replace")
    if not re.fullmatch(r"[\w.-]+", known):
        raise WsurgeryError(f"{printable(str(identity))} is no name of a run: remove it")
    project = os.environ.get("WANDB_PROJECT", "wsurgery")
    with wandb.init(project=project, id=known, name=name, resume="allow", dir=run, config=settings) as session:
        yield lambda step, values: session.log(values, step=step)


LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}
