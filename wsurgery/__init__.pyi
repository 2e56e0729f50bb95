"""Composable checkpoint surgery on safetensors files. Written by tests/test_stub.py: do not edit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from torch import nn

__version__: str

class _Module(Protocol):
    def state_dict(self) -> Any: ...

Source: TypeAlias = "str | Path | Pipeline | Mapping[str, Any] | _Module"  # a file or URL; edits; what is in memory
Model: TypeAlias = str | Callable[..., nn.Module]  # FILE.py:CALLABLE, package.module:CALLABLE, or the callable

# What wsurgery.studies has; the options are there.
def train(init: Source, *, data: str | Path, output: str | Path, **options: Any) -> tuple[Path, dict[str, Any]]: ...
def evaluate(checkpoint: Source, *, data: Any, **options: Any) -> dict[str, Any]: ...
def cca(a: Source, b: Source | None = None, **options: Any) -> dict[str, Any]: ...
def path(a: Source, b: Source, *, data: str | Path, **options: Any) -> dict[str, Any]: ...
def compare(a: str | Path, b: str | Path, **options: Any) -> dict[str, Any]: ...

class Pipeline:
    """A checkpoint, and the edits that are to be made to it. It is not changed: each edit gives a new one.

    `print` shows it as the shell pipeline that does the same."""

    @property
    def names(self) -> list[str]:
        """The tensors' names, in order."""

    def write(
        self,
        path: str | Path,
        *,
        force: bool = False,
        threads: int | None = None,
        shard_size: int | str | None = None,
        part: str | None = None,
    ) -> Path | str:
        """Write a file, an object (s3://), or with a name that ends in `/` a folder of shards; each appears whole or not at all.

        Args:
            path: where to.
            force: whether what is there is replaced.
            threads: default all cores; they do not change the result.
            shard_size: bytes a shard: a number, or as `5GB`.
            part: `K/N` writes the K-th of N groups of shards only.

        Returns:
            The path.

        Raises:
            UsageError: it exists, and `force` is off.
            WsurgeryError: an input is damaged, or an edit cannot work on a tensor; the message names it.
        """

    def tensors(self, *, threads: int | None = None) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """Yield each tensor's name and array, in order and in its own dtype, with a few of them in memory."""

    def state_dict(self, *, torch: bool = False, threads: int | None = None) -> dict[str, Any]:
        """Return all tensors by name: numpy arrays (ml_dtypes' types for bfloat16 and float8), or torch tensors."""

    def load(self, arch: str | None = None, *, model: Model | None = None) -> nn.Module:
        """Return the network with these weights, in eval mode; see `wsurgery.models.load`."""

    def load_into(self, model: nn.Module) -> nn.Module:
        """Copy the tensors into a network of exactly the same names and shapes, and return it."""

    def adapt(
        self,
        *,
        in_chans: int | None = None,
        img_size: int | str | None = None,
    ) -> Pipeline:
        """Adapt a network to images with other channels or of another size, as timm does when it loads weights.

        One channel gets the sum of the first convolution's; more repeat them in turn. Tables of positions are resampled; what
        they were for, if not for square images, is read in the metadata (img_size of the architecture).

        Example: wsurgery adapt vit.safetensors --in-chans 1 --img-size 384 > grey384.safetensors
        """

    def add_noise(
        self,
        *,
        std: float,
        relative: bool = False,
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Add iid Gaussian noise to floating-point tensors.

        Batch norm's running mean and variance are left alone, unless --only or --role chooses them.

        Example: wsurgery add-noise resnet50.safetensors --std 0.1 --relative --seed 1 > noisy.safetensors
        """

    def align(
        self,
        *,
        to: Source,
    ) -> Pipeline:
        """Permute the hidden units of A so that its weights come close to those of B, which changes no output of the network.

        It is weight matching (Ainsworth, Hayase and Srinivasa 2023, arXiv 2209.04836): one group of units after another is
        assigned to that of B, until nothing changes. That is a local optimum, never further from B than A was, and the whole way
        back where A is a permutation of B. Batch norm's running statistics go along, and do not count in the distance.

        Networks are those of wsurgery permute. Needs SciPy: pip install 'wsurgery[train]'.

        Example: wsurgery align a.safetensors --to b.safetensors | wsurgery lerp - b.safetensors --t 0.5 > halfway.safetensors
        """

    def average(
        self,
        *others: Source,
        weights: Sequence[object] | str | None = None,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Average checkpoints of one architecture, in float64 and rounded once to A's types.

        Integers, and what the selectors leave out, come from A. A checkpoint of weight 0 is not read. A wrapper's prefix
        (module., model.) that only one side has is looked through, counters (num_batches_tracked) may be missing, and tensors
        that are tied in one checkpoint only are tied in the result no longer.

        Task vectors are weights, too: base + 0.4 (one - base) + 0.4 (two - base) is --weights 0.2,0.4,0.4 of base, one and two,
        and base - 0.5 (one - base), which forgets a task, --weights 1.5,-0.5.

        Example: wsurgery average base.safetensors one.safetensors two.safetensors --weights 0.2,0.4,0.4 > merged.safetensors

        Example: wsurgery average run1/best.safetensors run2/best.safetensors > soup.safetensors
        """

    def cast(
        self,
        *,
        to: Literal["fp64", "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"],
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Convert floating-point tensors to another type, rounded once to the nearest (ties to even). Integers stay.

        Finite values beyond the new type's range become infinite (NaN in fp8_e4m3) and are reported.
        8-bit weights with a scale beside them (weight_scale, weight_scale_inv, scale_weight, ...) are multiplied by it,
        which is then left out.

        Example: wsurgery cast resnet50.safetensors --to fp16 --except 'bn*' > half.safetensors
        """

    def covariance(
        self,
        *,
        of: Literal["space", "filter", "channel"],
        bn: Literal["identity", "meanvar", "keep"] = "identity",
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Resample each tensor Gaussian with the mean and covariance of its kernels, filters or channels.

        A weight is (out, in, kh, kw). Its kernels are out * in samples of kh * kw numbers (Trockman, Willmott and Kolter
        2022), its filters out samples of in * kh * kw numbers, its channels out * kh * kw samples of in numbers. Samples of one
        number, such as the kernels of linear and 1 x 1 layers, and vectors, are resampled as by meanvar.

        Example: wsurgery covariance resnet50.safetensors --of space > covariance.safetensors
        """

    def drop(
        self,
        *,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Leave out the selected tensors.

        Example: wsurgery drop resnet50.safetensors --blocks head > backbone.safetensors
        """

    def freeze_spec(
        self,
        *,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Write into the checkpoint which tensors `train` must leave alone. It replaces an earlier specification.

        Example: wsurgery freeze-spec init.safetensors --upto block1 > frozen.safetensors
        """

    def gabor(
        self,
    ) -> Pipeline:
        """Put Gabor filters in the first convolution, with the standard deviation of the weights they replace.

        Example: wsurgery init cbr_small | wsurgery gabor > gabor.safetensors
        """

    def join(
        self,
        *others: Source,
    ) -> Pipeline:
        """Put checkpoints that share no tensor together in one: those of A, then those of B, and so on.

        The architecture and what other tools say in the metadata are A's; what is frozen or tied stays so.

        Example: wsurgery join encoder.safetensors decoder.safetensors > whole.safetensors
        """

    def keep(
        self,
        *,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Leave out all but the selected tensors.

        Example: wsurgery keep resnet50.safetensors --upto block2 > lower-half.safetensors
        """

    def lerp(
        self,
        b: Source,
        *,
        t: float,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Interpolate linearly between two checkpoints: (1 - T) A + T B, in float64 and rounded once to A's types.

        Integers, and what the selectors leave out, come from A.

        Example: wsurgery lerp init.safetensors run/best.safetensors --t 0.5 > halfway.safetensors
        """

    def low_rank(
        self,
        *,
        rank: int | None = None,
        energy: float | None = None,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Replace each matrix by the nearest one of lower rank: its truncated singular value decomposition.

        The weight of a convolution or linear layer is the matrix (out, in·kh·kw). Other tensors of two dimensions or more are
        cut where --only or --role chooses them. The bytes are the same with any number of threads; LAPACK's last digits are the
        processor's.

        Example: wsurgery low-rank resnet50.safetensors --energy 0.9 > smooth.safetensors
        """

    def meanvar(
        self,
        *,
        per: Literal["tensor", "filter", "channel"] | None = None,
        bn: Literal["identity", "meanvar", "keep"] = "identity",
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Resample each tensor iid Gaussian from its own mean and variance.

        Tensors of one dimension have no filters or channels: theirs are of the whole, whatever --per says.

        Example: wsurgery meanvar resnet50.safetensors > meanvar.safetensors

        Example: wsurgery meanvar resnet50.safetensors --per filter --role conv > by-filter.safetensors
        """

    def merge(
        self,
        *others: Source,
        base: Source | None = None,
        method: Literal["task", "ties", "dare", "breadcrumbs", "slerp", "stock"],
        weights: Sequence[object] | str | None = None,
        lambda_: float | None = None,
        density: float | None = None,
        drop: float | None = None,
        beta: float | None = None,
        gamma: float | None = None,
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Merge checkpoints that were fine-tuned from one, in float64 and rounded once to A's types.

        A task vector is a checkpoint less the base, and task is base + lambda times their weighted sum (Ilharco et al. 2023,
        arXiv 2212.04089). ties keeps of each, over all selected tensors, the largest elements, elects each element's sign by
        their sum, and takes the mean of those that agree (Yadav et al. 2023, arXiv 2306.01708). dare drops elements at random
        and rescales the others (Yu et al. 2024, arXiv 2311.03099); breadcrumbs drops the smallest and the largest of each tensor
        (Davari and Belilovsky 2024, arXiv 2312.06795). stock goes from the base to the mean as far as the angle between the task
        vectors of each tensor says (Jang et al. 2024, arXiv 2403.19522). slerp goes along the arc between each two tensors, and
        takes no base; the second weight says how far (Shoemake 1985).

        Integers, and what the selectors leave out, come from A: heads of other shapes, with --except. As in average, a wrapper's
        prefix that only one side has is looked through.

        Example: wsurgery merge one.safetensors two.safetensors --base base.safetensors --method ties > merged.safetensors

        Example: wsurgery merge one.safetensors two.safetensors --method slerp --weights 0.3,0.7 > between.safetensors
        """

    def new_head(
        self,
        *,
        num_classes: int,
        seed: int = 0,
    ) -> Pipeline:
        """Replace the classifier by a fresh random one for another number of classes (the same number redraws it).

        An embedding that is tied to the classifier stays, tied to it no longer.

        Example: wsurgery new-head resnet50.safetensors --num-classes 5 --seed 1 > five.safetensors
        """

    def permute(
        self,
        *,
        seed: int = 0,
    ) -> Pipeline:
        """Permute the hidden units at random, which changes no output of the network.

        Channels, heads of attention and the units within them, and hidden units of MLPs change places: in all tensors that know
        them, batch norm's too. What a residual stream adds up is permuted as one. Inputs and outputs keep their order, and so do
        features where there is no head. It is for ResNets, CBR, VGG, DenseNet, EfficientNet, ConvNeXt, Mixer, ViT and plain MLPs.
        These are believed to be chains: no file shows a shortcut between their layers, or a norm without weights.

        Example: wsurgery permute resnet50.safetensors --seed 1 > permuted.safetensors
        """

    def prune(
        self,
        *,
        sparsity: float | None = None,
        zeros_of: Source | None = None,
        scope: Literal["tensor", "all"] = "tensor",
        by: Literal["magnitude", "random"] = "magnitude",
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Set weights to zero: exactly a share of them, the smallest ones or random ones, or those that are zero in another.

        `train --keep-zeros` keeps them so.

        Pruned are the weights of convolutions and linear layers, the first among them, but not the head's, as where lottery
        tickets are drawn in deep networks; norms and biases never. --only or --role chooses others.

        A lottery ticket is what a trained network leaves of its beginning (Frankle and Carbin 2019, arXiv 1803.03635): its own
        zeros, put on that.

        Example: wsurgery prune run/last.safetensors --sparsity 0.8 --scope all > pruned.safetensors

        Example: wsurgery prune run/init.safetensors --zeros-of pruned.safetensors > ticket.safetensors
        """

    def recalibrate_bn(
        self,
        *,
        data: str,
        split: str = "train",
        images: int = 512,
        image_size: int | None = None,
        skip_bad: bool = False,
        arch: str | None = None,
        model: str | None = None,
    ) -> Pipeline:
        """Set batch norm's running mean and variance to those of images, as they come through the network.

        A frozen batch norm normalises by its running statistics: after `init`, `meanvar` or `reset-bn` these are 0 and 1, and
        after `average` or `lerp` they belong to none of the weights. Weights and biases stay as they are.
        Between two networks, this is REPAIR (Jordan et al. 2022, arXiv 2211.08403) for layers that batch norm follows: the means
        and deviations behind it are those of the two, interpolated, where its weights have one sign in both.

        Example: wsurgery recalibrate-bn random.safetensors --data manifest.csv -o calibrated.safetensors
        """

    def rename(
        self,
        pattern: str,
        replacement: str,
        *,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        r"""Rename tensors: every match of PATTERN in a name becomes REPLACEMENT. The freeze specification and
        the aliases of tied tensors follow.

        Example: wsurgery rename '^module\.' '' ddp.safetensors > plain.safetensors
        """

    def reset_bn(
        self,
        *,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Set batch norm to the identity: weight and running variance 1, bias, running mean and counter 0.

        Example: wsurgery reset-bn resnet50.safetensors -o identity.safetensors
        """

    def sample(
        self,
        *,
        bn: Literal["identity", "meanvar", "keep"] = "identity",
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Draw each tensor's elements iid from its own values.

        Example: wsurgery sample resnet50.safetensors --blocks block3,block4 > sample.safetensors
        """

    def scale(
        self,
        *,
        by: float,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Multiply floating-point tensors by a number.

        Batch norm's running mean and variance are left alone, unless --only or --role chooses them.

        Example: wsurgery scale resnet50.safetensors --by 0.5 --blocks head > cooler.safetensors
        """

    def set_metadata(
        self,
        *,
        set_: list[str] | None = None,
        delete: list[str] | None = None,
    ) -> Pipeline:
        """Set and delete entries of the metadata that other tools read, such as license or modelspec.title.

        The entry `wsurgery`, the history, is left alone, and `format` can be set and not deleted. `show --metadata` lists all.

        Example: wsurgery set-metadata a.safetensors --set license=apache-2.0 --delete author > licensed.safetensors
        """

    def shuffle(
        self,
        *,
        within: Literal["tensor", "filter", "position"] | None = None,
        axis: Literal["out", "in", "space"] | None = None,
        bn: Literal["identity", "meanvar", "keep"] = "identity",
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Permute each tensor at random.

        Tensors of one dimension have no filters or positions for --within, and are shuffled whole; each tensor has a permutation
        of its own.

        Example: wsurgery shuffle resnet50.safetensors > shuffle.safetensors

        Example: wsurgery shuffle resnet50.safetensors --within position > by-position.safetensors
        """

    def spectrum(
        self,
        *,
        keep: Literal["left", "right", "none"] = "none",
        bn: Literal["identity", "meanvar", "keep"] = "identity",
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Keep the singular values of each tensor, and replace its singular vectors by Haar-random ones.

        A weight is the matrix (out, in * kh * kw). Tensors of one dimension have no singular vectors, and are left alone.

        Example: wsurgery spectrum resnet50.safetensors > spectrum.safetensors
        """

    def transfuse(
        self,
        source: Source,
        *,
        rest: Literal["random", "meanvar", "shuffle", "sample"] | None = None,
        bn: Literal["identity", "meanvar", "keep"] = "identity",
        seed: int = 0,
        upto: str | None = None,
        blocks: str | Sequence[str] | None = None,
        role: str | Sequence[str] | None = None,
        only: str | Sequence[str] | None = None,
        except_: str | Sequence[str] | None = None,
        block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
    ) -> Pipeline:
        """Keep pretrained weights up to a block (or in any other part); take the rest from --into, or draw it fresh.

        Fresh tensors are drawn by role, as timm draws its ResNets. For another network's own initialisation take them from
        --into: wsurgery init ARCH | wsurgery transfuse SOURCE --upto BLOCK.

        Example: wsurgery transfuse resnet50.safetensors --upto block2

        Example: wsurgery init resnet50 --num-classes 5 | wsurgery transfuse resnet50.safetensors --upto block2 > init.safetensors
        """

def open(source: Any) -> Pipeline:
    """Open a checkpoint: what the commands take as `IN`, a state dict of numpy arrays or torch tensors, or an `nn.Module`.

    Raises:
        WsurgeryError: it is no checkpoint, or a damaged one.
        OSError: it cannot be opened.
    """

def align(
    a: Source,
    *,
    to: Source,
) -> Pipeline:
    """Permute the hidden units of A so that its weights come close to those of B, which changes no output of the network.

    It is weight matching (Ainsworth, Hayase and Srinivasa 2023, arXiv 2209.04836): one group of units after another is
    assigned to that of B, until nothing changes. That is a local optimum, never further from B than A was, and the whole way
    back where A is a permutation of B. Batch norm's running statistics go along, and do not count in the distance.

    Networks are those of wsurgery permute. Needs SciPy: pip install 'wsurgery[train]'.

    Example: wsurgery align a.safetensors --to b.safetensors | wsurgery lerp - b.safetensors --t 0.5 > halfway.safetensors
    """

def average(
    *sources: Source,
    weights: Sequence[object] | str | None = None,
    upto: str | None = None,
    blocks: str | Sequence[str] | None = None,
    role: str | Sequence[str] | None = None,
    only: str | Sequence[str] | None = None,
    except_: str | Sequence[str] | None = None,
    block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
) -> Pipeline:
    """Average checkpoints of one architecture, in float64 and rounded once to A's types.

    Integers, and what the selectors leave out, come from A. A checkpoint of weight 0 is not read. A wrapper's prefix
    (module., model.) that only one side has is looked through, counters (num_batches_tracked) may be missing, and tensors
    that are tied in one checkpoint only are tied in the result no longer.

    Task vectors are weights, too: base + 0.4 (one - base) + 0.4 (two - base) is --weights 0.2,0.4,0.4 of base, one and two,
    and base - 0.5 (one - base), which forgets a task, --weights 1.5,-0.5.

    Example: wsurgery average base.safetensors one.safetensors two.safetensors --weights 0.2,0.4,0.4 > merged.safetensors

    Example: wsurgery average run1/best.safetensors run2/best.safetensors > soup.safetensors
    """

def convert(
    source: Source | None = None,
    *,
    key: str | None = None,
    arch: str | None = None,
    arg: list[str] | None = None,
    keep_names: bool = False,
) -> Pipeline:
    """Turn a checkpoint as downloaded into clean safetensors: no wrapper, no prefix, timm's names where they are known.

    Taken off are torch's own wrappers, wherever in a name they stand (DataParallel, compile, FSDP, activation checkpoints,
    AveragedModel), attributes such as model. and backbone., and what is of the training: losses and metrics beside a
    Lightning module's network, and the second encoder, queue and projection head of MoCo, DINO, MAE, SimCLR and BYOL. What
    is left out is said. Known are the names of torchvision (ViT, Swin, ConvNeXt, EfficientNet, MobileNet, VGG, DenseNet with
    dots, a ResNet in nn.Sequential; its other ResNets and DenseNets have timm's names), Hugging Face transformers (ResNet,
    ViT, DeiT, DINOv2, BEiT, Swin, ConvNeXt), Google's .npz files of ViT and BiT, Keras's DenseNet, and EfficientNet-lite. Of
    Keras's .h5 and of ONNX initialisers, with h5py and onnx (the extras keras and onnx), other names stay as found, and kernels
    become (out, in, kh, kw); in Keras 3's .weights.h5, where arrays have numbers, those of layers of Keras's own classes.
    .keras archives are not read. Pickles, of whole networks and of numpy arrays, too, are read without running the code in
    them: objects that are no tensors are left out, and a file that names what runs commands is refused. Tensors that
    safetensors cannot hold (sparse, quantised, complex128) are left out, and said. Tied tensors are written once.

    A network is recorded that config.json, a trainer, or names and shapes tell, if its tensors are those of timm's.

    The way back: -o FILE.pth, .pt or .bin writes what torch.load reads with weights_only=True, -o FILE.npz what numpy.load
    reads, of any input, as files here and not in a store, with the names that it has here (--keep-names leaves them alone).

    Example: wsurgery convert efficientnet-lite0-57934424.pth -o lite0.safetensors

    Example: wsurgery convert lite0.safetensors -o lite0.pth
    """

def fetch(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
) -> Pipeline:
    """Fetch pretrained weights as clean safetensors: timm's names, the architecture and its image settings recorded.

    NAME is one that timm knows, or a model of the Hugging Face hub: org/name, hf-hub:org/name or hf://org/name, each also
    with @REV. Its model.safetensors is taken, else its pytorch_model.bin, whole or in shards; names are changed as by
    convert, and no code in it is run. Downloads go through the hub's own cache (HF_HOME) and log-in (`hf auth login`).
    The history records the commit: fetched again with it, the bytes are the same.

    Example: wsurgery fetch resnet50.a1_in1k -o resnet50.safetensors
    """

def init(
    arch: str | None = None,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    width: float | None = None,
    arg: list[str] | None = None,
    mean: str | None = None,
    std: str | None = None,
    no_zero_init_last: bool = False,
    from_: Source | None = None,
    seed: int = 0,
) -> Pipeline:
    """Make a fresh random network, with timm's distributions, or as the callable of --model makes it.

    The CBR networks and plain ResNets are made without PyTorch: the same bytes on every machine.

    --from selects weights (Xu et al. 2024, "Initializing Models with Larger Ones", arXiv 2311.18823): each tensor from that
    of its name, so of each stage the first layers, and along each dimension evenly spaced. The head, and what has no
    counterpart, is drawn.

    Example: wsurgery init cbr_small --num-classes 5 --width 0.25 --seed 1 > random.safetensors

    Example: wsurgery init --model cifar_resnet.py:resnet20 --num-classes 5 --seed 1 > random.safetensors

    Example: wsurgery init resnet18 --width 0.5 --num-classes 5 --from resnet18.safetensors > half.safetensors
    """

def join(
    *sources: Source,
) -> Pipeline:
    """Put checkpoints that share no tensor together in one: those of A, then those of B, and so on.

    The architecture and what other tools say in the metadata are A's; what is frozen or tied stays so.

    Example: wsurgery join encoder.safetensors decoder.safetensors > whole.safetensors
    """

def lerp(
    a: Source,
    b: Source,
    *,
    t: float,
    upto: str | None = None,
    blocks: str | Sequence[str] | None = None,
    role: str | Sequence[str] | None = None,
    only: str | Sequence[str] | None = None,
    except_: str | Sequence[str] | None = None,
    block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
) -> Pipeline:
    """Interpolate linearly between two checkpoints: (1 - T) A + T B, in float64 and rounded once to A's types.

    Integers, and what the selectors leave out, come from A.

    Example: wsurgery lerp init.safetensors run/best.safetensors --t 0.5 > halfway.safetensors
    """

def merge(
    *sources: Source,
    base: Source | None = None,
    method: Literal["task", "ties", "dare", "breadcrumbs", "slerp", "stock"],
    weights: Sequence[object] | str | None = None,
    lambda_: float | None = None,
    density: float | None = None,
    drop: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    seed: int = 0,
    upto: str | None = None,
    blocks: str | Sequence[str] | None = None,
    role: str | Sequence[str] | None = None,
    only: str | Sequence[str] | None = None,
    except_: str | Sequence[str] | None = None,
    block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
) -> Pipeline:
    """Merge checkpoints that were fine-tuned from one, in float64 and rounded once to A's types.

    A task vector is a checkpoint less the base, and task is base + lambda times their weighted sum (Ilharco et al. 2023,
    arXiv 2212.04089). ties keeps of each, over all selected tensors, the largest elements, elects each element's sign by
    their sum, and takes the mean of those that agree (Yadav et al. 2023, arXiv 2306.01708). dare drops elements at random
    and rescales the others (Yu et al. 2024, arXiv 2311.03099); breadcrumbs drops the smallest and the largest of each tensor
    (Davari and Belilovsky 2024, arXiv 2312.06795). stock goes from the base to the mean as far as the angle between the task
    vectors of each tensor says (Jang et al. 2024, arXiv 2403.19522). slerp goes along the arc between each two tensors, and
    takes no base; the second weight says how far (Shoemake 1985).

    Integers, and what the selectors leave out, come from A: heads of other shapes, with --except. As in average, a wrapper's
    prefix that only one side has is looked through.

    Example: wsurgery merge one.safetensors two.safetensors --base base.safetensors --method ties > merged.safetensors

    Example: wsurgery merge one.safetensors two.safetensors --method slerp --weights 0.3,0.7 > between.safetensors
    """

def transfuse(
    source: Source,
    into: Source | None = None,
    *,
    rest: Literal["random", "meanvar", "shuffle", "sample"] | None = None,
    bn: Literal["identity", "meanvar", "keep"] = "identity",
    seed: int = 0,
    upto: str | None = None,
    blocks: str | Sequence[str] | None = None,
    role: str | Sequence[str] | None = None,
    only: str | Sequence[str] | None = None,
    except_: str | Sequence[str] | None = None,
    block_map: str | Path | Mapping[str, str | Sequence[str]] | None = None,
) -> Pipeline:
    """Keep pretrained weights up to a block (or in any other part); take the rest from --into, or draw it fresh.

    Fresh tensors are drawn by role, as timm draws its ResNets. For another network's own initialisation take them from
    --into: wsurgery init ARCH | wsurgery transfuse SOURCE --upto BLOCK.

    Example: wsurgery transfuse resnet50.safetensors --upto block2

    Example: wsurgery init resnet50 --num-classes 5 | wsurgery transfuse resnet50.safetensors --upto block2 > init.safetensors
    """
