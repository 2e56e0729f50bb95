"""The findings of the paper by sets of real images: FINDINGS.md, from what `make results SCALE=real` left below out/.

python findings.py out/real out/real-sgd > FINDINGS.md
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = {"cifar_resnet20": "ResNet-20", "cifar_resnet56": "ResNet-56", "tf_efficientnet_lite0": "EfficientNet-Lite0"}
ALPHA = 0.05
HEAD = """# What holds on real images

The paper's findings on three public sets, by the recipes' own claims and tests; [how it was designed](DESIGN.md). A cell is the
effect with its 90 % interval, p, and p corrected for all claims of that recipe on that set (Holm). **Held**: p < .05 with the
correction; *held*: only without it. Each RESULTS-real.md has the seeds, patients and steps behind its row. Made by
`make -C recipes findings`.
"""


def reports(roots: list[Path]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield set, recipe, network and report of each that there is; claims across networks stand under no network."""
    for root in roots:
        for file in sorted(root.glob("*/*.json")):
            found = json.loads(file.read_text())
            networks = found.get("networks") or {next(iter(NAMES)): found}
            for network, report in networks.items():
                yield file.parent.name, file.stem, network, report
            if "networks" in found:
                yield file.parent.name, file.stem, "", {"claims": found["claims"], "arms": []}


def histograms(roots: list[Path], name: str) -> list[float]:
    """Return the AUC of a colour histogram in each fold of a set."""
    files = [file for root in roots for file in sorted((root / name).glob("*/runs/transfer/*/histogram.json"))]
    return [json.loads(file.read_text())["baseline"]["macro_auc"] for file in files]


def cell(claim: dict[str, Any]) -> str:
    """Write a verdict: the effect, p, and whether it held."""
    p, holm, effect = claim["p"], claim["holm"], claim["effect"]
    if p is None:
        return f"{effect}; not shown" if effect else claim["verdict"].partition(":")[0]
    word = "not shown" if p >= ALPHA else "**held**" if holm is None or holm < ALPHA else "*held*"
    corrected = f", Holm {holm:.2g}" if holm is not None and p < ALPHA else ""
    return f"{word}, {effect} (p = {p:.2g}{corrected})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines) + "\n"


def main(roots: list[Path]) -> None:
    """Print the page."""
    found = list(reports(roots))
    sets = list(dict.fromkeys(name for name, *_ in found))
    claims: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    baselines = [
        [name, "", "colour histogram", f"{sum(aucs) / len(aucs):.3f}", "", ""]
        for name, aucs in ((name, histograms(roots, name)) for name in sets)
        if aucs
    ]
    for name, recipe, network, report in found:
        for claim in report["claims"]:
            claims.setdefault((recipe, network, claim["claim"]), {})[name] = claim
        for arm in report["arms"]:
            known = arm.get("baseline")
            if known and recipe in ("meanvar", "freeze") and arm["test_macro_auc"]["values"]:
                above = sum(p < ALPHA and x > 0 for p, x in zip(known["p"], known["differences"], strict=True))
                means = [f"{sum(x) / len(x):.3f}" for x in (arm["test_macro_auc"]["values"], known["values"])]
                label = NAMES.get(network, network)
                baselines.append([name, label, arm["arm"], *means, f"{above} of {len(known['p'])}"])
    rows = []
    for (recipe, network, sentence), by_set in claims.items():
        held = sum((claim["p"] or 1) < ALPHA for claim in by_set.values())
        cells = [cell(by_set[name]) if name in by_set else "" for name in sets]
        rows.append(
            [
                f"[{recipe}]({recipe}/RESULTS-real.md)",
                NAMES.get(network, network),
                sentence,
                *cells,
                f"{held} of {len(by_set)}",
            ]
        )
    print(HEAD)
    print(table(["recipe", "network", "finding", *sets, "held on"], rows))
    print("## Against thumbnails\n")
    print(
        "Mean test AUC over the seeds, beside a logistic regression on 16-pixel thumbnails of the same training images, and\n"
        "how many networks are above it (DeLong's paired test by patients, p < .05, not corrected). A linear probe of frozen\n"
        "features is `freeze-` of the highest block.\n"
    )
    print(table(["set", "network", "arm", "test AUC", "thumbnails", "above"], baselines))


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
