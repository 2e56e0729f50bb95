"""Random edits: as words of a shell line, and as calls in Python."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from soak.checkpoints import State, blocks_of, random_tensor, sibling, write

DRAWING = ("shuffle", "sample", "meanvar", "add_noise", "spectrum", "covariance", "permute")


@dataclass
class Edit:
    """An edit of a pipeline.

    Attributes:
        name: of the method in Python.
        options: by their names in Python.
        selectors: the same, of the part.
        others: the checkpoints that it reads beside the one that flows through: name of the file → what is in it.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    selectors: dict[str, Any] = field(default_factory=dict)
    others: dict[str, State] = field(default_factory=dict)

    def words(self, source: str | None) -> str:
        """Write it for bash; without a source it reads standard input."""
        words, behind = [self.name.replace("_", "-")], []
        for option, value in {**self.options, **self.selectors}.items():
            if option in ("pattern", "replacement"):
                behind.append(value)
            elif value is True:
                words.append(f"--{option}")
            else:
                named = option.strip("_").replace("_", "-")
                words += [f"--{named}={each}" for each in (value if isinstance(value, list) else [value])]
        if self.name == "transfuse":
            words += [f"--into={source}"] if source else []
            behind += self.others
        elif self.name in ("lerp", "average", "join"):
            behind += [source or "-", *self.others]
        elif source:
            behind.append(source)
        return " ".join(map(shlex.quote, ["wsurgery", *words, *(["--", *behind] if behind else [])]))

    def __call__(self, pipeline: Any) -> Any:
        """Add it to a chain."""
        positional = [] if "zeros_of" in self.options else list(self.others)
        return getattr(pipeline, self.name)(*positional, **self.options, **self.selectors)


def _glob(state: State, rng: Random) -> str:
    name = rng.choice(list(state.tensors))
    exact = "".join(f"[{c}]" if c in "*?[" else "?" if c == "\0" else c for c in name)
    cut = rng.randrange(len(name) + 1)
    start, end = ("".join(f"[{c}]" if c in "*?[" else c for c in part) for part in (name[:cut], name[cut:]))
    return rng.choice([exact, exact, f"{start}*", f"*{end}", f"{start}*", f"*{end}", "*weight", "*", "no such *"])


def part_of(state: State, rng: Random) -> dict[str, Any]:
    """Draw selectors: none, one or two."""
    drawn: dict[str, Any] = {}
    blocks = list(dict.fromkeys(blocks_of(state).values()))
    for kind in rng.sample(["only", "except_", "role", "upto", "blocks"], rng.choice([0, 1, 1, 1, 2])):
        if kind == "role":
            drawn[kind] = rng.choice(["conv", "batch_norm", "integer", "batch_norm,integer"])
        elif kind in ("upto", "blocks"):
            if blocks:
                drawn[kind] = rng.choice(blocks) if kind == "upto" else ",".join(rng.sample(blocks, rng.randint(1, 2)))
        else:
            drawn[kind] = [_glob(state, rng) for _ in range(rng.choice([1, 1, 2]))]
    return drawn


def _number(rng: Random) -> float:
    return rng.choice([0.5, 2, 0, 1, -1, 1e-3, 1e4, 1e30, rng.uniform(-3, 3), rng.gauss(0, 1)])


def _other(state: State, rng: Random, folder: Path) -> dict[str, State]:
    content = sibling(state, rng)
    if not content.tensors:
        content.tensors["x"] = random_tensor(rng, "F32", (2,), wild=False)
    name = f"other{len(list(folder.glob('other*')))}"
    write(content, folder / name, rng)
    return {name: content}


def _rename(state: State, rng: Random) -> dict[str, Any]:
    name = rng.choice(list(state.tensors))
    start = rng.randrange(len(name))
    pattern = rng.choice([re.escape(name[start : start + 3]), "^", r"\.", "(.)(.)", "[aeiou]", "$", "no such", "("])
    return {
        "pattern": pattern,
        "replacement": rng.choice(["", "x", ".", " ", "层", "-o", r"\1", r"\2\1", r"\g<0>\g<0>"]),
    }


