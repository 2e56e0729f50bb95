"""The blocks of a network, in the order in which data meets them, from tensor names and shapes.

The names carry the order: a safetensors file sorts its tensors, so the order of definition is lost.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from wsurgery.errors import UsageError, printable

Shapes = Mapping[str, tuple[int, ...]]
Place = tuple[int, tuple[int, ...]]  # kind of block, then what orders blocks of that kind

NECK, HEAD, UNPLACED = "neck", "head", "unplaced"
_STEM, _BLOCK, _TAIL, _NECK, _HEAD, _UNPLACED = range(6)  # in the order in which data meets them
_LABELS = {_NECK: NECK, _HEAD: HEAD, _UNPLACED: UNPLACED}

# The first rule that matches the start of a name places it; its captures order the blocks of one kind.
# `.` or `_` or the end must follow a match.
_RULES = [
    (kind, re.compile(pattern + r"(?:[._]|$)"))
    for kind, pattern in [
        (
            _HEAD,
            r"(?:fc|classif\w*|heads?|\w+_head|last_linear|logits|pre_logits|pre_classifier|aux\d?|AuxLogits|fc_norm"
            r"|attn_pool|pooler)(?<!conv_head)(?<!norm_head)",
        ),
        (_STEM, r"(?:norm_pre|norm[12]_proj)"),
        (
            _NECK,
            r"(?:neck|norm|norm[2345]|ln|layernorm|\w+_head|final|msfa|in_conv|incre_modules|downsamp_modules|merger"
            r"|aligner|aggregate|weights|std|conv5_bn_ac|(?:conv|bn)[345](?=\.))",
        ),
        # A second trunk that follows the first (CaiT, CoaT).
        (_TAIL, r"(?:blocks_token_only|cls_attn_blocks|parallel_blocks|post_network)\.(\d+)"),
        # Parts that are numbered by the stage they belong to (PVT, Twins, CoaT).
        (
            _BLOCK,
            r"(?:cpe|crpe|cls_token|pos_embed|patch_embed|patch_embeds\.|serial_blocks)(?=[1-9])(\d+)"
            r"|pos_block\.(\d+)|conv([2-9])_\d+",
        ),
        (
            _STEM,
            r"(?:stem|conv|conv_?[012]|conv1_1|cell_stem|(?:bn|norm)[012]|maxpool|base_layer|layer0|rope|proj|conv_proj"
            r"|\w*(?:token|pos|embed|embeds|embedder|embeddings?))",
        ),
        (_STEM, r"Conv2d_[12][a-z]"),  # Inception-v3
        (_BLOCK, r"Conv2d_[34][a-z]"),
        (_BLOCK, r"Mixed_(\d)([a-z])"),
        (
            _BLOCK,
            r"(?:dense|encoder_|dense_)?(?:stages?|layers?|blocks?|levels?|transformers|features|network|transition|cell|s)"
            r"[._]?(?:encoder_layer_)?(\d+)",
        ),
    ]
]


def block_map(shapes: Shapes) -> dict[str, str]:
    """Place every tensor in a block.

    Args:
        shapes: tensor name → shape, in any order.

    Returns:
        Tensor name → block name, the blocks in the order in which data meets them: `conv1` (a ResNet's) or `stem`,
        `block1` … `blockN`, `neck` (what stands between the trunk and the classifier), `head`; last, `unplaced` holds
        what no rule knows.
    """
    short = _strip_wrappers(shapes)
    roots = {name.partition(".")[0] for name in short.values()}
    places = {name: _place(inner, roots) for name, inner in short.items()}
    has_weights = {place for name, place in places.items() if len(shapes[name]) > 1}
    label: dict[Place, str] = {}
    number, previous = 0, None
    for place in sorted(set(places.values())):
        if place[0] == _BLOCK == (previous or (None,))[0] and place not in has_weights:
            label[place] = label[previous]  # type: ignore[index]  # a batch norm numbered by itself (VGG) goes with its convolution
            continue
        number += place[0] in (_BLOCK, _TAIL)
        label[place] = _LABELS.get(place[0]) or f"block{number}"
        previous = place
    stem = {short[name]: shapes[name] for name, place in places.items() if place[0] == _STEM}
    label[_STEM, ()] = "conv1" if _is_lone_conv1(stem) else "stem"
    return {name: label[places[name]] for name in sorted(places, key=lambda name: places[name])}


def find_block(word: str, blocks: Mapping[str, str]) -> str:
    """Resolve what a user calls a block.

    Args:
        word: a block name (`block2`), `stem` for `conv1` and the reverse, `pool2` for `block2`, or the path of a
            module that holds all of a block and nothing else (`layer2`, `stages.1`).
        blocks: the result of `block_map`.

    Raises:
        UsageError: there is no such block; the message lists the blocks.
    """
    names = list(dict.fromkeys(blocks.values()))
    numbered = re.sub(r"^pool(?=\d+$)", "block", word)
    for candidate in (word, numbered, {"stem": "conv1", "conv1": "stem"}.get(word)):
        if candidate in names:
            return candidate
    inside = {block for name, block in blocks.items() if f".{name}".find(f".{word}.") >= 0}
    outside = {block for name, block in blocks.items() if f".{name}".find(f".{word}.") < 0}
    if len(inside) == 1 and not inside & outside:
        return inside.pop()
    raise UsageError(f"no block {printable(word)!r}: this network has {', '.join(names)}")


def first_convolution(shapes: Shapes) -> str:
    """Name the weight, (out, in, kh, kw), of the convolution that meets the image.

    Raises:
        UsageError: the first block holds no convolution with a kernel larger than 1×1 on 1 to 4 channels.
    """
    for name in block_map(shapes):
        shape = shapes[name]
        if name.endswith("weight") and len(shape) == 4 and shape[1] <= 4 and shape[2] > 1:
            return name
    raise UsageError("no convolution meets the image here: none of the weights is (out, 1 to 4, kh, kw)")


def _is_lone_conv1(stem: Shapes) -> bool:
    weights = {name.partition(".")[0] for name, shape in stem.items() if len(shape) > 1}
    return weights == {"conv1"}


def _place(name: str, roots: Iterable[str]) -> Place:
    if name.startswith(("bn2.", "norm2.")):  # they follow conv2 where there is one, else the trunk
        return (_STEM if "conv2" in roots else _NECK), ()
    for kind, rule in _RULES:
        if match := rule.match(name):
            if kind not in (_BLOCK, _TAIL):
                return kind, ()
            return kind, tuple(int(part) if part.isdigit() else ord(part) for part in match.groups() if part)
    return _UNPLACED, ()


def _strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Drop prefixes that say nothing (`module.`, `model.`, `encoder.`): an unplaced root over more than half of the tensors."""
    short = {name: name for name in names}
    while short:
        count = Counter(name.partition(".")[0] for name in short.values())
        root, size = count.most_common(1)[0]
        inner = [name[len(root) + 1 :] for name in short.values() if name.startswith(root + ".")]
        brothers = sum(re.sub(r"\d", "", other) == re.sub(r"\d", "", root) for other in count)
        if (
            size <= len(short) / 2
            or brothers > 1  # layer4 has brothers, a wrapper has none
            or len(inner) < size
            or any(re.match(r"\d+(\.|$)", name) for name in inner)
            or _place(root, count)[0] != _UNPLACED
        ):
            break
        short = {name: part[len(root) + 1 :] if part.startswith(root + ".") else part for name, part in short.items()}
    return short
