"""The training loop: from an edited checkpoint to a run folder, step by step reproducible.

A run folder holds `config.json` (the resolved settings and the digests of the inputs), `init.safetensors` (as training
began), `log.jsonl`, `last.safetensors`, `best.safetensors` (highest macro AUC), `resume.pt` and, at the end,
`metrics.json`. The order of images and their augmentation are functions of (seed, epoch, step) alone, so a run that is
cut off goes on where it was and ends with the same bytes: on a CPU with as many threads, on a CUDA device with `deterministic`.
"""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from wsurgery.checkpoint import Checkpoint, open_checkpoint
from wsurgery.checkpoint.provenance import History, describe_input, make_record
from wsurgery.checkpoint.spool import seekable
from wsurgery.checkpoint.writer import write_all
from wsurgery.data.dataset import Dataset
from wsurgery.data.sources import portable_name
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.models import save
from wsurgery.models.load import architecture_of, create_for, load_into
from wsurgery.models.own import Model
from wsurgery.processes import ALONE, Processes
from wsurgery.training.environment import environment
from wsurgery.training.interruption import Interrupted, signals_ignored, signals_noted
from wsurgery.training.predictions import require_exclusive
from wsurgery.training.layer_rates import lr_scales
from wsurgery.training.optimisation import (
    freeze,
    make_optimizer,
    make_scheduler,
    masked_loss,
    positive_weights,
    softmax_loss,
    zeros_of_layers,
)
from wsurgery.training.predict import predict
from wsurgery.training.predictions import from_logits, require_exclusive
from wsurgery.training.resume import Progress, read_state, write_state
from wsurgery.training.run_folder import Entry, claim_folder, lengthen_folder, summarise, write_json
from wsurgery.training.run_log import read_metrics
from wsurgery.training.settings import Settings
from wsurgery.training.trainer import Trainer, require_outputs
from wsurgery.untrusted import open_own