def _metadata(state: State, rng: Random) -> dict[str, Any]:
    keys = [*state.metadata, "no such"]
    entries = [
        f"{rng.choice(['author', 'a b', '键', 'format', 'x'])}={rng.choice(['', 'v=w', '値', ' '])}" for _ in "ab"
    ]
    gone = [rng.choice(keys)] if rng.random() < 0.4 else []
    return {"set_": entries[: rng.randrange(3) if gone else 1], "delete": gone}


def _pruning(state: State, rng: Random, folder: Path) -> tuple[dict[str, Any], dict[str, State]]:
    if rng.random() < 0.25:
        other = _other(state, rng, folder)
        return {"zeros_of": next(iter(other))}, other
    scope, by = rng.choice(["tensor", "all"]), rng.choice(["magnitude", "magnitude", "random"])
    return {"sparsity": rng.choice([0, 1, 0.5, rng.random()]), "scope": scope, "by": by}, {}


def _weights(rng: Random, count: int) -> str:
    drawn = [rng.choice([0.25, 0.5, 0, -0.5, 0.125]) for _ in range(count)]
    return ",".join(map(str, [1 - sum(drawn), *drawn]))


def random_edit(state: State, rng: Random, folder: Path) -> Edit:
    """Draw an edit of a checkpoint; other checkpoints that it reads are written into a folder."""
    bn = rng.choice(["identity", "meanvar", "keep"])
    simple: dict[str, Callable[[], dict[str, Any]]] = {
        "scale": lambda: {"by": _number(rng)},
        "cast": lambda: {"to": rng.choice(["fp64", "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"])},
        "drop": dict,
        "keep": dict,
        "freeze_spec": dict,
        "reset_bn": dict,
        "rename": lambda: _rename(state, rng),
        "add_noise": lambda: {
            "std": rng.choice([0, 0.1, 3, 1e3]), **({"relative": True} if rng.random() < 0.4 else {}),
        },
        "meanvar": lambda: {"bn": bn, **rng.choice([{}, {"per": "filter"}, {"per": "channel"}, {"per": "tensor"}])},
        "sample": lambda: {"bn": bn},
        "shuffle": lambda: {
            "bn": bn,
            **rng.choice([{}, {"within": rng.choice(["filter", "position"])}, {"axis": rng.choice(["out", "in", "space"])}]),
        },
        "spectrum": lambda: {"bn": bn, "keep": rng.choice(["left", "right", "none"])},
        "covariance": lambda: {"bn": bn, "of": rng.choice(["space", "filter", "channel"])},
        "low_rank": lambda: {"rank": rng.randint(1, 3)},
        "set_metadata": lambda: _metadata(state, rng),
        "permute": dict,
    }  # fmt: skip
    more = ["scale", "cast", "rename", "transfuse", "transfuse", "lerp", "average", "join", "prune", "prune"]
    name = rng.choice([*simple, *more])
    edit = Edit(name)
    if name not in ("set_metadata", "join", "permute"):
        edit.selectors = part_of(state, rng)
    if name in simple:
        edit.options = simple[name]()
    elif name == "prune":
        edit.options, edit.others = _pruning(state, rng, folder)
    elif name == "join":
        edit.others = _other(State({f"{n} 2": tensor for n, tensor in state.tensors.items()}), rng, folder)
        if rng.random() < 0.1:
            edit.others |= _other(state, rng, folder)
    else:
        edit.others = _other(state, rng, folder)
        if name == "lerp":
            edit.options["t"] = rng.choice([0, 1, 0.5, 0.3, -1, rng.random()])
        elif name == "average" and rng.random() < 0.5:
            edit.others |= _other(state, rng, folder)
        if name == "average" and rng.random() < 0.7:
            edit.options["weights"] = _weights(rng, len(edit.others))
    if name in DRAWING or edit.options.get("by") == "random":
        edit.options["seed"] = rng.choice([0, 1, rng.getrandbits(30)])
    return edit
