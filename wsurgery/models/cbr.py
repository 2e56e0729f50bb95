"""The CBR family: convolution, batch norm, ReLU, max-pool, some four times over (Raghu et al. 2019, appendix A)."""

from typing import Any

from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from wsurgery.operations.architectures import CBR_FAMILY, scale_widths

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """k×k convolution of stride 1, batch norm, ReLU and, but for CBR-LargeT's last, a 3×3 max-pool of stride 2.

    (b, in, h, w) → (b, out, h/2, w/2), float32.
    """

    def __init__(self, in_chans: int, out_chans: int, kernel: int, *, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        out: Tensor = self.pool(self.bn(self.conv(x)).relu_())
        return out


class CBR(nn.Module):
    """A CBR network: blocks `block1` … `blockN`, global average pool, linear `fc`.

    Convolutions start He-normal over fan_out, as timm's ResNets; the paper does not say how its own start.

    Args:
        num_classes: outputs; 0 gives the pooled features.
        in_chans: channels of the image.
        kernel: size of every convolution's kernel.
        widths: output channels of each block.
        width: factor on all widths, for toy sizes.
        last_pool: whether the last block pools.
        drop_rate: dropout before `fc`.
        global_pool: as timm's `SelectAdaptivePool2d` takes it.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        kernel: int = 7,
        widths: tuple[int, ...] = (32, 64, 128, 256),
        width: float = 1.0,
        last_pool: bool = True,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        channels = [in_chans, *scale_widths(widths, width)]
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self.block_names = [f"block{i}" for i in range(1, len(channels))]
        self.feature_info = []
        reduction = 1
        for name, inside, outside in zip(self.block_names, channels[:-1], channels[1:], strict=True):
            pool = last_pool or name != self.block_names[-1]
            reduction *= 2 if pool else 1
            self.add_module(name, Block(inside, outside, kernel, pool=pool))
            self.feature_info.append({"num_chs": outside, "reduction": reduction, "module": name})
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.fc = self._head(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.fc = self._head(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the layer groups."""
        return {"stem": r"^block1\.", "blocks": r"^block(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """(b, in, h, w) → (b, c, h', w')."""
        for name in self.block_names:
            x = self.get_submodule(name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(b, c, h', w') → (b, num_classes) logits, or the pooled (b, c)."""
        x = self.global_pool(x)
        x = nn.functional.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in, h, w) float32 → (b, num_classes) logits."""
        return self.forward_head(self.forward_features(x))


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (14, 14),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": "block1.conv",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs({name: _cfg() for name in CBR_FAMILY})


def _create(name: str, pretrained: bool, **kwargs: Any) -> CBR:
    kwargs = {**CBR_FAMILY[name], **kwargs}
    every_block = tuple(range(len(kwargs["widths"])))  # timm's features_only would ask for five
    model: CBR = build_model_with_cfg(CBR, name, pretrained, feature_cfg={"out_indices": every_block}, **kwargs)
    return model


@register_model
def cbr_large_t(pretrained: bool = False, **kwargs: Any) -> CBR:
    """CBR-LargeT(all): 7×7, widths 32 64 128 256 512, no pool after the fifth."""
    return _create("cbr_large_t", pretrained, **kwargs)


@register_model
def cbr_large_w(pretrained: bool = False, **kwargs: Any) -> CBR:
    """CBR-LargeW(ide): 7×7, widths 64 128 256 512."""
    return _create("cbr_large_w", pretrained, **kwargs)


@register_model
def cbr_small(pretrained: bool = False, **kwargs: Any) -> CBR:
    """CBR-Small: 7×7, widths 32 64 128 256."""
    return _create("cbr_small", pretrained, **kwargs)


@register_model
def cbr_tiny(pretrained: bool = False, **kwargs: Any) -> CBR:
    """CBR-Tiny: 5×5, widths 64 128 256 512, as the appendix has it."""
    return _create("cbr_tiny", pretrained, **kwargs)


@register_model
def cbr_tiny_narrow(pretrained: bool = False, **kwargs: Any) -> CBR:
    """CBR-Tiny with widths 32 64 128 256, which fit the parameter count in the paper's main text (1,076,480)."""
    return _create("cbr_tiny_narrow", pretrained, **kwargs)
