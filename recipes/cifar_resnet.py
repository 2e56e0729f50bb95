"""The ResNets of He et al. 2016 for CIFAR, with option A: a shortcut that widens is subsampled and padded with zeros."""

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class Block(nn.Module):
    """Two 3×3 convolutions, (b, inside, h, w) → (b, outside, h/stride, w/stride)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.stride, self.more = stride, (outside - inside) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet(nn.Module):
    """Three stages of `blocks` blocks, of 16, 32 and `top` channels: (b, in_chans, h, w) → (b, num_classes)."""

    def __init__(self, blocks: int, num_classes: int = 10, in_chans: int = 3, top: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, (inside, outside) in enumerate([(16, 16), (16, 32), (32, top)], 1):
            rest = [Block(outside, outside, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{i}", nn.Sequential(Block(inside, outside, 1 if i == 1 else 2), *rest))
        self.linear = nn.Linear(top, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def resnet20(num_classes: int = 10, in_chans: int = 3) -> ResNet:
    """20 layers."""
    return ResNet(3, num_classes, in_chans)


def resnet56(num_classes: int = 10, in_chans: int = 3) -> ResNet:
    """56 layers."""
    return ResNet(9, num_classes, in_chans)


def resnet20_slim(num_classes: int = 10, in_chans: int = 3) -> ResNet:
    """20 layers, of which those of the last stage have half of the channels."""
    return ResNet(3, num_classes, in_chans, top=32)
