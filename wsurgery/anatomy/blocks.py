"""The blocks of a network, in the order in which data meets them, from tensor names and shapes.

The names carry the order: a safetensors file sorts its tensors, so the order of definition is lost.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import NamedTuple

from wsurgery.errors import UsageError, printable

Shapes = Mapping[str, tuple[int, ...]]
Place = tuple[int, tuple[int, ...]]  # kind of block, then what orders blocks of that kind

NECK, HEAD, UNPLACED = "neck", "head", "unplaced"
_STEM, _BLOCK, _TAIL, _NECK, _HEAD, _UNPLACED = range(6)  # in the order in which data meets them
_NOWHERE: Place = (_UNPLACED, ())
_MOST_WRAPPERS = 8  # a hostile name may have a million parts
_MOST_DIGITS = 18  # or a number as long
_LABELS = {_NECK: NECK, _HEAD: HEAD, _UNPLACED: UNPLACED}


class _Rule(NamedTuple):
    """A name that starts with `pattern`, up to a `.` or `_` or the end, stands in a block of `kind`.

    The captures order the blocks of one kind, or else `order` does, a template of them: `6`, `5.\\1`. Where `beside` is
    given, the rule holds only in a network with a tensor whose name starts so.
    """

    kind: int
    pattern: str
    order: str = ""
    beside: str = ""


# The first rule that matches a name places it.
_RULES = [
    (rule, re.compile(rf"(?:{rule.pattern})(?:[._]|$)"))
    for rule in [
        # What a single family calls by a name that means something else elsewhere.
        _Rule(_STEM, r"(?:bn|norm)2", beside="conv2."),  # they follow conv2 where there is one, else the trunk
        _Rule(_NECK, r"norm_pre", beside="stages."),  # ConvNeXt; the others' stands before the trunk
        _Rule(_TAIL, r"head", "0", beside="features.0.conv6."),  # SelecSLS: four convolutions before `fc`
        _Rule(_STEM, r"features\.[012]", beside="features.4.branch0."),  # Inception-v4
        _Rule(_BLOCK, r"network\.(\d+)\.(\d+)", beside="post_network."),  # VOLO
        _Rule(_BLOCK, r"stage(\d)\.(\d+)", beside="patch_embed1."),  # Visformer
        _Rule(_BLOCK, r"(?:patch_embed|pos_embed)([2-9])", r"\1.0", beside="stage1.0."),
        _Rule(_BLOCK, r"patch_embeddings\.([1-9])|layer_norm\.(\d)", beside="block.0.0."),  # SegFormer, PVT, PoolFormer
        _Rule(_BLOCK, r"reduction_cell_0", "6"),  # NASNet
        _Rule(_BLOCK, r"reduction_cell_1", "12"),
        _Rule(_STEM, r"[Cc]onv2d_[12][a-z]"),  # Inception-v3, Inception-ResNet-v2
        _Rule(_BLOCK, r"[Cc]onv2d_[34][a-z]", "3"),
        _Rule(_BLOCK, r"(?:Mixed_|inception)(\d)([a-z])"),
        _Rule(_STEM, r"conv[123]", beside="inception3a."),  # GoogLeNet
        _Rule(_BLOCK, r"mixed_(\d)[a-z]"),
        _Rule(_BLOCK, r"repeat\.(\d+)", r"5.\1"),
        _Rule(_BLOCK, r"repeat_1\.(\d+)", r"6.\1"),
        _Rule(_BLOCK, r"repeat_2\.(\d+)", r"7.\1"),
        _Rule(_BLOCK, r"conv2d_7b", "8"),
        # CoaT: tensors that several of its blocks share stand with the first.
        _Rule(_STEM, r"serial_blocks1\.\d+\.(?:cpe|factoratt_crpe\.crpe)"),
        _Rule(_BLOCK, r"serial_blocks(\d)\.\d+\.(?:cpe|factoratt_crpe\.crpe)"),
        _Rule(_BLOCK, r"parallel_blocks\.\d+\.factoratt_crpe(\d)\.crpe"),
        _Rule(_BLOCK, r"serial_blocks(\d)\.(\d+)"),
        # What all the others have in common.
        _Rule(
            _HEAD,
            r"(?:fc|classif\w*|score|heads?|\w+_head|last_linear|logits|pre_logits|pre_classifier|aux\d?|AuxLogits|fc_norm"
            r"|attn_pool|pooler|embed_out)(?<!conv_head)(?<!norm_head)",
        ),
        _Rule(_STEM, r"(?:norm_pre|norm[12]_proj|(?:layer_?norm|ln)_embed\w*)"),  # the last is BART's
        _Rule(
            _NECK,
            r"(?:neck|norm|(?:bn|norm)2|norm[345]|ln|(?:post_)?layer_?norm|\w+_head|final|msfa|in_conv|incre_modules"
            r"|downsamp_modules|merger|aligner|aggregate|weights|std|conv5_bn_ac|(?:conv|bn)[345](?=\.)|conv_1x1|top_conv"
            r"|top_bn|last_convolution)",
        ),
        _Rule(_TAIL, r"(?:blocks_token_only|cls_attn_blocks|parallel_blocks|post_network)\.(\d+)"),  # a second trunk
        _Rule(  # parts that are numbered by the stage they belong to (PVT, Twins, CoaT)
            _BLOCK,
            r"(?:cpe|crpe|cls_token|pos_embed|patch_embed)([2-9])|patch_embeds\.([1-9])|pos_block\.(\d+)|conv([2-9])_\d+",
        ),
        _Rule(
            _STEM,
            r"(?:stem|conv|conv_?[012]|conv1_1|convolution|cell_stem|(?:bn|norm)[012]|pre_layr?norm|maxpool|base_layer|layer0"
            r"|rope|proj|conv_proj|w[tp]e|\w*(?:token|pos|embed|embeds|embedder|embeddings?|crpe|cpe)1?)",
        ),
        _Rule(
            _BLOCK,
            r"(?:dense|encoder_|dense_)?(?:stages?|layers?|blocks?|levels?|transformers|features|network|transition|cell|s|h)"
            r"[._]?(?:encoder_layer_)?(\d+)",
        ),
    ]
]
_NUMBERED = re.compile(r"\d+(?:\.|$)")
_MOST_PARTS = 1 + max(rule.pattern.count(r"\.") for rule, _ in _RULES)  # of a name that a rule looks at
# A last layer by a name that says nothing by itself: the head of a network that has a trunk, and no other head.
_LAST = re.compile(r"(?:linear|output|out|predictions?|last_layer)\.(?:weight|bias)")
# Blocks that stand in chunks of a parallel network, but keep their own numbers: DINOv2's `blocks.1.4.attn.qkv.weight`.
_CHUNK = re.compile(r"(blocks|layers|h)\.(\d{1,6})\.(\d{1,6})\.(\w+)")


class _Rules(NamedTuple):
    """Rules in their order, and `any`, one pattern of them all, which ends in an empty group named after the rule's place."""

    rules: Sequence[tuple[_Rule, re.Pattern[str]]]
    any: re.Pattern[str]


