import timm
import torch

from wsurgery.models import resnet50_slim


def test_half_the_channels_in_block3_and_block4_and_nowhere_else():
    with torch.device("meta"):
        slim, whole = (
            resnet50_slim(num_classes=5).state_dict(),
            timm.create_model("resnet50", num_classes=5).state_dict(),
        )
    assert list(slim) == list(whole)
    for name in whole:
        ours, theirs = tuple(slim[name].shape), tuple(whole[name].shape)
        if not name.startswith(("layer3", "layer4", "fc.weight")):
            assert ours == theirs, name
        elif len(ours):
            reads_block2 = name in ("layer3.0.conv1.weight", "layer3.0.downsample.0.weight")
            outputs = 1 if name == "fc.weight" else 2
            inputs = 1 if reads_block2 else 2
            assert ours[0] * outputs == theirs[0], name
            if len(ours) > 1:
                assert ours[1] * inputs == theirs[1], name
                assert ours[2:] == theirs[2:], name


def test_it_runs():
    with torch.inference_mode():
        assert resnet50_slim(num_classes=5).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
