"""The findings of the paper by sets of real images: FINDINGS.md, from every RESULTS-real.md, and from what runs are at hand.

python findings.py RUNS PAGE [PAGE ...] > FINDINGS.md
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NAMES = {"cifar_resnet20": "ResNet-20", "cifar_resnet56": "ResNet-56", "tf_efficientnet_lite0": "EfficientNet-Lite0"}
ONLY = next(iter(NAMES))
ACROSS = "Across networks"
ALPHA = 0.05
HEAD = """# What holds on real images

The paper's findings on three public sets, by the recipes' own claims and tests; [how it was designed](DESIGN.md). A cell is the
effect with its 90 % interval, p, and p corrected for all claims of that recipe on that set (Holm). **Held**: p < .05 with the
correction; *held*: only without it. Each RESULTS-real.md has the seeds, patients and steps behind its row; on ham10000, where
nobody says whose a lesion is, what its pages call a patient is a lesion. Made by `make -C recipes findings`.
"""
CLAIM = re.compile(r"- \*\*(?P<sentence>.+?)\*\* (?P<evidence>.*) \*(?P<verdict>[^*]+)\*$")
P = re.compile(r"\(p = (?P<p>[^,()]+)(?:, Holm (?P<holm>[^,()]+))?")
ACROSS_OF = re.compile(r"(.+?)\.?(?: \(([^()]+)\))?")  # where a claim is about one of them
EFFECT = r"((?:[≤≥~] )?[+-]?\d[\d.]*\d)(?: \(90% interval ([^)]+\)))?"
TIMES, DIFFERENCE = re.compile(f"{EFFECT} times as many"), re.compile(f"difference {EFFECT}")
ALONE = re.compile(r"test AUC of (\d\.\d+).*?; (\d+ of \d+) networks are above it")


class Claim(NamedTuple):
    """What a page says of a claim."""

    sentence: str
    network: str
    verdict: str
    effect: str

    def p(self) -> float | None:
        """Return p of the claim's own test, None where there was none."""
        found = P.search(self.verdict)
        return float(found["p"]) if found else None

    def cell(self) -> str:
        """Write a verdict: whether it held, the effect, and p."""
        p, found = self.p(), P.search(self.verdict)
        if p is None or not found:
            return self.verdict.partition(":")[0].rstrip(".") + (f", {self.effect}" if self.effect else "")
        holm = found["holm"]
        word = "not shown" if p >= ALPHA else "**held**" if holm is None or float(holm) < ALPHA else "*held*"
        corrected = f", Holm {holm}" if holm and p < ALPHA else ""
        return f"{word}{', ' * bool(self.effect)}{self.effect} (p = {found['p']}{corrected})"


def named(network: str) -> str:
    """Write a network, and on how many images it was trained where that is not all of them."""
    name, _, images = network.partition("@")
    return NAMES.get(name, name) + (f", {int(images):,} images" if images else "")


def by_heading(text: str, level: int) -> Iterator[tuple[str, str]]:
    """Yield each heading of a level, and what stands below it."""
    pieces = re.split(rf"^{'#' * level} (.+)$", text, flags=re.MULTILINE)
    yield from zip(pieces[1::2], pieces[2::2], strict=True)


def networks(text: str, only: str) -> Iterator[tuple[str, str]]:
    """Yield each network of a set's part of a page, and its part."""
    found = list(by_heading(text, 2))
    yield from found or [(only, text)]


def claims(text: str, only: str) -> Iterator[Claim]:
    """Yield what a set's part of a page judges."""
    for network, part in networks(text, only):
        for line in filter(None, map(CLAIM.match, part.splitlines())):
            found = TIMES.search(line["evidence"]) or DIFFERENCE.search(line["evidence"])
            size = " (".join(filter(None, found.groups())) if found else ""
            size += " × the steps" if found and found.re is TIMES else ""
            sentence, of = ACROSS_OF.fullmatch(line["sentence"]).groups()
            yield Claim(sentence, (of or "") if network == ACROSS else network, line["verdict"], size)


def histogram(runs: Path, name: str) -> list[float]:
    """Return the AUC of a colour histogram in each fold of a set that was evaluated so."""
    files = sorted((runs / name).glob("*/runs/transfer/*/histogram.json"))
    return [json.loads(file.read_text())["baseline"]["macro_auc"] for file in files]


def baselines(runs: Path, name: str, text: str, only: str) -> Iterator[list[str]]:
    """Yield rows: each arm of a set beside what needs no network."""
    if found := histogram(runs, name):
        yield [name, "", "colour histogram, no network", f"{sum(found) / len(found):.3f}", "", ""]
    for network, part in networks(text, only):
        if alone := ALONE.search(part):
            for arm, auc in re.findall(r"^\| (random|transfer) \| \d+ \| (\S+(?: ± \S+)?)", part, re.MULTILINE):
                yield [name, named(network), arm, auc, alone[1], alone[2]]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines) + "\n"


def main(runs: Path, pages: list[Path]) -> None:
    """Print the page."""
    found: dict[tuple[str, str, str], dict[str, Claim]] = {}
    beside: dict[str, list[list[str]]] = {}
    for page in pages:
        recipe = page.parent.name
        for heading, text in list(by_heading(page.read_text(encoding="utf-8"), 1))[1:]:
            name, _, network = heading.partition(", ")
            beside.setdefault(name, [])
            if recipe == "meanvar":
                known = [row[:3] for row in beside[name]]
                beside[name] += [row for row in baselines(runs, name, text, network or ONLY) if row[:3] not in known]
            for claim in claims(text, network or ONLY):
                own = claim.network.split(", ")
                others = [other for other in network.split() if claim.network and other not in own]
                shown = " beside ".join([", ".join(map(named, own)), *map(named, others)])
                found.setdefault((recipe, shown, claim.sentence), {})[name] = claim
    rows = []
    for (recipe, shown, sentence), by_set in found.items():
        held = sum((claim.p() or 1) < ALPHA for claim in by_set.values())
        cells = [by_set[name].cell() if name in by_set else "" for name in beside]
        link = f"[{recipe}]({recipe}/RESULTS-real.md)"
        rows.append([link, shown, sentence, *cells, f"{held} of {len(by_set)}"])
    print(HEAD)
    print(table(["recipe", "network", "finding", *beside, "held on"], rows))
    print("## Against thumbnails\n")
    print(
        "Mean test AUC over the seeds, beside a logistic regression on 16-pixel thumbnails of the same training images, and\n"
        "how many networks of `meanvar` are above it (DeLong's paired test by patients, p < .05, not corrected). A linear probe\n"
        "of frozen features is `freeze-` of the highest block.\n"
    )
    rows = [row for name in beside for row in beside[name]]
    print(table(["set", "network", "arm", "test AUC", "thumbnails", "above"], rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
