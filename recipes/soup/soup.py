"""Soups of runs that began from the same weights, their ensemble, and the best of them: test AUCs as JSON.

python soup.py RUN… --data SPEC
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import wsurgery
from wsurgery.errors import WsurgeryError
from wsurgery.statistics.auc import auc_per_label, macro
from wsurgery.studies import Images
from wsurgery.training.predictions import read_predictions


def main() -> None:
    """Evaluate them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    images = {split: Images(given.data, split=split) for split in ("valid", "test")}
    how = {"model": given.model, "device": given.device, "threads": given.threads}

    def auc(checkpoint: Path, split: str, predictions: Path | None = None) -> float:
        found = wsurgery.evaluate(checkpoint, data=images[split], bootstrap=0, predictions=predictions, **how)
        return float(found["macro_auc"])

    with tempfile.TemporaryDirectory() as folder:

        def soup(members: list[Path]) -> Path:
            if len(members) == 1:
                return members[0]
            out = Path(folder) / f"{len(list(Path(folder).iterdir()))}.safetensors"
            wsurgery.average(*members).recalibrate_bn(data=given.data, model=given.model).write(out)
            return out

        valid = {member: auc(member, "valid") for member in (run / "best.safetensors" for run in given.runs)}
        best_first = sorted(valid, key=lambda each: valid[each], reverse=True)
        greedy, value = best_first[:1], valid[best_first[0]]
        for member in best_first[1:]:
            with_it = auc(soup([*greedy, member]), "valid")
            if with_it >= value:
                greedy, value = [*greedy, member], with_it
        singles = {}
        for i, member in enumerate(best_first):
            singles[member.parent.parent.name] = auc(member, "test", Path(folder) / f"{i}.csv")
        each = [read_predictions(Path(folder) / f"{i}.csv") for i in range(len(best_first))]
        k = each[0].count
        scores = np.mean([found.scores for found in each], axis=0)
        result = {
            "single": next(iter(singles.values())),
            "uniform": auc(soup(best_first), "test"),
            "greedy": auc(soup(greedy), "test"),
            "ensemble": macro(auc_per_label(each[0].labels[:, :k], scores[:, :k], each[0].names[:k])),
            "greedy_members": [member.parent.parent.name for member in greedy],
            "runs": singles,
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    try:
        main()
    except WsurgeryError as error:
        sys.exit(f"soup.py: {error}")
