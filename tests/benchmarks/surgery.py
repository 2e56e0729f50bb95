"""What surgery costs, beside what it is compared to: `make bench` prints the table that the README keeps.

Every figure is a median of `--repeats` runs of real processes on one file with a warm page cache, the two sides of a ratio
taking turns. Files are on a memory file system by default: the surgery commands fsync what they write and `cp` does not,
and on a disk that is what one would measure. Times are wall seconds unless they say CPU; memory is the peak resident set
of one process, the libraries' pages included.

The 10 GB file goes to `--disk`, its output to a pipe.
"""

import argparse
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from turns import in_turns

from wsurgery.cores import cores

MIB = 1 << 20
WSURGERY = [sys.executable, "-m", "wsurgery"]

# The scripts that people write instead. Each gets input and output as its arguments.
TORCH = {
    "meanvar": """
import sys, torch
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
for x in tensors.values():
    x.normal_(x.mean().item(), x.std().item())
save_file(tensors, sys.argv[2])
""",
    "cast": """
import sys, torch
from safetensors.torch import load_file, save_file
save_file({name: x.half() for name, x in load_file(sys.argv[1]).items()}, sys.argv[2])
""",
    "diff": """
import sys, torch
from safetensors.torch import load_file
a, b = load_file(sys.argv[1]), load_file(sys.argv[2])
for name, x in a.items():
    y = b[name]
    d = y - x
    print(name, (d.norm() / x.norm()).item(), torch.cosine_similarity(x.flatten(), y.flatten(), 0).item(),
          d.abs().max().item(), (x == y).float().mean().item())
""",
    "partial copy": """
import sys
from safetensors.torch import load_file, save_file
source, target = load_file(sys.argv[1]), load_file(sys.argv[2])
target.update({name: x for name, x in source.items() if int(name.split(".")[1]) < len(source) // 2})
save_file(target, sys.argv[3])
""",
}

# The same in sd-mecha, which has an environment of its own; a, b, the base and the output are its arguments. Its TIES trims
# each tensor by itself, ours the whole task vector, as the paper does.
SD_MECHA = {
    "lerp": "m.weighted_sum(a, b, alpha=0.5)",
    "merge task": "base + (a - base) * 0.4 + (b - base) * 0.4",
    "merge ties": "base + m.ties_sum(a - base, b - base, k=0.2)",
}
MECHA = """
import sys, torch, sd_mecha as m
a, b, base = map(m.model, sys.argv[1:4])
m.merge({}, output=sys.argv[4], merge_dtype=torch.float32, output_dtype=torch.float32)
"""

# And in mergekit, likewise; it writes a folder. Its TIES trims by tensors, too.
MERGEKIT = {
    "lerp": """merge_method: linear
models:
- {model: A, parameters: {weight: 0.5}}
- {model: B, parameters: {weight: 0.5}}
""",
    "merge task": """merge_method: task_arithmetic
base_model: BASE
models:
- {model: A, parameters: {weight: 0.4}}
- {model: B, parameters: {weight: 0.4}}
""",
    "merge ties": """merge_method: ties
base_model: BASE
models:
- {model: A, parameters: {weight: 1.0, density: 0.2}}
- {model: B, parameters: {weight: 1.0, density: 0.2}}
""",
}

# A transformer's layers: `largest` bytes each, the rest in one smaller one.
MAKE = """
import sys
import numpy as np
from wsurgery.checkpoint.header import TensorInfo, format_header
path, size, largest, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
count, rest = divmod(size // 4, largest // 4)
width = 1024
shapes = [(largest // 4 // width, width)] * count + [(rest,)] * bool(rest)
tensors = [TensorInfo(f"blocks.{i}.mlp.fc1.weight", "F32", shape, 0, 0).placed(0) for i, shape in enumerate(shapes)]
rng = np.random.default_rng(seed)
numbers = rng.normal(0.01, 0.02, largest // 4).astype(np.float32)
with open(path, "wb") as file:
    file.write(format_header(tensors, {"format": "pt"}))
    for tensor in tensors:
        file.write(np.roll(numbers, int(rng.integers(numbers.size)))[: tensor.elements].data)
"""

MAKE_MANY = """
import sys
from wsurgery.checkpoint.header import TensorInfo, format_header
path, n, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
names = [name.format(i, i // 500, i % 500) for i in range(n)]
with open(path, "wb") as file:
    file.write(format_header([TensorInfo(name, "F32", (1,), 0, 4) for name in names], {"format": "pt"}))
    file.write(bytes(4 * n))
"""


