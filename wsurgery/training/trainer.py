"""A network in training: its steps, evaluations and state; `wsurgery.training.loop` makes a run of it."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wsurgery.checkpoint import AtomicFile
from wsurgery.checkpoint.trained import TrainedOn
from wsurgery.data.augment import Augmentation, Purpose, augment, draw
from wsurgery.data.dataset import Dataset
from wsurgery.devices import arithmetic, is_out_of_memory, memory_format, on_device
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.models.inputs import fit_channels, image_statistics, logits_of, run
from wsurgery.processes import ALONE, Processes
from wsurgery.statistics.auc import macro
from wsurgery.training.distance import DistanceFromInit
from wsurgery.training.evaluation import aucs_of, top1_accuracy
from wsurgery.training.feed import Feed, Indices
from wsurgery.training.graph import Graphed
from wsurgery.training.layer_rates import lr_scales
from wsurgery.training.moving_average import MovingAverage
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
from wsurgery.training.predictions import from_logits
from wsurgery.training.resume import Progress, read_state, write_state
from wsurgery.training.run_folder import Entry
from wsurgery.training.settings import Settings
from wsurgery.untrusted import open_own

LOG_EVERY = 10  # steps
_SIGNALS_EVERY = 5  # steps, where several processes have to agree that one came


class Trainer:
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
        self.model = model
        self.model.to(device).to(memory_format=memory_format(device))
        self.model.train()
        scales: dict[str, float] = {}
        if settings.lr_scale or settings.lr_decay is not None:
            scales = lr_scales(self.model, scale=settings.lr_scale, decay=settings.lr_decay, blocks=blocks)
        # At a rate of 0 weights may still move by weight decay, and running statistics do.
        for module in freeze(self.model, frozen, {name for name, scale in scales.items() if not scale}):
            module.training = False  # not that of the modules in it
        trained = {name: x for name, x in self.model.named_parameters() if x.requires_grad}
        self.parameters = list(trained.values())
        # Both before a state is taken up: they are of the weights that the run began with.
        self.distance = DistanceFromInit(self.model, blocks) if processes.is_first else None
        self.kept_zeros = zeros_of_layers(self.model) if settings.keep_zeros else []
        own_scales = [scales[name] for name in trained] if scales else None
        self.optimizer = make_optimizer(self.parameters, settings, own_scales)
        self.first_scale = self.optimizer.param_groups[0]["lr"] / settings.lr if scales and settings.lr else 1.0
        self.pos_weight: torch.Tensor | None = None
        if settings.pos_weight is not None:
            weights = positive_weights(settings.pos_weight, training.label_names, training.labels)
            self.pos_weight = torch.from_numpy(weights).to(device)
        self.scheduler = make_scheduler(self.optimizer, settings, epoch_steps=self.epoch_steps)
        self.average = MovingAverage(self.model, settings.ema) if settings.ema is not None else None
        if settings.sync_bn and processes.count > 1:  # after the average, which copies the network: see `copied`
            self.model = convert_sync_batchnorm(self.model, self.group)  # type: ignore[no-untyped-call]
        self.evaluated = self.model if self.average is None else self.average.network
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        all_used = self._try()
        if processes.count > 1:  # the same in each: with it they exchange more
            unused = bool(processes.largest(int(not all_used)))
            self.forward = DistributedDataParallel(self.model, process_group=self.group, find_unused_parameters=unused)
        if settings.compile:
            self.forward = torch.compile(self.forward)
        self.feed = Feed(training.images, self._chosen, self.steps, device)
        alone = processes.count == 1 and not settings.deterministic
        self.graphed = Graphed(self._compute, self.optimizer, device, wanted=alone and not settings.no_cuda_graph)
        self.progress = Progress()
        self.taking = 0  # the step that is being taken
        self.untried = False  # whether the optimiser has its state from a file, and has not worked on it yet
        self.mean, self.std = image_statistics(self.model)
        self.augment = _augment_for(device)

    def _try(self) -> bool:
        """Refuse images that the network cannot take, or a batch that its batch norms cannot, before a run begins.

        On black images and copies of its buffers, which batch norm changes. On torch's device `meta` that would cost the
        import of sympy, and not every network runs there.

        Returns:
            Of several processes: whether every parameter in training has a gradient. DistributedDataParallel waits for all,
            and to look each time which it will not get takes longer.
        """
        _, height, width, _ = self.training.images.shape
        buffers = {name: x.clone() for name, x in self.model.named_buffers()}
        cuda = [self.device] if self.device.type == "cuda" else []
        several = self.processes.count > 1
        with (
            torch.set_grad_enabled(several),
            torch.random.fork_rng(cuda),
            arithmetic(self.settings.precision),
            self._autocast(),
        ):
            images = fit_channels(torch.zeros((self.share, 3, height, width), device=self.device), self.model)
            logits = logits_of(partial(torch.func.functional_call, self.model, buffers), images)
            if several:
                logits.sum().backward()  # type: ignore[no-untyped-call]
        require_outputs(logits.shape[-1], self.training)
        all_used = all(parameter.grad is not None for parameter in self.parameters)
        for parameter in self.parameters:
            parameter.grad = None
        return all_used

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
                average=self.evaluated if self.average is not None else None,
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
                average=self.evaluated if self.average is not None else None,
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
        polled = 1 if self.processes.count == 1 else _SIGNALS_EVERY
        began, late = time.monotonic(), None
        while self.progress.step < self.steps and not self._is_good_enough():
            if self.progress.step % polled == 0:
                self.signal = self.processes.largest(signalled())
            if self.signal:
                if late is not None:
                    yield late()
                self.progress.losses += self._means(losses)()
                _require_finite(self.progress.losses, self.progress.step)
                return
            losses.append(self._step(self.progress.step))
            self.progress.step += 1
            step = self.progress.step
            evaluate = step % every == 0 or step == self.steps
            if not evaluate and step % LOG_EVERY:
                continue
            rate = len(losses) * self.batch_size / (time.monotonic() - began)
            if late is not None:
                yield late()
            late = partial(self._entry, step, self._means(losses), rate)
            # A CUDA device goes on with the next steps before the losses of these are read.
            if evaluate or self.device.type != "cuda":
                yield self._evaluate(late()) if evaluate else late()
                late = None
            losses, began = [], time.monotonic()

    def _entry(self, step: int, means: Callable[[], tuple[float, ...]], rate: float) -> Entry:
        loss = _require_finite([*self.progress.losses, *means()], step)
        self.progress.losses = ()
        return {
            "step": step,
            "epoch": step / self.epoch_steps,
            "loss": loss,
            "lr": self.optimizer.param_groups[0]["lr"] / self.first_scale,
            "images_per_second": rate,
        }

    def _is_good_enough(self) -> bool:
        reached = self.settings.until_auc is not None and self.progress.best_auc >= self.settings.until_auc
        return reached or (self.settings.patience is not None and self.progress.stale >= self.settings.patience)

    def _means(self, losses: Sequence[torch.Tensor]) -> Callable[[], tuple[float, ...]]:
        """Begin to fetch losses from the device; what is returned waits for them, and takes their means over the processes."""
        if not losses:
            return tuple
        stacked = torch.stack(list(losses))
        if self.device.type != "cuda":
            return lambda: tuple(self.processes.means(stacked.tolist()))
        fetched = torch.empty(stacked.shape, pin_memory=True).copy_(stacked, non_blocking=True)
        there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record(torch.cuda.current_stream(self.device))

        def read() -> tuple[float, ...]:
            there.synchronize()
            return tuple(self.processes.means(fetched.tolist()))

        return read

    def _step(self, step: int) -> torch.Tensor:
        """Take one step; return the loss, whose mean over the processes is that of the whole batch."""
        with arithmetic(self.settings.precision):
            if self.scheduler is not None:
                self.scheduler.step_update(step)
            images, beside = self.feed.take(step)
            self._seed(step)
            self.taking = step
            return self.graphed(images, beside, settle=self.feed.settle)

    def _chosen(self, step: int) -> tuple[Indices, NDArray[np.float32]]:
        """Return which images this process sees in a step, (b,), and what goes with each, (7 + k + 1, b).

        That is what is drawn for its augmentation, its k labels, and how much its loss counts.
        """
        epoch, within = divmod(step, self.epoch_steps)
        whole = self._order(epoch)[within * self.batch_size : (within + 1) * self.batch_size]
        mine = slice(self.processes.rank * self.share, (self.processes.rank + 1) * self.share)
        indices, counts = whole[mine], 1.0
        drawn = draw(self.settings.augmentation, seed=self.settings.seed, epoch=epoch, indices=indices)
        if self.processes.count > 1 and self.settings.loss != "softmax":
            # The mean over the known labels of the whole batch, which every process can count, is not the mean of the
            # processes' means. DDP divides the sum of the gradients by the number of processes.
            known = ~np.isnan(self.training.labels[whole])
            counts = self.processes.count * float(known[mine].sum()) / max(1.0, float(known.sum()))
        labels = self.training.labels[indices].T
        return indices, np.concatenate([drawn, labels, np.full((1, len(indices)), counts, np.float32)])

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.settings.precision == "bf16" else nullcontext()

    def _compute(self, images: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        drawn, labels, counts = beside[: len(Purpose)], beside[len(Purpose) : -1].T, beside[-1, 0]
        images = self.augment(images, drawn, self.settings.augmentation, mean=self.mean, std=self.std)
        images = fit_channels(images, self.model)
        with self._autocast():
            logits = run(self.forward, images)
        exclusive = self.settings.loss == "softmax"
        loss = (
            softmax_loss(logits.float(), labels) if exclusive else masked_loss(logits.float(), labels, self.pos_weight)
        )
        loss = loss * counts
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
            self.average.update(self.model, is_first=self.taking == 0)
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
        moved = {} if self.distance is None else {"distance_from_init": self.distance.of(self.evaluated)}
        self.progress.stale += 1
        if mean is not None and mean > self.progress.best_auc:
            self.progress.best_auc, self.progress.best_step, self.progress.stale = mean, entry["step"], 0
        others = {f"{name}_auc": auc for name, auc in more.items()}
        return {**entry, "auc": aucs, "macro_auc": mean, **top1, **others, **moved}


def _require_finite(losses: Sequence[float], step: int) -> float:
    """Return the mean of the losses up to a step, 0 of none.

    Raises:
        WsurgeryError: it is not finite.
    """
    loss = float(torch.tensor(losses).mean()) if losses else 0.0
    if not math.isfinite(loss):
        raise WsurgeryError(f"the loss is {loss} at step {step}: try a lower --lr")
    return loss


def copied(network: nn.Module, group: object) -> nn.Module:
    """Return a copy of a network; the group of processes that its SyncBatchNorm has, and nobody can copy, is the same."""
    return deepcopy(network, {id(group): group})


@lru_cache(maxsize=2)  # two epochs meet in the batches that are made ahead
def _permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n)


def _augment_for(device: torch.device) -> Callable[..., torch.Tensor]:
    """Return `augment`, or what does the same in two kernels, where Triton can compile them: that takes a C compiler."""
    if device.type == "cuda":
        with suppress(Exception):  # Triton's, its compiler's and the driver's own kinds
            from wsurgery.data.augment_fused import augment as by_kernels

            nothing = Augmentation(crop=0, flip_horizontal=False, flip_vertical=False, hue=0, contrast=0)
            black = torch.zeros(1, 1, 1, 3, dtype=torch.uint8, device=device)
            by_kernels(black, torch.ones(len(Purpose), 1, device=device), nothing)
            return by_kernels
    return augment


def require_outputs(outputs: int | None, training: Dataset) -> None:
    """Require as many outputs as labels; None if the network does not say how many it has."""
    given = len(training.label_names)
    if outputs not in (None, given):
        raise WsurgeryError(
            f"the network has {outputs} outputs and the data {given} labels: wsurgery new-head --num-classes {given} gives it as "
            f"many (or init --num-classes {given}, and transfuse below the head)"
        )
