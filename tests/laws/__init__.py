"""What always holds of each command, with the test that checks it, and the papers that its help does not name.

docs/commands.md shows them; tests/test_reference.py writes that, and holds what a table of them has to be.
"""

from tests.laws.edits import OF_EDITS, OF_EVERY_EDIT
from tests.laws.law import Law
from tests.laws.studies import OF_STUDIES

__all__ = ["LAWS", "OF_EVERY_EDIT", "SOURCES", "Law"]

LAWS = OF_EDITS | OF_STUDIES

_TRANSFUSION = "Raghu et al. 2019, *Transfusion*, arXiv 1902.07208"
SOURCES: dict[str, list[str]] = {
    "average": ["Wortsman et al. 2022, arXiv 2203.05482", "Ilharco et al. 2023, arXiv 2212.04089"],
    "cca": [
        "Raghu et al. 2017, arXiv 1706.05806", "Morcos et al. 2018, arXiv 1806.05759",
        "Kornblith et al. 2019, arXiv 1905.00414", "Ding et al. 2021, arXiv 2108.01661",
    ],
    "compare": ["DeLong, DeLong and Clarke-Pearson 1988", "Obuchowski 1997", "Fisher 1935"],
    "eval": ["DeLong, DeLong and Clarke-Pearson 1988", "Sun and Xu 2014", "Obuchowski 1997"],
    "freeze-spec": [_TRANSFUSION],
    "gabor": [f"{_TRANSFUSION}, appendix F.3"],
    "init": [f"{_TRANSFUSION}, appendix A: the CBR networks", "Goyal et al. 2017, arXiv 1706.02677: zero-init-last"],
    "lerp": ["Frankle et al. 2020, arXiv 1912.05671"],
    "low-rank": ["Eckart and Young 1936"],
    "meanvar": [_TRANSFUSION],
    "permute": ["Ainsworth, Hayase and Srinivasa 2023, arXiv 2209.04836"],
    "prune": ["Han et al. 2015, arXiv 1506.02626"],
    "recalibrate-bn": ["Izmailov et al. 2018, arXiv 1803.05407, section 3"],
    "report": ["Fisher 1935", "Schuirmann 1987", "Holm 1979"],
    "sample": [_TRANSFUSION],
    "shuffle": [_TRANSFUSION, "Rao 1961 and Sandelius 1962: the permutation"],
    "spectrum": ["Stewart 1980: random orthogonal matrices"],
    "train": [f"{_TRANSFUSION}, appendix A: the presets", "Bao et al. 2022, arXiv 2106.08254: the decay by depth"],
    "transfuse": [_TRANSFUSION],
    "view": ["Bederson, Shneiderman and Wattenberg 2002: the map of areas"],
}  # fmt: skip
