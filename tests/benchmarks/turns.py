"""The sides of a comparison, run in turns, so that what disturbs one disturbs the other."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def on_cuda() -> str:
    """Say which card this is, with the versions that its speed depends on; end in good order where there is none."""
    import torch  # which surgery, measured with this module, does without

    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        sys.exit(0)
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def in_turns(repeats: int, **sides: Callable[[], Result]) -> dict[str, list[Result]]:
    """Run the sides in turn, once to warm up and `repeats` times; return what each gave, the warming up first."""
    found: dict[str, list[Result]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, side in sides.items():
            found[name].append(side())
    return found


def medians(
    repeats: int, clock: Callable[[], float] = time.process_time, **sides: Callable[[], object]
) -> dict[str, float]:
    """Run the sides in turn; return the median seconds of each, those of the warming up only where nothing else ran."""

    def timed(side: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            start = clock()
            side()
            return clock() - start

        return run

    seconds = in_turns(repeats, **{name: timed(side) for name, side in sides.items()})
    return {name: statistics.median(times[1:] or times) for name, times in seconds.items()}
