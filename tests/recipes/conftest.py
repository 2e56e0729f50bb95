"""Running a recipe as a user does."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="session")
def make() -> Callable[..., str]:
    """Run `make -C recipes/RECIPE ARGUMENTS`, with this interpreter's commands on the path; return what it prints."""

    def run(recipe: str | Path, *arguments: str) -> str:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["make", "-C", str(RECIPES / recipe), "--no-print-directory", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MAKEFLAGS": ""},
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
