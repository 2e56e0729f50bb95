"""The training loop: from an edited checkpoint to a run folder, step by step reproducible.

A run folder holds `config.json` (the resolved settings and the digests of the inputs), `init.safetensors` (as training
began), `log.jsonl`, `last.safetensors`, `best.safetensors` (highest macro AUC), `resume.pt` and, at the end,
`metrics.json`. The order of images and their augmentation are functions of (seed, epoch, step) alone, so a run that is
cut off goes on where it was and ends with the same bytes.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import create_optimizer_v2
from timm.scheduler import MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from wsurgery.checkpoint import AtomicFile, Checkpoint, open_checkpoint
from wsurgery.checkpoint.provenance import History, Record, describe_input, make_record
from wsurgery.checkpoint.spool import seekable
from wsurgery.data.augment import augment, normalise
from wsurgery.data.dataset import Dataset
from wsurgery.data.sources import portable_name
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.models import create, load_into, save
from wsurgery.models.load import architecture_of
from wsurgery.training.metrics import auc_per_label, macro
from wsurgery.training.predict import fit_channels, image_statistics, predict
from wsurgery.training.settings import Settings

LOG_EVERY = 10  # steps
THRESHOLDS = tuple(round(0.5 + 0.01 * i, 2) for i in range(50))  # of macro AUC, in metrics.json
Entry = dict[str, Any]


@dataclass
class Progress:
    """Where a run stands; all of it goes into `resume.pt`."""

    begun: bool = False  # whether step 0 has been evaluated
    step: int = 0
    best_auc: float = -1.0
    best_step: int = 0


def freeze(model: nn.Module, globs: tuple[str, ...]) -> list[nn.Module]:
    """Take the tensors that `globs` name out of training.

    Returns:
        The modules whose running statistics are frozen: they must be in eval mode during training.

    Raises:
        WsurgeryError: a glob names no tensor of the network, or everything is frozen.
    """
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise WsurgeryError(f"the freeze specification names {printable(glob)!r}, which matches no tensor")

    def frozen(name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in globs)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise WsurgeryError("the freeze specification leaves nothing to train: freeze fewer blocks")
    return [
        module
        for prefix, module in model.named_modules()
        if "running_mean" in module._buffers and frozen(f"{prefix}.running_mean")
    ]


def train(
    init: str | Path,
    run: Path,
    training: Dataset,
    validation: Dataset,
    settings: Settings,
    *,
    data: str,
    arguments: list[str],
    device: torch.device,
    arch: str | None = None,
    report: Callable[[Entry], None] = lambda entry: None,
) -> Entry:
    """Train a checkpoint, or go on with a run that was cut off.

    Args:
        init: the checkpoint to start from: a file, a folder of shards, a URL, or `-` for standard input.
        run: the run folder, made if it is missing.
        training: images to learn from.
        validation: images to evaluate on.
        settings: what to do.
        data: the data specification, for the record.
        arguments: the command line's settings, for the record.
        device: where to compute.
        arch: the architecture's name, for a checkpoint that does not say it.
        report: called with every entry of the log.

    Returns:
        What `metrics.json` holds: `steps`, `best` and `last` (each with `step` and `macro_auc`), and `steps_to_auc`
        (threshold → first evaluated step that reaches it, or null).

    Raises:
        UsageError: the run folder belongs to other settings or another checkpoint.
        WsurgeryError: checkpoint and data do not fit together, or the loss is not finite.
    """
    with open_checkpoint(init) as opened, seekable(opened) as checkpoint:
        history = History.of(checkpoint)
        architecture = architecture_of(checkpoint, arch)
        model = create(architecture)
        load_into(model, checkpoint)
        described = describe_input(checkpoint, history, flows=True)
        digest = described["header"] if "header" in described else described["blake3"].result()
        _require_fit(model, training, validation)
        config = {
            "settings": asdict(settings),
            "init": {"name": checkpoint.name, "digest": digest},
            "data": {"spec": data, "train": training.digest, "validation": validation.digest},
            "labels": list(training.label_names),
            "device": device.type,
        }
        loop = _Loop(model.to(device), training, validation, settings, device, history.freeze)
        _claim_folder(run, config, checkpoint)
    finished = run / "metrics.json"
    if finished.exists():
        (run / "resume.pt").unlink(missing_ok=True)
        metrics: Entry = json.loads(finished.read_text())
        return metrics
    record = make_record("train", ["--data", portable_name(data), *arguments], seed=settings.seed, inputs=[described])
    before = History(architecture, history.freeze, history.log, history.others)
    loop.resume(run)
    with (run / "log.jsonl").open("a") as log:
        for entry in loop.entries():
            log.write(json.dumps(entry) + "\n")
            log.flush()
            report(entry)
            if "macro_auc" in entry:
                if loop.progress.best_step == entry["step"]:
                    _save(model, before, record, run / "best.safetensors")
                _save(model, before, record, run / "last.safetensors")
                loop.save(run)
    metrics = _summarise(run / "log.jsonl")
    _write_json(finished, metrics)
    (run / "resume.pt").unlink()
    return metrics


class _Loop:
    """A network in training, with all that resuming needs."""

    def __init__(
        self,
        model: nn.Module,
        training: Dataset,
        validation: Dataset,
        settings: Settings,
        device: torch.device,
        frozen: tuple[str, ...],
    ) -> None:
        self.model, self.training, self.validation = model, training, validation
        self.settings, self.device = settings, device
        self.still = freeze(model, frozen)
        self.batch_size = min(settings.batch_size, len(training.images))
        self.epoch_steps = len(training.images) // self.batch_size
        self.steps = settings.steps if settings.steps is not None else (settings.epochs or 0) * self.epoch_steps
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            self.optimizer = create_optimizer_v2(
                trainable, opt=settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay, momentum=0.9
            )
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # what timm's optimisers raise
            raise UsageError(f"optimizer {printable(settings.optimizer)}: {printable(str(error))}") from None
        self.scheduler = self._scheduler()
        self.progress = Progress()
        self.mean, self.std = image_statistics(model)

    def _scheduler(self) -> Scheduler | None:
        if not (self.settings.warmup_epochs or self.settings.decay_epochs):
            return None
        return MultiStepLRScheduler(
            self.optimizer,
            decay_t=[epoch * self.epoch_steps + 1 for epoch in self.settings.decay_epochs],  # timm decays a step early
            decay_rate=0.1,
            warmup_t=self.settings.warmup_epochs * self.epoch_steps,
            warmup_lr_init=0.0,
            warmup_prefix=False,  # epochs count from the beginning, not from the end of the warm-up
            t_in_epochs=False,
        )

    def resume(self, run: Path) -> None:
        """Take up the state that `save` left in the run folder, if any, and cut the log back to it."""
        state_file, log = run / "resume.pt", run / "log.jsonl"
        kept = 0
        if state_file.exists():
            state = torch.load(state_file, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            kept = state["log_bytes"]
        if log.exists():
            with log.open("r+b") as stream:
                stream.truncate(kept)

    def save(self, run: Path) -> None:
        """Write all that `resume` needs, at once or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "log_bytes": (run / "log.jsonl").stat().st_size,
        }
        with AtomicFile(run / "resume.pt", force=True) as stream:
            torch.save(state, stream)

    def entries(self) -> Iterator[Entry]:
        """Train to the end, yielding an entry for the log every few steps and at each evaluation."""
        every = self.settings.eval_every or self.epoch_steps
        if not self.progress.begun:
            self.progress.begun = True
            yield self._evaluate({"step": 0, "epoch": 0})
        losses: list[torch.Tensor] = []
        began = time.monotonic()
        while self.progress.step < self.steps and not self._is_good_enough():
            losses.append(self._step(self.progress.step))
            self.progress.step += 1
            step = self.progress.step
            evaluate = step % every == 0 or step == self.steps
            if not evaluate and step % LOG_EVERY:
                continue
            loss = float(torch.stack(losses).mean())
            if not math.isfinite(loss):
                raise WsurgeryError(f"the loss is {loss} at step {step}: try a lower --lr")
            entry = {
                "step": step,
                "epoch": step / self.epoch_steps,
                "loss": loss,
                "lr": self.optimizer.param_groups[0]["lr"],
                "images_per_second": len(losses) * self.batch_size / (time.monotonic() - began),
            }
            yield self._evaluate(entry) if evaluate else entry
            losses, began = [], time.monotonic()

    def _is_good_enough(self) -> bool:
        return self.settings.until_auc is not None and self.progress.best_auc >= self.settings.until_auc

    def _step(self, step: int) -> torch.Tensor:
        if self.scheduler is not None:
            self.scheduler.step_update(step)
        self.model.train()
        for module in self.still:
            module.eval()
        epoch, within = divmod(step, self.epoch_steps)
        indices = self._order(epoch)[within * self.batch_size : (within + 1) * self.batch_size]
        batch = torch.from_numpy(self.training.images[indices]).to(self.device)
        labels = torch.from_numpy(self.training.labels[indices]).to(self.device)
        seed = self.settings.seed
        images = augment(batch, self.settings.augmentation, seed=seed, epoch=epoch, indices=indices)
        logits = self.model(fit_channels(normalise(images, self.mean, self.std), self.model))
        loss = masked_loss(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.training.images))

    def _evaluate(self, entry: Entry) -> Entry:
        logits = predict(self.model, self.validation, device=self.device)
        aucs = auc_per_label(self.validation.labels, logits, self.validation.label_names)
        mean = macro(aucs)
        if mean is not None and mean > self.progress.best_auc:
            self.progress.best_auc, self.progress.best_step = mean, entry["step"]
        return {**entry, "auc": aucs, "macro_auc": mean}