def train(
    init: str | Path | AbstractContextManager[Checkpoint],
    run: Path,
    training: Dataset,
    validation: Dataset,
    settings: Settings,
    *,
    data: str,
    eval_split: str = "valid",
    arguments: list[str],
    device: torch.device,
    arch: str | None = None,
    model: Model | None = None,
    network: nn.Module | None = None,
    anew: bool = False,
    report: Callable[[Entry], None] = lambda entry: None,
    processes: Processes = ALONE,
    signalled: Callable[[], int] | None = None,
) -> Entry:
    """Train a checkpoint, or go on with a run that was cut off, or that ended and is to be longer.

    Args:
        init: the checkpoint to start from: a file, a folder of shards, a URL, `-` for standard input, or what opens one.
        run: the run folder, made if it is missing.
        training: images to learn from.
        validation: images to evaluate on.
        settings: what to do.
        data: the data specification, for the record.
        eval_split: the name of the split to evaluate on, for the record.
        arguments: the command line's settings, for the record.
        device: where to compute.
        arch: the architecture's name, for a checkpoint that does not say it.
        model: what makes the network, if timm does not: see `wsurgery.models.load`.
        network: the network itself, with the weights of the checkpoint; it is trained. Default: what the checkpoint says.
        anew: where the folder holds a run of other settings, weights or data, replace that run.
        report: called with every entry of the log, in the first process.
        processes: which train together; the first one writes the folder.
        signalled: returns the number of a signal that asks the run to end, 0 if none came. Default: those of
            `wsurgery.ending.ASKING` do, once it has begun.

    Returns:
        What `metrics.json` holds: `steps`, `best` and `last` (each with `step` and `macro_auc`), and `steps_to_auc`
        (threshold → step from which three evaluations in a row reach it, or null), and the `environment`.

    Raises:
        UsageError: the run folder belongs to other settings or another checkpoint, and `anew` is not given.
        WsurgeryError: checkpoint and data do not fit together, or the loss is not finite.
        Interrupted: a signal came; the state after the last step is saved.
    """
    if str(init) == "-" and processes.count > 1:
        raise UsageError("several processes cannot share standard input: give INIT as a file")
    with open_checkpoint(init) if isinstance(init, (str, Path)) else init as opened, seekable(opened) as checkpoint:
        history = History.of(checkpoint)
        architecture = None
        if network is None or arch or model is not None:
            architecture = architecture_of(checkpoint, arch, model)
        if network is None:
            assert architecture is not None
            network = create_for(checkpoint, architecture, model=model)
        described = describe_input(checkpoint, history, flows=True)
        digest = described["header"] if "header" in described else described["blake3"].result()
        _require_fit(network, training, validation)
        if settings.loss == "softmax":
            for split, dataset in (("training", training), ("validation", validation)):
                require_exclusive(f"--loss softmax: {split}", dataset.labels, dataset.paths)
        own = {key: value for key, value in (architecture or {}).items() if key == "model"}
        config = {
            "settings": asdict(settings),
            "init": {"name": checkpoint.name, "digest": digest},
            "data": {
                "spec": data,
                "train": training.digest,
                "validation": validation.digest,
                **asdict(training.rendering),
                **({"fold": training.fold} if training.fold else {}),
            },
            "labels": list(training.label_names),
            "device": device.type,
            **own,
        }
        loop = Trainer(network, training, validation, settings, device, history.freeze, processes, history.blocks)
        if loop.pos_weight is not None:
            config["pos_weight"] = dict(zip(training.label_names, loop.pos_weight.tolist(), strict=True))
        theirs = processes.from_first(config)
        other = [key for key in config if config[key] != theirs.get(key)]
        processes.refuse(
            WsurgeryError(f"process {processes.rank} of {processes.count} has other {other[0]} than the first one")
            if other
            else None
        )
        shorter = processes.in_first(lambda: claim_folder(run, config, checkpoint, anew=anew))
    arguments = [*arguments, *(["--model", own["model"]] if own else [])]
    words = ["--data", portable_name(data, training.rendering), *arguments]
    record = {
        **make_record("train", words, seed=settings.seed, inputs=[described]),
        **loop.trained_on(eval_split).recorded(),
    }
    before = replace(history, architecture=architecture)

    def record_best() -> None:
        path = run / "best.safetensors"
        best = deepcopy(loop.evaluated)
        with open_checkpoint(path) as checkpoint:
            load_into(best, checkpoint)
        save(best.state_dict(), before.then({**record, "output": path.name}), path, force=True)

    if shorter is not None:
        length = replace(settings, steps=shorter.steps, epochs=shorter.epochs).length(len(training.images))
        every = settings.eval_every or length.epoch_steps
        lengthen = partial(lengthen_folder, run, config, steps=loop.steps, before=length.steps, every=every, anew=anew)
        processes.in_first(lambda: lengthen(record_best=record_best))
    finished = run / "metrics.json"

    def read_finished() -> Entry | None:
        if not finished.exists():
            return None
        os.utime(finished)  # now: make compares it with what the run was made from
        return {**read_metrics(finished)}

    if (already := processes.in_first(read_finished)) is not None:
        return already

    def publish() -> None:
        for name in ("best", "last") if loop.progress.best_step == loop.progress.step else ("last",):
            path = run / f"{name}.safetensors"
            save(loop.evaluated.state_dict(), before.then({**record, "output": path.name}), path, force=True)

    # `resume.pt` decides: what it holds has happened. It is written after the log, which is cut back to it, and before
    # the checkpoints, which are written again from it when a run goes on. The other way round, a run killed in between
    # would leave a best.safetensors of a step that it then takes again, perhaps with another AUC: on a GPU, or with
    # another number of threads or processes.
    has_state = processes.from_first((run / "resume.pt").exists())  # one answer for all, who then must find it, too
    resumed = processes.in_turn(lambda: loop.resume(run, has_state=has_state))
    processes.wait()  # nobody changes the folder before all have read it
    first, cuda = processes.is_first, [device] if device.type == "cuda" else []
    noted = signals_noted() if signalled is None else nullcontext(signalled)
    with (
        noted as asked,
        open_own(run / "log.jsonl", "ab") if first else nullcontext() as log,
        torch.random.fork_rng(cuda),
    ):
        if first and resumed:
            publish()
        if first and loop.ended and loop.progress.step < loop.steps:
            loop.ended = False
            loop.save(run)  # with the length of the log, which grows now
        for entry in loop.entries(asked):
            if log is None:
                continue
            write_all(log, json.dumps(entry).encode() + b"\n")
            report(entry)
            if "macro_auc" in entry:
                os.fsync(log.fileno())
                loop.save(run)
                publish()
        if loop.signal:

            def leave() -> None:
                assert log is not None
                os.fsync(log.fileno())
                loop.save(run)

            with signals_ignored():
                processes.in_first(leave)  # while the others wait: a launcher ends all as soon as one has ended
            if log is None:
                raise SystemExit(128 + loop.signal)
            raise Interrupted(loop.signal, loop.progress.step, loop.steps)

    def finish() -> Entry:
        metrics = summarise(run / "log.jsonl") | {"environment": environment(device, processes, training, validation)}
        if not loop.ended:
            loop.ended = True
            loop.save(run)
        write_json(finished, metrics)
        return metrics

    return processes.in_first(finish)  # who alone has written the log to its end


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
        processes: Processes = ALONE,
        blocks: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.training, self.validation, self.settings = training, validation, settings
        self.device, self.processes = device, processes
        self.signal = 0  # the signal that ended the run
        self.ended = False  # whether its state in the folder is that of a run that went to its end
        self.batch_size, self.epoch_steps, self.steps = settings.length(len(training.images))
        self.share, rest = divmod(self.batch_size, processes.count)
        if rest:
            raise UsageError(
                f"a batch of {self.batch_size} images has no equal shares for {processes.count} processes: "
                "choose a multiple with --global-batch"
            )
        self.group = processes.on_cuda if device.type == "cuda" else None
        if settings.sync_bn and processes.count > 1:
            model = convert_sync_batchnorm(model, self.group)  # type: ignore[no-untyped-call]
        self.model = model
        self.model.to(device).to(memory_format=memory_format(device))
        self.model.train()
        scales: dict[str, float] = {}
        if settings.lr_scale or settings.lr_decay is not None:
            scales = lr_scales(self.model, scale=settings.lr_scale, decay=settings.lr_decay, blocks=blocks)
        # At a rate of 0 weights may still move by weight decay, and running statistics do.
        for module in freeze(self.model, frozen, {name for name, scale in scales.items() if not scale}):
            module.eval()
        trained = {name: x for name, x in self.model.named_parameters() if x.requires_grad}
        self.parameters = list(trained.values())
        self.kept_zeros = zeros_of_layers(self.model) if settings.keep_zeros else []  # before a state is taken up
        own_scales = [scales[name] for name in trained] if scales else None
        self.optimizer = make_optimizer(self.parameters, settings, own_scales)
        self.first_scale = self.optimizer.param_groups[0]["lr"] / settings.lr if scales and settings.lr else 1.0
        self.pos_weight: torch.Tensor | None = None
        if settings.pos_weight is not None:
            weights = positive_weights(settings.pos_weight, training.label_names, training.labels)
            self.pos_weight = torch.from_numpy(weights).to(device)
        self.scheduler = make_scheduler(self.optimizer, settings, epoch_steps=self.epoch_steps)
        self.average = ModelEmaV3(self.model, decay=settings.ema) if settings.ema is not None else None
        self.evaluated = self.model if self.average is None else self.average.module
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        if processes.count > 1:
            self.forward = DistributedDataParallel(self.model, process_group=self.group)
        if settings.compile:
            self.forward = torch.compile(self.forward)
        self.progress = Progress()
        self.untried = False  # whether the optimiser has its state from a file, and has not worked on it yet
        self.mean, self.std = image_statistics(self.model)
        self._try_forward()

    def _try_forward(self) -> None:
        """Refuse images that the network cannot take, or a batch that its batch norms cannot, before a run begins.

        Only shapes pass through it. Where that fails a copy of it gets real numbers, for not every network runs without.
        """
        _, height, width, _ = self.training.images.shape
        shape = (self.share, 3, height, width)
        state = {name: x.to("meta") for name, x in (*self.model.named_parameters(), *self.model.named_buffers())}
        try:
            images = fit_channels(torch.empty(shape, device="meta"), self.model)
            logits = torch.func.functional_call(self.model, state, images)
        except Exception:
            with torch.no_grad(), torch.random.fork_rng([]):
                images = fit_channels(torch.zeros(shape, device=self.device), self.model)
                logits = run(deepcopy(self.model), images)
        _require_outputs(logits.shape[-1], self.training)

    def trained_on(self, eval_split: str) -> TrainedOn:
        """Return what the record says of the data, for whoever uses the network."""
        return TrainedOn(
            image_size=self.training.images.shape[1],
            channels=getattr(self.model, "in_chans", 3),
            mean=self.mean,
            std=self.std,
            labels=self.training.label_names,
            fit=self.training.rendering.fit,
            window=self.training.rendering.window,
            loss="softmax" if self.settings.loss == "softmax" else "bce",
            eval_split=eval_split,
            digest=self.training.digest,
        )

    def resume(self, run: Path, *, has_state: bool) -> bool:
        """Take up the state that `save` left in the run folder, if it did, and cut the log back to it; return `has_state`."""
        state, log = run / "resume.pt", run / "log.jsonl"
        kept: int | None = 0
        if has_state:
            self.progress, kept = read_state(
                state,
                network=self.model,
                optimizer=self.optimizer,
                average=self.average and self.evaluated,
                steps=self.steps,
                log_bytes=log.stat().st_size if log.exists() else 0,
            )
        self.untried, self.ended = has_state, kept is None
        if kept is not None and log.exists() and self.processes.is_first:
            with open_own(log, "r+b") as stream:
                stream.truncate(kept)
        return has_state

    def save(self, run: Path) -> None:
        """Write all that `resume` needs, at once or not at all; of a run that ended, the same whatever its speed was."""
        with AtomicFile(run / "resume.pt", force=True) as stream:
            write_state(
                stream,
                network=self.model,
                optimizer=self.optimizer,
                average=self.average and self.evaluated,
                progress=self.progress,
                log_bytes=None if self.ended else (run / "log.jsonl").stat().st_size,
            )

    def entries(self, signalled: Callable[[], int] = lambda: 0) -> Iterator[Entry]:
        """Train to the end or to a signal, yielding an entry for the log every few steps and at each evaluation."""
        every = self.settings.eval_every or self.epoch_steps
        if not self.progress.begun:
            self.progress.begun = True
            yield self._evaluate({"step": 0, "epoch": 0})
        losses: list[torch.Tensor] = []  # they stay on the device until the log wants them
        began = time.monotonic()
        while self.progress.step < self.steps and not self._is_good_enough():
            self.signal = self.processes.largest(signalled())
            if self.signal:
                self.progress.losses += self._gathered(losses)
                return
            losses.append(self._step(self.progress.step))
            self.progress.step += 1
            step = self.progress.step
            evaluate = step % every == 0 or step == self.steps
            if not evaluate and step % LOG_EVERY:
                continue
            gathered = self._gathered(losses)
            loss = float(torch.tensor([*self.progress.losses, *gathered]).mean())
            if not math.isfinite(loss):
                raise WsurgeryError(f"the loss is {loss} at step {step}: try a lower --lr")
            self.progress.losses = ()
            entry = {
                "step": step,
                "epoch": step / self.epoch_steps,
                "loss": loss,
                "lr": self.optimizer.param_groups[0]["lr"] / self.first_scale,
                "images_per_second": len(losses) * self.batch_size / (time.monotonic() - began),
            }
            yield self._evaluate(entry) if evaluate else entry
            losses, began = [], time.monotonic()

    def _is_good_enough(self) -> bool:
        reached = self.settings.until_auc is not None and self.progress.best_auc >= self.settings.until_auc
        return reached or (self.settings.patience is not None and self.progress.stale >= self.settings.patience)

    def _gathered(self, losses: list[torch.Tensor]) -> tuple[float, ...]:
        return tuple(self.processes.means(torch.stack(losses).tolist())) if losses else ()

    def _step(self, step: int) -> torch.Tensor:
        """Take one step; return the loss, whose mean over the processes is that of the whole batch."""
        with arithmetic(self.settings.precision):
            return self._exact_step(step)

    def _exact_step(self, step: int) -> torch.Tensor:
        if self.scheduler is not None:
            self.scheduler.step_update(step)
        epoch, within = divmod(step, self.epoch_steps)
        whole = self._order(epoch)[within * self.batch_size : (within + 1) * self.batch_size]
        mine = slice(self.processes.rank * self.share, (self.processes.rank + 1) * self.share)
        indices, seed = whole[mine], self.settings.seed
        batch, labels = self._on_device(self.training.images[indices]), self._on_device(self.training.labels[indices])
        images = augment(
            batch, self.settings.augmentation,
            seed=seed, epoch=epoch, indices=indices, mean=self.mean, std=self.std,
        )  # fmt: skip
        images = fit_channels(images, self.model)
        self._seed(step)
        bf16 = torch.autocast(self.device.type, torch.bfloat16) if self.settings.precision == "bf16" else nullcontext()
        with bf16:
            logits = run(self.forward, images)
        exclusive = self.settings.loss == "softmax"
        loss = (
            softmax_loss(logits.float(), labels) if exclusive else masked_loss(logits.float(), labels, self.pos_weight)
        )
        if self.processes.count > 1 and not exclusive:
            # The mean over the known labels of the whole batch, which every process can count, is not the mean of the
            # processes' means. DDP divides the sum of the gradients by the number of processes.
            known = ~np.isnan(self.training.labels[whole])
            loss = loss * (self.processes.count * float(known[mine].sum()) / max(1.0, float(known.sum())))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, zero in self.kept_zeros:  # what does not move has no part in the gradient's norm
            if parameter.grad is not None:
                parameter.grad.masked_fill_(zero, 0)
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.grad_clip)
        self._move()
        with torch.no_grad():
            for parameter, zero in self.kept_zeros:
                parameter.masked_fill_(zero, 0)
        if self.average is not None:
            self.average.update(self.model, step=step + 1)
        return loss.detach()

    def _move(self) -> None:
        """Have the optimiser take its step; the state that it has from a file may be none that it can work on."""
        try:
            self.optimizer.step()
        except Exception as error:  # an optimiser's own, for tensors of any kind
            if not self.untried or is_out_of_memory(error):
                raise
            raise WsurgeryError(
                f"resume.pt does not fit the optimizer ({printable(str(error))}): remove it to begin again"
            ) from None
        self.untried = False

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return _permutation(self.settings.seed, epoch, len(self.training.images))

    def _on_device(self, array: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)  # waits for nothing, and nothing for it

    def _seed(self, step: int) -> None:
        """Let dropout, which draws from torch's own generator, draw by (seed, step, process) alone."""
        words = np.random.SeedSequence([self.settings.seed, step, self.processes.rank]).generate_state(1, np.uint64)
        seed = int(words[0])
        if self.device.type == "cuda":
            with on_device(self.device):
                torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def _evaluate(self, entry: Entry) -> Entry:
        if self.processes.count > 1:  # the first one's running statistics are the network's
            for buffer in self.evaluated.buffers():
                torch.distributed.broadcast(buffer, 0, group=self.group)
        logits = predict(self.evaluated, self.validation, device=self.device, processes=self.processes)
        found = from_logits("the network", self.validation, logits, exclusive=self.settings.loss == "softmax")
        aucs, more = aucs_of(found)
        mean = macro(aucs)
        top1 = {"top1": top1_accuracy(found)} if found.exclusive else {}
        self.progress.stale += 1
        if mean is not None and mean > self.progress.best_auc:
            self.progress.best_auc, self.progress.best_step, self.progress.stale = mean, entry["step"], 0
        return {**entry, "auc": aucs, "macro_auc": mean, **top1, **{f"{name}_auc": auc for name, auc in more.items()}}


@lru_cache(maxsize=1)
def _permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n)


def _require_fit(model: nn.Module, training: Dataset, validation: Dataset) -> None:
    require_outputs(getattr(model, "num_classes", None), training)
    shared = set(training.patients) & set(validation.patients)
    if shared:
        raise WsurgeryError(f"patient {printable(min(shared))} is in both training and validation: split by patient")
