"""Half a minute of damage to files of every kind, in two parts: nothing but refusals. `attack.py` beside this takes an hour."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from mutations import mutators
from mutations.honest import KINDS


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_file_can_do_nothing_but_be_refused(part):
    attack = Path(__file__).with_name("attack.py")
    kinds = [word for kind in list(KINDS)[part::2] for word in ("--kind", kind)]
    done = subprocess.run(
        [sys.executable, attack, "--minutes", "0.1", *kinds], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mutate", [mutators.of_bytes, mutators.of_json], ids=lambda each: each.__name__)
def test_damage_is_the_same_for_the_same_number_and_is_damage(mutate):
    content = b'{"a": [1, {"b": "c"}], "d": null}'
    damaged = [mutate(content, Random(seed)) for seed in range(50)]
    assert damaged == [mutate(content, Random(seed)) for seed in range(50)]
    assert sum(each != content for each in damaged) > 40