def masked_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy averaged over the known labels.

    Args:
        logits: (b, k).
        labels: (b, k), 0 or 1, NaN for unknown.
    """
    known = ~labels.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def _require_fit(model: nn.Module, training: Dataset, validation: Dataset) -> None:
    wanted, given = int(getattr(model, "num_classes", 0)), len(training.label_names)
    if wanted != given:
        raise WsurgeryError(
            f"the network has {wanted} outputs and the data {given} labels: give init --num-classes {given}, "
            "and transfuse below the head"
        )
    shared = set(training.patients) & set(validation.patients)
    if shared:
        raise WsurgeryError(f"patient {printable(min(shared))} is in both training and validation: split by patient")


def _claim_folder(run: Path, config: Entry, init: Checkpoint) -> None:
    run.mkdir(parents=True, exist_ok=True)
    settled = run / "config.json"
    as_read = json.loads(json.dumps(config))
    if not settled.exists():
        leftovers = [path.name for path in run.iterdir() if not path.name.startswith(".") and path.suffix != ".tmp"]
        if leftovers and leftovers != ["init.safetensors"]:
            raise UsageError(f"{printable(str(run))} holds {printable(leftovers[0])} and no run: choose another folder")
        with AtomicFile(run / "init.safetensors", force=True) as target:
            init.copy_whole_to(target)
        _write_json(settled, as_read)
        return
    before = json.loads(settled.read_text())
    for key in as_read:
        if as_read[key] != before.get(key):
            raise UsageError(
                f"{printable(str(run))} was begun with other {key}: choose another folder with -o, or remove it"
            )


def _save(model: nn.Module, before: History, record: Record, path: Path) -> None:
    save(model.state_dict(), before.then({**record, "output": path.name}), path, force=True)


def _summarise(log: Path) -> Entry:
    evaluated = [entry for entry in map(json.loads, log.read_text().splitlines()) if "macro_auc" in entry]
    scored = [entry for entry in evaluated if entry["macro_auc"] is not None]
    best = max(scored, key=lambda entry: entry["macro_auc"], default=evaluated[0])

    def first(threshold: float) -> int | None:
        return next((entry["step"] for entry in scored if entry["macro_auc"] >= threshold), None)

    return {
        "steps": evaluated[-1]["step"],
        "best": {key: best[key] for key in ("step", "macro_auc")},
        "last": {key: evaluated[-1][key] for key in ("step", "macro_auc")},
        "steps_to_auc": {f"{threshold:.2f}": first(threshold) for threshold in THRESHOLDS},
    }


def _write_json(path: Path, value: Entry) -> None:
    with AtomicFile(path, force=True) as stream:
        stream.write(json.dumps(value, indent=2).encode() + b"\n")