PARSE = """
import json, sys
with open(sys.argv[1], "rb") as file:
    json.loads(file.read(int.from_bytes(file.read(8), "little")))
"""


@dataclass(frozen=True)
class Cost:
    """What one process took: wall and CPU seconds, and its peak resident memory in MiB."""

    wall: float
    cpu: float
    memory: float


def run(command: Sequence[str | Path]) -> Cost:
    """Run a command to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return wait(process, start, command)


def wait(process: "subprocess.Popen[bytes]", start: float, command: Sequence[str | Path]) -> Cost:
    """Wait for a process that began at `start`.

    Raises:
        RuntimeError: it fails.
    """
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} failed: {said.decode()}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def pipe(commands: Sequence[Sequence[str | Path]]) -> tuple[float, list[Cost]]:
    """Run a pipeline into nothing; return its wall seconds and each stage's cost."""
    start, processes, upstream = time.perf_counter(), [], None
    for command in commands:
        last = command is commands[-1]
        process = subprocess.Popen(
            list(map(str, command)), stdin=upstream, stdout=subprocess.DEVNULL if last else subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        if upstream is not None:
            upstream.close()
        upstream = process.stdout
        processes.append(process)
    costs = [wait(process, start, command) for process, command in zip(processes, commands, strict=True)]
    return time.perf_counter() - start, costs


def median_costs(repeats: int, **sides: Callable[[], Cost]) -> dict[str, Cost]:
    """Run the sides in turn, once to warm up and `repeats` times; return the median of each, of memory the most."""
    median = statistics.median
    return {
        name: Cost(median(c.wall for c in costs[1:]), median(c.cpu for c in costs[1:]), max(c.memory for c in costs))
        for name, costs in in_turns(repeats, **sides).items()
    }


class Report:
    """The table, printed row by row."""

    def __init__(self) -> None:
        print("| what | wsurgery | compared to | ratio | wanted |\n|---|---|---|---|---|")

    def row(self, what: str, ours: str, theirs: str, ratio: float, wanted: str, *, met: bool) -> None:
        """Print one comparison; a ratio that misses what is wanted is marked."""
        print(f"| {what} | {ours} | {theirs} | {ratio:.3g}{'' if met else ' (missed)'} | {wanted} |", flush=True)

    def against(
        self, what: str, ours: Cost, theirs: Cost, label: str, most: float, memory: float | None = None
    ) -> None:
        """Compare wall time, and with `memory` the peak: theirs must be so many times ours."""
        ratio, peaks = ours.wall / theirs.wall, theirs.memory / ours.memory
        cost, other = (f"{c.wall:.2f} s, {c.memory:.0f} MiB" for c in (ours, theirs))
        wanted = f"at most {most:g} of its time" + (f", {memory:g} times less memory" if memory else "")
        self.row(what, cost, f"{label} {other}", ratio, wanted, met=ratio <= most and (not memory or peaks >= memory))


def start_up(report: Report, repeats: int, small: Path) -> None:
    """CPU time of the header-only commands."""
    sides = {
        "numpy": lambda: run([sys.executable, "-c", "import numpy"]),
        "--help": lambda: run([*WSURGERY, "--help"]),
        "show": lambda: run([*WSURGERY, "show", small]),
    }
    costs = median_costs(3 * repeats, **sides)
    for name in ("--help", "show"):
        ratio = costs[name].cpu / costs["numpy"].cpu
        ours, theirs = (f"{costs[side].cpu:.3f} s CPU" for side in (name, "numpy"))
        report.row(f"wsurgery {name}", ours, f"import numpy {theirs}", ratio, "at most 2.5", met=ratio <= 2.5)


def partial_copy(report: Report, repeats: int, folder: Path, source: Path, into: Path) -> None:
    """`transfuse` from one file into another, against cp and against the torch script."""
    out = folder / "out.safetensors"
    transfuse = [*WSURGERY, "transfuse", source, "--upto", "50%", "--into", into, "-o", out, "--force"]
    costs = median_costs(
        repeats,
        cp=lambda: run(["cp", source, out]),
        digests=lambda: run(transfuse),
        bare=lambda: run([*transfuse, "--no-digest"]),
    )
    cp, size = costs["cp"], f"{source.stat().st_size / 1e9:.1f} GB"
    for name, what, factor in (("digests", "", 2.5), ("bare", " --no-digest", 1.5)):
        cost, allowed = costs[name], factor * cp.wall + 0.25
        report.row(
            f"transfuse{what}, {size}", f"{cost.wall:.2f} s, {cost.memory:.0f} MiB", f"cp {cp.wall:.2f} s",
            cost.wall / cp.wall, f"{factor:g} times and 0.25 s; 90 MiB", met=cost.wall <= allowed and cost.memory < 90,
        )  # fmt: skip
    torch = median_costs(1, it=lambda: run([sys.executable, "-c", TORCH["partial copy"], source, into, out]))["it"]
    report.against(f"transfuse, {size}", costs["digests"], torch, "torch script", 0.5, 20)


def resample(report: Report, repeats: int, folder: Path, source: Path, most: float, largest: int) -> None:
    """`meanvar` against the torch script."""
    out = folder / "out.safetensors"
    costs = median_costs(
        repeats,
        ours=lambda: run([*WSURGERY, "meanvar", source, "-o", out, "--force"]),
        torch=lambda: run([sys.executable, "-c", TORCH["meanvar"], source, out]),
    )
    size = f"{source.stat().st_size / 1e9:.2g} GB"
    report.against(f"meanvar, {size}", costs["ours"], costs["torch"], "torch script", most)
    allowed = 64 + 4 * largest / MIB
    ratio = costs["ours"].memory / allowed
    report.row(
        f"meanvar, {size}", f"{costs['ours'].memory:.0f} MiB", f"64 MiB + 4 × largest tensor: {allowed:.0f} MiB", ratio,
        "at most 1", met=ratio <= 1,
    )  # fmt: skip


def convert(report: Report, repeats: int, folder: Path, a: Path, b: Path) -> None:
    """`cast` and `diff` against the torch scripts."""
    out, size = folder / "out.safetensors", f"{a.stat().st_size / 1e9:.1f} GB"
    for name, ours, rest in (
        ("cast", ["cast", a, "--to", "fp16", "-o", out, "--force"], [a, out]),
        ("diff", ["diff", a, b], [a, b]),
    ):
        costs = median_costs(
            repeats,
            ours=lambda ours=ours: run([*WSURGERY, *ours]),
            torch=lambda name=name, rest=rest: run([sys.executable, "-c", TORCH[name], *rest]),
        )
        report.against(f"{name}, {size}", costs["ours"], costs["torch"], "torch script", 0.5, 20)


def merges(
    report: Report, repeats: int, folder: Path, a: Path, b: Path, base: Path, pythons: Mapping[str, Path]
) -> None:
    """`lerp` and `merge` against sd-mecha and mergekit, each run by a Python that has it."""
    out, size = folder / "out.safetensors", f"{a.stat().st_size / 1e9:.1f} GB"

    def sd_mecha(name: str) -> Cost:
        return run([pythons["sd-mecha"], "-c", MECHA.format(SD_MECHA[name]), a, b, base, out])

    def mergekit(name: str) -> Cost:
        config = folder / "mergekit.yaml"
        text = re.sub(r"\b(A|B|BASE)\b", lambda found: str({"A": a, "B": b, "BASE": base}[found[0]]), MERGEKIT[name])
        config.write_text(f"{text}dtype: float32\n")
        command = ["-m", "mergekit.scripts.merge_raw_pytorch", config, folder / "mergekit", "--quiet"]
        return run([pythons["mergekit"], *command])

    others = {name: side for name, side in (("sd-mecha", sd_mecha), ("mergekit", mergekit)) if name in pythons}
    for name, most in (("lerp", 0.5), ("merge task", 0.5), ("merge ties", 1.0)):
        command, *method = name.split()
        how = ["--base", base, "--method", *method] if method else ["--t", "0.5"]
        costs = median_costs(
            repeats,
            ours=lambda command=command, how=how: run([*WSURGERY, command, a, b, *how, "-o", out, "--force"]),
            **{other: lambda name=name, side=side: side(name) for other, side in others.items()},
        )
        for other in others:
            report.against(f"{name}, {size}", costs["ours"], costs[other], other, most, 4)


def pipes(report: Report, repeats: int, source: Path, donor: Path) -> None:
    """A pipe of three against its slowest stage alone, from a file into nothing."""
    lines = {
        "transfuse · meanvar · freeze-spec": [
            ["transfuse", donor, "--upto", "50%", "--into", "-"],
            ["meanvar", "--blocks", "block1,block2,block3"],
            ["freeze-spec", "--upto", "block2"],
        ],
        "cast · scale · cast": [["cast", "--to", "bf16"], ["scale", "--by", "2"], ["cast", "--to", "fp32"]],
        "meanvar · shuffle · sample": [["meanvar"], ["shuffle"], ["sample"]],
    }
    for name, stages in lines.items():
        commands = [[*WSURGERY, *stage] for stage in stages]
        walls: list[float] = []
        alone: dict[int, list[Cost]] = {i: [] for i in range(len(stages))}
        for _ in range(repeats + 1):
            walls.append(pipe([["cat", source], *commands])[0])
            for i, command in enumerate(commands):
                wall, costs = pipe([["cat", source], command])
                alone[i].append(Cost(wall, costs[1].cpu, costs[1].memory))
        stages_alone = {i: statistics.median(cost.wall for cost in costs[1:]) for i, costs in alone.items()}
        slowest = max(stages_alone, key=stages_alone.__getitem__)
        wall, ratio = statistics.median(walls[1:]), statistics.median(walls[1:]) / stages_alone[slowest]
        spent = sum(statistics.median(c.cpu for c in costs) for costs in alone.values()) / cores()
        report.row(
            f"pipe: {name}", f"{wall:.2f} s", f"{stages[slowest][0]} alone {stages_alone[slowest]:.2f} s "
            f"(all their CPU time, over the cores: {spent:.2f} s)", ratio, "at most 1.6", met=ratio <= 1.6,
        )  # fmt: skip


def chains(report: Report, repeats: int, source: Path, out: Path) -> None:
    """Three edits in Python, in one pass, beside the same three in a pipe; from a file to a file."""
    lines = {
        "cast · scale · cast": (
            'cast(to="bf16").scale(by=2).cast(to="fp32")',
            ["cast --to bf16", "scale --by 2", "cast --to fp32"],
        ),
        "meanvar · shuffle · sample": ("meanvar().shuffle().sample()", ["meanvar", "shuffle", "sample"]),
    }
    for name, (methods, stages) in lines.items():
        code = f'import wsurgery; wsurgery.open("{source}").{methods}.write("{out}", force=True)'
        first, *middle, last = [[*WSURGERY, *stage.split()] for stage in stages]
        commands = [[*first, source], *middle, [*last, "-o", out, "--force"]]

        def in_shell(commands: Sequence[Sequence[str | Path]] = commands) -> Cost:
            wall, costs = pipe(commands)
            return Cost(wall, sum(cost.cpu for cost in costs), sum(cost.memory for cost in costs))

        costs = median_costs(repeats, chain=lambda code=code: run([sys.executable, "-c", code]), pipe=in_shell)
        said = {side: f"{c.wall:.2f} s, {c.cpu:.2f} s CPU, {c.memory:.0f} MiB" for side, c in costs.items()}
        ratio = costs["chain"].wall / costs["pipe"].wall
        report.row(
            f"chain in Python: {name}", said["chain"], f"pipe {said['pipe']}", ratio, "at most 1", met=ratio <= 1
        )


def many_tensors(report: Report, folder: Path) -> None:
    """Ten times as many one-element tensors in ten times the time."""
    out, costs = folder / "out.safetensors", {}
    for n in (20_000, 200_000):
        run([sys.executable, "-c", MAKE_MANY, folder / "many", str(n), "s.{0}.v"])
        costs[n] = median_costs(
            1, it=lambda: run([*WSURGERY, "scale", folder / "many", "--by", "2", "-o", out, "--force"])
        )["it"]
    few, many = (f"{cost.wall:.1f} s, {cost.memory:.0f} MiB" for cost in costs.values())
    ratio = costs[200_000].wall / costs[20_000].wall
    met = costs[200_000].wall <= 10
    report.row("scale, 200,000 tensors", many, f"20,000 tensors {few}", ratio, "at most 10 s", met=met)


def largest_header(report: Report, repeats: int, folder: Path) -> None:
    """`show` of nearly as many tensors as a header may have, beside Python's own parser of its JSON."""
    path = folder / "largest"
    run([sys.executable, "-c", MAKE_MANY, path, "1060000", "model.layers.{1}.mlp.w.{2}"])
    costs = median_costs(
        repeats,
        ours=lambda: run([*WSURGERY, "show", path]),
        json=lambda: run([sys.executable, "-c", PARSE, path]),
    )
    said = {side: f"{cost.cpu:.1f} s CPU, {cost.memory:.0f} MiB" for side, cost in costs.items()}
    ratio = costs["ours"].cpu / costs["json"].cpu
    report.row(
        "show, a header of 95 MB", said["ours"], f"json.loads {said['json']}", ratio, "at most 4", met=ratio <= 4
    )


def how_big(repeats: int, files: Sequence[Path]) -> None:
    """Cost per gigabyte and peak memory by size, output into nothing through a pipe."""
    commands = {
        "transfuse": lambda f: [*WSURGERY, "transfuse", f, "--upto", "50%", "--into", f],
        "meanvar": lambda f: [*WSURGERY, "meanvar", f],
        "shuffle": lambda f: [*WSURGERY, "shuffle", f],
        "cast": lambda f: [*WSURGERY, "cast", f, "--to", "bf16"],
        "show --stats": lambda f: [*WSURGERY, "show", f, "--stats"],
        "digest": lambda f: [*WSURGERY, "digest", f],
    }
    sizes = [f"{file.stat().st_size / 1e9:.3g} GB" for file in files]
    print("\n| command | " + " | ".join(sizes) + " | peaks |\n|---|" + "---|" * (len(files) + 1))
    for name, command in commands.items():
        costs = [
            median_costs(repeats, it=lambda f=f, command=command: pipe([command(f), ["cat"]])[1][0])["it"]
            for f in files
        ]
        cells = [
            f"{c.wall / (f.stat().st_size / 1e9):.2f} s a GB, {c.memory:.0f} MiB"
            for c, f in zip(costs, files, strict=True)
        ]
        spread = max(c.memory for c in costs) / min(c.memory for c in costs) - 1
        print(f"| {name} | " + " | ".join(cells) + f" | differ by {spread:.0%} |", flush=True)


def machine() -> str:
    """Say what this runs on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {cores()} cores, {memory:.0f} GiB, Python {sys.version.split()[0]}"


def main() -> None:
    """Make the files, run every comparison, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="a memory file system with 8 GB free")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="10 GB free, for `big`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--big", action="store_true", help="also 0.1, 1 and 10 GB")
    parser.add_argument(
        "--sd-mecha", type=Path, metavar="PYTHON", help="a Python that has sd-mecha: `lerp` and `merge`, too"
    )
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="likewise, of mergekit")
    parser.add_argument("--size", type=float, default=2.0, help="gigabytes of the large file")
    options = parser.parse_args()
    repeats = options.repeats
    print(f"{machine()}; medians of {repeats}\n")
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as memory,
        tempfile.TemporaryDirectory(dir=options.disk) as disk,
    ):
        folder = Path(memory)

        def make(name: str, size: float, largest: int, seed: int = 0, where: Path = folder) -> Path:
            path = where / name
            run([sys.executable, "-c", MAKE, path, str(int(size)), str(largest), str(seed)])
            return path

        largest, small_largest = 32 * MIB, 8 * MIB
        small = make("small", 102e6, small_largest)
        report = Report()
        start_up(report, repeats, small)
        many_tensors(report, folder)
        largest_header(report, repeats, folder)
        resample(report, repeats, folder, small, 0.25, small_largest)
        a, b = (
            make(name, options.size * 1e9, largest, seed)
            for seed, name in enumerate(("a.safetensors", "b.safetensors"))
        )
        partial_copy(report, repeats, folder, a, b)
        resample(report, repeats, folder, a, 0.35, largest)
        convert(report, repeats, folder, a, b)
        pipes(report, repeats, b, a)
        chains(report, repeats, b, folder / "chain")
        pythons = {"sd-mecha": options.sd_mecha, "mergekit": options.mergekit}
        if pythons := {name: python for name, python in pythons.items() if python}:
            base = make("base.safetensors", options.size * 1e9, largest, 2)
            merges(report, repeats, folder, a, b, base, pythons)
            base.unlink()
        b.unlink()
        a.unlink()
        if options.big:
            how_big(
                max(1, repeats // 2), [make(f"{size}", size * 1e9, largest, 0, Path(disk)) for size in (0.1, 1, 10)]
            )


if __name__ == "__main__":
    main()
