"""Some seconds of random pipelines, or a minute; `soak.py` beside this takes an hour."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import wsurgery
from soak.checkpoints import Tensor, random_state, read, write
from soak.edits import random_edit
from soak.model import Refused, Undecided, differences, expected
from wsurgery.errors import WsurgeryError


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_random_pipelines_do_what_the_model_says_in_every_way(seconds):
    soak = Path(__file__).with_name("soak.py")
    command = [sys.executable, soak, "--minutes", str(seconds / 60), "--seed", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_model_sees_another_byte_where_it_knows_all_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, seen = Random(0), 0
    for number in range(25):
        state = random_state(rng)
        edit = random_edit(state, rng, tmp_path)
        write(state, tmp_path / "in", rng)
        try:
            known = expected(state, edit)
            edit(wsurgery.open("in")).write(str(number))
        except (Refused, Undecided, WsurgeryError):
            continue
        made = read(tmp_path / str(number))
        assert not differences(known, made, edit)
        for name, (dtype, shape, data) in list(made.tensors.items()):
            if data and isinstance(known.tensors[name], Tensor):
                made.tensors[name] = Tensor(dtype, shape, bytes([data[0] ^ 1, *data[1:]]))
                assert differences(known, made, edit)
                made.tensors[name] = Tensor(dtype, shape, data)
                seen += 1
    assert seen > 20
