"""`wsurgery merge`."""

from dataclasses import replace
from typing import Annotated, Literal

from wsurgery.plugin import Argument, Checkpoint, Option, RandomStream, Result, Selection, UsageError, edit


@edit()
def merge(
    sources: Annotated[
        list[Checkpoint], Argument(metavar="A B ...", help="Fine-tuned checkpoints; A may be -, standard input.")
    ],
    *,
    base: Annotated[
        Checkpoint | None, Option(metavar="BASE", help="What they began from. Needed but for --method slerp.")
    ] = None,
    method: Annotated[Literal["task", "ties", "dare", "breadcrumbs", "slerp", "stock"], Option(help="How.")],
    weights: Annotated[
        str | None, Option(metavar="W,...", help="One a checkpoint; not for stock. Default: 1; for slerp 0.5,0.5.")
    ] = None,
    lambda_: Annotated[
        float | None,
        Option(
            "--lambda", metavar="X", help="Factor of the sum. Default: 0.4 for task, breadcrumbs; 1 for ties, dare."
        ),
    ] = None,
    density: Annotated[
        float | None,
        Option(metavar="X", min=0, max=1, help="ties: the share of a task vector that stays. Default: 0.2."),
    ] = None,
    drop: Annotated[
        float | None, Option(metavar="P", min=0, max=1, help="dare: the share that is dropped, below 1. Default: 0.9.")
    ] = None,
    beta: Annotated[
        float | None, Option(metavar="X", min=0, max=1, help="breadcrumbs: smaller ones go, by rank. Default: 0.85.")
    ] = None,
    gamma: Annotated[
        float | None, Option(metavar="X", min=0, max=1, help="breadcrumbs: larger ones go, by rank. Default: 0.993.")
    ] = None,
    selection: Selection,
    random: RandomStream,
) -> Result:
    """Merge checkpoints that were fine-tuned from one, in float64 and rounded once to A's types.

    A task vector is a checkpoint less the base, and task is base + lambda times their weighted sum (Ilharco et al. 2023,
    arXiv 2212.04089). ties keeps of each, over all selected tensors, the largest elements, elects each element's sign by
    their sum, and takes the mean of those that agree (Yadav et al. 2023, arXiv 2306.01708). dare drops elements at random
    and rescales the others (Yu et al. 2024, arXiv 2311.03099); breadcrumbs drops the smallest and the largest of each tensor
    (Davari and Belilovsky 2024, arXiv 2312.06795). stock goes from the base to the mean as far as the angle between the task
    vectors of each tensor says (Jang et al. 2024, arXiv 2403.19522). slerp goes along the arc between each two tensors, and
    takes no base; the second weight says how far (Shoemake 1985).

    Integers, and what the selectors leave out, come from A: heads of other shapes, with --except. As in average, a wrapper's
    prefix that only one side has is looked through.

    Example: wsurgery merge one.safetensors two.safetensors --base base.safetensors --method ties > merged.safetensors

    Example: wsurgery merge one.safetensors two.safetensors --method slerp --weights 0.3,0.7 > between.safetensors
    """
    from wsurgery.operations.average import parse_weights
    from wsurgery.operations.merge import SETTINGS, merge_edits

    if (base is None) != (method == "slerp"):
        raise UsageError(
            f"--method {method} needs what the checkpoints began from: give --base BASE"
            if base is None
            else "--base is not for --method slerp: leave it out"
        )
    given = {"lambda_": lambda_, "density": density, "drop": drop, "beta": beta, "gamma": gamma}
    known = SETTINGS[method]
    for name in (name for name, value in given.items() if value is not None and name not in known):
        raise UsageError(f"--{name.rstrip('_')} is not for --method {method}: leave it out")
    settings = {**known, **{name: value for name, value in given.items() if value is not None}}
    if settings.get("drop") == 1:
        raise UsageError("--drop 1 drops everything: give a number below 1")
    if settings.get("beta", 0) > settings.get("gamma", 1):
        raise UsageError("--beta is above --gamma, and nothing is between them")
    result = merge_edits(
        sources,
        base,
        method=method,
        weights=parse_weights(weights),
        settings=settings,
        selection=selection,
        random=random,
    )
    return replace(result, recorded=settings if method == "dare" else {**settings, "seed": None})
