"""The slim ResNet-50 of the paper's hybrid: half the channels in block3 and block4 (section 5, figure 20)."""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import ResNet, resnet50

from wsurgery.operations.architectures import SLIM_CHANNELS

default_cfgs = generate_default_cfgs({"resnet50_slim": {"first_conv": "conv1", "classifier": "fc"}})


@register_model
def resnet50_slim(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 with half the channels in block3 and block4; the tensors' names are ResNet-50's."""
    model: ResNet = resnet50(pretrained=pretrained, **{"channels": SLIM_CHANNELS, **kwargs})
    return model
