"""The blocks of a network whose names do not tell them, from the order in which its modules run."""

import torch
from torch import nn

from wsurgery.anatomy.blocks import HEAD, UNPLACED, block_map

_SIZES = (64, 32, 224, 28)  # of the image that is run through, in pixels a side, until the network takes one
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_FEWEST = 3  # units that a network is taken apart into, where it can be


def traced_blocks(network: nn.Module) -> dict[str, list[str]] | None:
    """Return a block map for a network that `anatomy.block_map` does not place as a whole: `block1` … `blockN` and `head`.

    A block is a child of the network, or of its containers (`Sequential`, `ModuleList`, `ModuleDict`), that has weights; norms
    join the block before them. The blocks stand in the order in which they run, where an image of zeros can be run, or else
    in that of their definition. The last one is the head, with what did not run (other outputs, a projector of the pretraining),
    and parameters of the network itself stand with the first.

    Returns:
        Block name → globs of tensor names, each tensor in one; None where names tell the blocks, or there are less than two.
    """
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if UNPLACED not in block_map(shapes).values():
        return None
    order, ran = _order(network)
    units = [path for path, child in network.named_children() if child.state_dict()]
    while True:
        apart = [part for path in units for part in _parts(network, path, alone=len(units) < _FEWEST)]
        if apart == units:
            break
        units = apart

    def inside(path: str) -> list[str]:
        return [each for each in order if each == path or each.startswith(f"{path}.")]

    units.sort(key=lambda path: min(order[each] for each in inside(path)))
    idle = [path for path in units if ran and ran.isdisjoint(inside(path))]
    blocks: list[list[str]] = []
    for path in units:
        if path in idle:
            continue
        weighty = any(len(shape) > 1 for name, shape in shapes.items() if name.startswith(f"{path}."))
        if weighty or not blocks:
            blocks.append([])
        blocks[-1].append(f"{path}.*")
    if len(blocks) < 2:
        return None
    blocks[-1] += [f"{path}.*" for path in idle]
    beginnings = tuple(f"{path}." for path in units)
    blocks[0] += [name for name in shapes if not name.startswith(beginnings)]
    names = [*(f"block{i}" for i in range(1, len(blocks))), HEAD]
    return dict(zip(names, blocks, strict=True))


def _parts(network: nn.Module, path: str, *, alone: bool) -> list[str]:
    """Take a container apart, or, if it is nearly alone, any module; what has one tensor of weights stays as it is."""
    module = network.get_submodule(path)
    weights = sum(value.ndim > 1 for value in module.state_dict().values())
    parts = [f"{path}.{name}" for name, child in module.named_children() if child.state_dict()]
    return parts if parts and weights > 1 and (alone or isinstance(module, _CONTAINERS)) else [path]


def _order(network: nn.Module) -> tuple[dict[str, int], set[str]]:
    """Return module path → when it first runs, those that do not last, as they are defined; and which ran."""
    paths = [path for path, module in network.named_modules() if path]
    ran: list[str] = []
    hooks = [
        network.get_submodule(path).register_forward_pre_hook(lambda module, inputs, path=path: ran.append(path))
        for path in paths
    ]
    modes = {module: module.training for module in network.modules()}
    parameter = next(network.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            for size in _SIZES:
                ran.clear()
                image = parameter.new_zeros((1, int(getattr(network, "in_chans", 3)), size, size))
                try:
                    network.eval()(image)
                    break
                except Exception:  # whatever another person's code raises at a size that it does not take
                    ran.clear()
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return {path: i for i, path in enumerate(dict.fromkeys([*ran, *paths]))}, set(ran)