def block_map(shapes: Shapes) -> dict[str, str]:
    """Place every tensor in a block.

    Args:
        shapes: tensor name → shape, in any order.

    Returns:
        Tensor name → block name, the blocks in the order in which data meets them: `conv1` (a ResNet's) or `stem`,
        `block1` … `blockN`, `neck` (what stands between the trunk and the classifier), `head`; last, `unplaced` holds
        what no rule knows.
    """
    short = _without_chunks(_strip_wrappers(shapes))
    members = _places(short)
    if not any(kind == _HEAD for kind, _ in members) and any(kind == _BLOCK for kind, _ in members):
        last = [name for name in members.get(_NOWHERE, ()) if _LAST.fullmatch(short[name])]
        if len({name.rpartition(".")[0] for name in last}) == 1:
            members[_HEAD, ()] = last
            members[_NOWHERE] = [name for name in members[_NOWHERE] if not _LAST.fullmatch(short[name])]
    order = sorted(place for place, names in members.items() if names)
    label: dict[Place, str] = {}
    number, previous = 0, None
    for place in order:
        if place[0] == _BLOCK == (previous or (None,))[0] and all(len(shapes[name]) < 2 for name in members[place]):
            label[place] = label[previous]  # type: ignore[index]  # a batch norm numbered by itself (VGG) goes with its convolution
            continue
        number += place[0] in (_BLOCK, _TAIL)
        label[place] = _LABELS.get(place[0]) or f"block{number}"
        previous = place
    stem = {short[name]: shapes[name] for place in order if place[0] == _STEM for name in members[place]}
    label[_STEM, ()] = "conv1" if _is_lone_conv1(stem) else "stem"
    return {name: label[place] for place in order for name in members[place]}


