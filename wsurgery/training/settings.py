"""What a run does: the resolved settings, and the paper's two presets."""

from dataclasses import dataclass
from typing import NamedTuple

from wsurgery.data.augment import Augmentation

MILD = Augmentation(crop=0.1, flip_horizontal=False, flip_vertical=False, hue=0.02, contrast=0.2)


@dataclass(frozen=True)
class Settings:
    """Every choice of a training run.

    Attributes:
        steps: length in optimiser steps; None when `epochs` says it.
        epochs: length in passes over the training images; None when `steps` says it.
        batch_size: images a step, in all processes together.
        lr: learning rate at its highest.
        optimizer: a name that timm knows (`adam`, `momentum` for SGD with momentum, `adamw`, …).
        weight_decay: as the optimiser takes it.
        warmup_epochs: epochs in which the learning rate rises from 0.
        decay_epochs: epochs at which the learning rate is divided by 10.
        image_size: side of the square image in pixels, of all splits; None is the shorter side of the first image to train on.
        subset: number of training images, in whole patients; None is all.
        eval_subset: number of images to evaluate on at most, in whole patients; None is all of the split.
        eval_every: steps between evaluations; None is once an epoch.
        until_auc: stop once the macro AUC reaches this; None never.
        seed: of the order of images and the augmentation.
        augmentation: what is done to each training image.
        grad_clip: largest norm of the gradient of all weights together; None is any.
        ema: share of the moving average of the weights that stays at each step; None is no average. With one, it is
            the average that is evaluated and saved.
        patience: stop after this many evaluations in a row without a better macro AUC; None never.
        precision: of a step: `fp32`, which is exact on CUDA devices, too; `tf32`, in which they round what they multiply to
            ten bits; or `bf16`, where autocast takes it. Evaluation is in fp32.
        compile: whether torch.compile makes kernels for the network.
        no_cuda_graph: whether a step is launched kernel by kernel on CUDA, where it could be recorded as one graph.
        sync_bn: whether batch norm in training takes the moments of the whole batch, not of each process's share.
        deterministic: whether torch takes only operations that give the same bits each time. On a CPU it does so anyway.
        loss: `bce` for labels that may be true together, `softmax` for classes of which each image has exactly one.
        pos_weight: with `bce`, how much a positive counts for a negative: by label, 1 for those that are not named, or
            `auto`, negatives over positives of the training images; None is 1.
        lr_scale: block, or glob of tensor names → factor of the learning rate; of several for a tensor the last counts.
            0 freezes.
        keep_zeros: whether weights of convolutions and linear layers that are zero at the start stay zero.
        lr_decay: factor of the learning rate from the head down, once for each block; None is 1.
    """

    steps: int | None = None
    epochs: int | None = 10
    batch_size: int = 32
    lr: float = 1e-3
    optimizer: str = "adam"
    weight_decay: float = 0.0
    warmup_epochs: int = 0
    decay_epochs: tuple[int, ...] = ()
    image_size: int | None = None
    subset: int | None = None
    eval_subset: int | None = None
    eval_every: int | None = None
    until_auc: float | None = None
    seed: int = 0
    augmentation: Augmentation = MILD
    grad_clip: float | None = None
    ema: float | None = None
    patience: int | None = None
    precision: str = "fp32"
    compile: bool = False
    no_cuda_graph: bool = False
    sync_bn: bool = False
    deterministic: bool = False
    loss: str = "bce"
    pos_weight: str | tuple[tuple[str, float], ...] | None = None
    lr_scale: tuple[tuple[str, float], ...] = ()
    lr_decay: float | None = None
    keep_zeros: bool = False

    def length(self, images: int) -> "Length":
        """Return how long a run on `images` training images is."""
        batch_size = min(self.batch_size, images)
        epoch_steps = images // batch_size
        return Length(
            batch_size, epoch_steps, self.steps if self.steps is not None else (self.epochs or 0) * epoch_steps
        )


class Length(NamedTuple):
    """Images a step, steps an epoch, and steps in all."""

    batch_size: int
    epoch_steps: int
    steps: int


# Raghu et al. 2019, appendix A. The paper does not say how mild its crop, hue and contrast are: MILD is our reading, nor
# how long it trains on retina images: 20 epochs of them are ours.
PRESETS = {
    "retina": Settings(
        epochs=20,
        batch_size=8,
        lr=1e-3,
        optimizer="adam",
        image_size=587,
        augmentation=Augmentation(crop=0.1, flip_horizontal=True, flip_vertical=True, hue=0.02, contrast=0.2),
    ),
    "chexpert": Settings(
        epochs=100,
        batch_size=32,
        lr=0.1 * 32 / 256,
        optimizer="momentum",  # timm's name for SGD with momentum 0.9 and without Nesterov's
        warmup_epochs=5,
        decay_epochs=(30, 60, 90),
        image_size=224,
    ),
}
