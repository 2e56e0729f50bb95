"""`wsurgery permute`."""

from wsurgery.plugin import Checkpoint, RandomStream, Result, edit


@edit()
def permute(checkpoint: Checkpoint, *, random: RandomStream) -> Result:
    """Permute the hidden units at random, which changes no output of the network.

    Channels, heads of attention and the units within them, and hidden units of MLPs change places: in all tensors that know
    them, batch norm's too. What a residual stream adds up is permuted as one. Inputs and outputs keep their order, and so do
    features where there is no head. It is for ResNets, CBR, VGG, DenseNet, EfficientNet, ConvNeXt, Mixer, ViT and plain MLPs.
    These are believed to be chains: no file shows a shortcut between their layers, or a norm without weights.

    Example: wsurgery permute resnet50.safetensors --seed 1 > permuted.safetensors
    """
    from wsurgery.operations.reordering import permute

    return permute(checkpoint, random)
