"""The baselines that a network's AUC is held against, by name, for those who do not need them computed."""

from typing import Literal, get_args

Name = Literal["thumbnail", "histogram"]
NAMES: tuple[Name, ...] = get_args(Name)
WORDS: dict[Name, str] = {"thumbnail": "16-pixel thumbnails", "histogram": "colour histograms"}  # "regression on …"