MAX_BLOCK_MAP = 10_000_000  # bytes of a file


def parse_block_map(text: str | bytes) -> dict[str, list[str]]:
    """Read a user's block map, a JSON object of block name → globs of tensor names.

    Raises:
        UsageError: it is something else.
    """
    try:
        globs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the block map is no JSON: {printable(str(error))}") from None
    if (
        not isinstance(globs, dict)
        or not globs
        or not all(isinstance(some, list) and all(isinstance(glob, str) for glob in some) for some in globs.values())
    ):
        raise UsageError('a block map is a JSON object of block names and globs: {"stem": ["conv1.*", "bn1.*"], ...}')
    return globs


def user_block_map(names: Iterable[str], globs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Place every tensor as a user's block map says, instead of by the rules.

    Args:
        names: of the tensors.
        globs: block name → globs of tensor names, the blocks in the order in which data meets them.

    Returns:
        As `block_map`.

    Raises:
        UsageError: a tensor is in no block or in two.
    """
    patterns = {block: re.compile("|".join(map(translate, some))) for block, some in globs.items() if some}
    members: dict[str, list[str]] = {block: [] for block in globs}
    for name in names:
        found = [block for block, pattern in patterns.items() if pattern.match(name)]
        if len(found) != 1:
            where = f"in {printable(found[0])} and in {printable(found[1])}" if found else "in no block"
            raise UsageError(
                f"the block map has {printable(name)} {where}: each tensor belongs in one; --block-map gives another"
            )
        members[found[0]].append(name)
    return {name: block for block, some in members.items() for name in some}


def place(shapes: Shapes, globs: Mapping[str, Sequence[str]] | None) -> dict[str, str]:
    """Place every tensor: as a user's own block map says, where there is one, or else by the rules.

    Raises:
        UsageError: as `user_block_map`.
    """
    return block_map(shapes) if globs is None else user_block_map(shapes, globs)


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


def first_convolution(shapes: Shapes, blocks: Mapping[str, str] | None = None) -> str:
    """Name the weight, (out, in, kh, kw), of the convolution that meets the image.

    It stands in the first block that has a convolution; of several there it is the first that reads more than one
    channel, if there is one: others are depthwise.

    Args:
        shapes: tensor name → shape.
        blocks: tensor name → block, where a map of the user's own says it, from the first block on.

    Raises:
        UsageError: that block has no convolution with a kernel larger than 1×1 on 1 to 4 channels.
    """
    blocks = block_map(shapes) if blocks is None else blocks
    convolutions = [name for name in blocks if name.endswith("weight") and len(shapes[name]) == 4]
    small = [
        name
        for name in convolutions
        if blocks[name] == blocks[convolutions[0]] and shapes[name][1] <= 4 and shapes[name][2] > 1
    ]
    if not small:
        raise UsageError("no convolution meets the image here: none of the first weights is (out, 1 to 4, kh, kw)")
    return next((name for name in small if shapes[name][1] > 1), small[0])


def _is_lone_conv1(stem: Shapes) -> bool:
    weights = {name.partition(".")[0] for name, shape in stem.items() if len(shape) > 1}
    return weights == {"conv1"}


def _rules_for(names: Collection[str]) -> _Rules:
    text = "\n".join(["", *names])  # where a beginning is not, it begins no name, which is found out in no time

    def holds(beginning: str) -> bool:
        return not beginning or (f"\n{beginning}" in text and any(name.startswith(beginning) for name in names))

    held = [(rule, pattern) for rule, pattern in _RULES if holds(rule.beside)]
    return _Rules(held, re.compile("|".join(f"{pattern.pattern}(?P<r{i}>)" for i, (_, pattern) in enumerate(held))))


def _places(short: Mapping[str, str]) -> dict[Place, list[str]]:
    """Place names, by what is left of each: place → names, in their order."""
    rules = _rules_for(short.values())
    members: dict[Place, list[str]] = {}
    known: dict[str, list[str]] = {}  # beginning of a name → the names in its place
    for name, inner in short.items():
        parts = inner.split(".", _MOST_PARTS)
        parts[_MOST_PARTS:] = [""] * (len(parts) > _MOST_PARTS)
        beginning = ".".join(parts)
        there = known.get(beginning)
        if there is None:
            there = known[beginning] = members.setdefault(_place(beginning, rules), [])
        there.append(name)
    return members


def _place(name: str, rules: _Rules) -> Place:
    first = rules.any.match(name)
    if not first:
        return _NOWHERE
    rule, pattern = rules.rules[int((first.lastgroup or "")[1:])]
    match = pattern.match(name)
    assert match  # it is a part of `any`
    parts = match.expand(rule.order).split(".") if rule.order else [*filter(None, match.groups())]
    if parts and max(map(len, parts)) > _MOST_DIGITS:
        return _NOWHERE
    return rule.kind, tuple(int(part) if part.isdigit() else ord(part) for part in parts)


def _strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Drop prefixes that say nothing (`module.`, `model.`, `encoder.`): an unplaced root over more than half of the tensors."""
    short = {name: name for name in names}
    for _ in range(_MOST_WRAPPERS if short else 0):
        count = Counter([name.partition(".")[0] for name in short.values()])
        root, size = count.most_common(1)[0]
        if size <= len(short) / 2:
            break
        brothers = sum(re.sub(r"\d", "", other) == re.sub(r"\d", "", root) for other in count)
        inside = f"{root}."
        inner = [name[len(inside) :] for name in short.values() if name.startswith(inside)]
        if (
            brothers > 1  # layer4 has brothers, a wrapper has none
            or len(inner) < size
            or any(map(_NUMBERED.match, inner))
            or _place(root, _rules_for(short.values()))[0] != _UNPLACED
        ):
            break
        short = {name: part.removeprefix(inside) for name, part in short.items()}
    return short


def _without_chunks(short: dict[str, str]) -> dict[str, str]:
    """Drop the numbers of chunks, which are told by the numbers behind them: these go on where those of stages begin again.

    Of a single chunk, only blocks with attention are believed to be blocks: the first stage of a network may be kept alone.
    """
    inside: dict[str, dict[int, set[int]]] = {}
    parts: dict[str, set[str]] = {}
    for found in filter(None, map(_CHUNK.match, short.values())):
        inside.setdefault(found[1], {}).setdefault(int(found[2]), set()).add(int(found[3]))
        parts.setdefault(found[1], set()).add(found[4])
    stages = bool(inside) and any(name.startswith("patch_embeds.") for name in short.values())  # Twins
    for word, chunks in inside.items():
        numbers = [number for chunk in sorted(chunks) for number in sorted(chunks[chunk])]
        goes_on = numbers == list(range(len(numbers))) and sorted(chunks) == list(range(len(chunks)))
        if goes_on and (len(chunks) > 1 or ("attn" in parts[word] and not stages)):
            within = re.compile(rf"{word}\.\d+\.(?=\d+\.)")
            short = {
                name: within.sub(f"{word}.", part, count=1) if within.match(part) else part
                for name, part in short.items()
            }
    return short
