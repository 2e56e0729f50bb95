"""The pages of the recipes `barrier`, `rewind` and `soup`, from the JSON that their commands left.

python beyond.py barrier out/toy/resnet18 …
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from wsurgery.experiments.claims import Claim, corrected
from wsurgery.experiments.summary import effect, in_words
from wsurgery.experiments.what_ran import data_in_words
from wsurgery.statistics.permutation import sign_flip, verdict
from wsurgery.statistics.spread import spread
from wsurgery.training.run_folder import read_config

Values = Mapping[str, float]  # seed → value


def written(values: Sequence[float]) -> str:
    """Write the mean and the spread, with a digit more than AUCs have elsewhere: a loss may change by little."""
    return in_words(spread(values), digits=4)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def verdicts(claims: Sequence[tuple[str, Values, Values]]) -> Iterator[str]:
    """Say of each claim that its first values are larger than its second, seed by seed, whether that is shown."""
    found = []
    for sentence, more, less in claims:
        differences = [more[seed] - less[seed] for seed in more if seed in less]
        test = sign_flip(differences)
        found.append(Claim(sentence, f"By {effect(differences, '{:+.4f}'.format)}:", verdict(test), test.p))
    for claim in corrected(found):
        yield f"- **{claim.claim}** {claim.evidence} *{claim.verdict}.*\n"


def barrier(net: Path) -> Iterator[str]:
    """Give the barriers between runs and their twins."""
    found = {
        way.name: {file.stem: json.loads(file.read_text()) for file in sorted(way.glob("*.json"))}
        for way in sorted((net / "barrier").iterdir())
    }
    loss = {
        way: {seed: path["barrier"]["loss"]["value"] for seed, path in paths.items()} for way, paths in found.items()
    }
    rows = []
    for way, paths in found.items():
        ends = [point["macro_auc"] for path in paths.values() for point in (path["points"][0], path["points"][-1])]
        middle = [path["points"][len(path["points"]) // 2]["macro_auc"] for path in paths.values()]
        rows.append([way, str(len(paths)), written([*loss[way].values()]), written(ends), written(middle)])
    yield table(["pair", "seeds", "barrier of the loss", "test AUC of the ends", "of the middle"], rows)
    yield from verdicts([
        ("Between two networks from random weights the barrier is higher than between two from the same pretrained ones.",
         loss["random-recalibrated"], loss["transfer-recalibrated"]),
        ("Hidden units aligned, the barrier between networks from random weights is lower.",
         loss["random-recalibrated"], loss["random-aligned"]),
        ("Recalibrated, the barrier between networks from pretrained weights is lower than with interpolated statistics.",
         loss["transfer-as-it-is"], loss["transfer-recalibrated"]),
    ])  # fmt: skip


def rewind(net: Path) -> Iterator[str]:
    """Give what the test AUC loses when a block is set back."""
    lost: dict[tuple[str, str, str], dict[str, float]] = {}
    for done in sorted((net / "rewind").glob("*/*/done")):
        arm, seed = done.parent.parent.name, done.parent.name
        aucs = {file.parent.name: json.loads(file.read_text())["macro_auc"] for file in done.parent.glob("*/eval.json")}
        for name, auc in aucs.items():
            if name != "whole":
                block, _, to = name.rpartition("-")
                lost.setdefault((arm, block, to), {})[seed] = aucs["whole"] - auc
    blocks = list(dict.fromkeys(block for _, block, _ in sorted(lost, key=lambda key: (key[1] != "conv1", key[1]))))
    ways = [(arm, to) for arm in ("transfer", "random") for to in ("start", "fresh")]
    head = [f"{arm}, to {'its beginning' if to == 'start' else 'fresh weights'}" for arm, to in ways]
    yield table(
        ["block", *head],
        [[block, *(written([*lost[arm, block, to].values()]) for arm, to in ways)] for block in blocks],
    )
    yield (
        "Test AUC that is lost: mean over the seeds and their range, from 4 seeds on ± one standard deviation; batch norm "
        "recalibrated.\n"
    )

    def mean(arm: str, to: str, some: Sequence[str] = blocks) -> dict[str, float]:
        return {seed: fmean(lost[arm, block, to][seed] for block in some) for seed in lost[arm, blocks[0], to]}

    yield from verdicts([
        ("Set back to its beginning, a block costs more in networks from random weights than from pretrained ones.",
         mean("random", "start"), mean("transfer", "start")),
        ("Fresh weights cost more than the beginning, in networks from pretrained weights.",
         mean("transfer", "fresh"), mean("transfer", "start")),
        ("Fresh weights cost more than the beginning, in networks from random weights.",
         mean("random", "fresh"), mean("random", "start")),
        ("The lowest block costs more than the highest, set back to fresh weights, in networks from pretrained ones.",
         mean("transfer", "fresh", blocks[:1]), mean("transfer", "fresh", blocks[-1:])),
    ])  # fmt: skip


def soup(net: Path) -> Iterator[str]:
    """Give the soups beside the single networks, and the line from a network's beginning to its end."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted((net / "soup").glob("[0-9]*.json"))}
    ways = {
        way: {seed: each[way] for seed, each in found.items()} for way in ("single", "uniform", "greedy", "ensemble")
    }
    members = {seed: float(len(each["greedy_members"])) for seed, each in found.items()}
    said = {
        "single": "the best single one, by validation",
        "uniform": "the average of all",
        "greedy": f"the greedy soup, of {fmean(members.values()):.1f} networks",
        "ensemble": "the ensemble of all, by mean logits",
    }
    runs = {run: [each["runs"][run] for each in found.values()] for run in sorted(next(iter(found.values()))["runs"])}
    yield table(
        ["", "test AUC"],
        [
            *([said[way], written([*values.values()])] for way, values in ways.items()),
            *([f"`{run}`", written(values)] for run, values in runs.items()),
        ],
    )
    yield from verdicts([
        ("The average of all ends higher than the best single network.", ways["uniform"], ways["single"]),
        ("The greedy soup ends higher than the best single network.", ways["greedy"], ways["single"]),
        ("The ensemble ends higher than the average.", ways["ensemble"], ways["uniform"]),
    ])  # fmt: skip
    lines = [json.loads(file.read_text())["points"] for file in sorted((net / "soup").glob("line-*.json"))]
    yield table(
        ["from the beginning (0) to the end (1)", "test AUC", "loss"],
        [
            [f"{points[0]['t']:g}", *(written([point[key] for point in points]) for key in ("macro_auc", "loss"))]
            for points in zip(*lines, strict=True)
        ],
    )


def what_was_run(net: Path) -> Iterator[str]:
    """Give the data of the runs beside a network's results, with the digests of its splits, each once."""
    configs = map(read_config, sorted((net / "runs").glob("*/*/config.json")))
    if said := [words for words in dict.fromkeys(map(data_in_words, configs)) if words]:
        yield "### What was run\n"
        yield "\n".join(f"- data: `{words}`" for words in said) + "\n"


if __name__ == "__main__":
    recipe, *folders = sys.argv[1:]
    of_a_set = Path(folders[0]).parent.parent.name == "real"  # out/real/SET/NET
    print(f"# {Path(folders[0]).parent.name if of_a_set else recipe}\n")
    for folder in map(Path, folders):
        print(f"## {folder.name}\n")
        print("\n".join({"barrier": barrier, "rewind": rewind, "soup": soup}[recipe](folder)))
        print("\n".join(what_was_run(folder)))
    print(
        "Tests: exact, signs of the differences by seed are flipped; one-sided, shown is p < .05. Made by `make results`."
    )
