"""A run that is killed, at any moment, and run again ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TRAINING
from wsurgery.data.dataset import load_dataset
from wsurgery.data.sources import make_data, open_data
from wsurgery.ending import ASKING
from wsurgery.errors import WsurgeryError
from wsurgery.training import interruption
from wsurgery.training.interruption import Interrupted, signals_ignored, signals_noted
from wsurgery.training.loop import train
from wsurgery.training.optimisation import make_optimizer
from wsurgery.training.resume import Progress, read_state, write_state
from wsurgery.training.settings import Settings

# Imports once, then runs each command line in a process of its own. With a number N the process gets a signal, for real,
# as it is about to change the folder `run` for the Nth time: before a file there gets its name, or is removed; or else
# so many seconds after it began.
FORKS = """
import json, os, signal, sys, threading, time
import torch, torch._dynamo, timm.optim, wsurgery.data.dataset, wsurgery.training.loop
from wsurgery import ending
from wsurgery.command_line import build_app

def kill_at(n, run, number):
    left = n
    def hook(event, arguments):
        nonlocal left
        if event in ("os.rename", "os.remove") and str(arguments[-2 if event == "os.remove" else 1]).startswith(run):
            left -= 1
            if not left:
                os.kill(os.getpid(), number)
    sys.addaudithook(hook)

def kill_after(seconds, number):
    def wait():
        time.sleep(seconds)
        os.kill(os.getpid(), number)
    threading.Thread(target=wait, daemon=True).start()

ending.heed_signals()
app = build_app()
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        if order["kill_at"]:
            kill_at(order["kill_at"], order["run"], order["signal"])
        if order["kill_after"]:
            kill_after(order["kill_after"], order["signal"])
        try:
            app(order["arguments"])
        except SystemExit as end:
            os._exit(end.code or 0)  # taking the interpreter down in good order takes longer than the training
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def train_killed(fresh, fundus):
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def run(folder, kill_at=None, kill_after=None, number=signal.SIGKILL):
        words = ["train", fresh, "--data", fundus, "-o", folder, *TRAINING]
        order = {"arguments": list(map(str, words)), "run": str(folder)}
        order |= {"kill_at": kill_at, "kill_after": kill_after, "signal": number}
        print(json.dumps(order), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    with process:
        yield run
        process.stdin.close()


def content(run):
    """Every file that the run left, but for its speed and for temporary files."""
    found = {path.name: path.read_bytes() for path in run.iterdir() if not path.name.startswith(".")}
    found["log.jsonl"] = [
        {key: value for key, value in json.loads(line).items() if key != "images_per_second"}
        for line in found["log.jsonl"].decode().splitlines()
    ]
    return found


@pytest.mark.slow
def test_killed_at_every_moment_and_run_again_it_ends_with_the_same_bytes(train_killed, finished, tmp_path):
    unbroken = content(finished)
    kills = 0
    while (status := train_killed(tmp_path / str(kills), kill_at=kills + 1)) != 0:
        assert status == -signal.SIGKILL
        assert train_killed(tmp_path / str(kills)) == 0
        assert content(tmp_path / str(kills)) == unbroken, f"killed before change {kills + 1}"
        kills += 1
    assert content(tmp_path / str(kills)) == unbroken
    assert kills > 10  # two files at the start, two or three at each evaluation, two at the end


def test_killed_again_and_again_it_still_gets_there(train_killed, finished, tmp_path):
    statuses = [train_killed(tmp_path / "run", kill_at=4)]
    while statuses[-1] != 0:
        statuses.append(train_killed(tmp_path / "run", kill_at=4))
        assert len(statuses) < 20
    assert len(statuses) > 3
    assert content(tmp_path / "run") == content(finished)


@pytest.mark.slow
def test_killed_after_any_time_again_and_again_it_still_gets_there(train_killed, finished, tmp_path):
    rng = random.Random(0)
    statuses = [train_killed(tmp_path / "run", kill_after=0.1)]
    while statuses[-1] != 0:
        assert statuses[-1] == -signal.SIGKILL
        statuses.append(train_killed(tmp_path / "run", kill_after=rng.uniform(0, 0.2 * len(statuses))))
    assert len(statuses) > 1
    assert content(tmp_path / "run") == content(finished)


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_ends_a_run_in_good_order(number, train_killed, finished, tmp_path):
    run = tmp_path / "run"
    assert train_killed(run, kill_at=3, number=number) == 128 + number  # as it writes the state of step 0
    assert not (run / "metrics.json").exists()
    assert train_killed(run, kill_at=4, number=number) == 128 + number  # of step 4, after two checkpoints of step 0
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [0, 4]
    assert train_killed(run) == 0
    assert content(run) == content(finished)


@pytest.mark.parametrize(
    ("args", "more"),
    [
        ([], {}),
        (["--arg=drop_rate=0.5", "--arg=proj_drop_rate=0.1"], {"ema": 0.9, "grad_clip": 0.1, "optimizer": "adamw"}),
        ([], {"optimizer": "momentum", "warmup_epochs": 1, "decay_epochs": (2,), "patience": 4}),
    ],
    ids=["plain", "dropout, average", "schedule"],
)
def test_a_run_that_is_stopped_after_every_step_ends_with_the_same_bytes(args, more, invoke, fundus, tmp_path):
    init = tmp_path / "vit"
    small = [f"--arg={word}" for word in ("img_size=32", "patch_size=8", "embed_dim=16", "depth=1", "num_heads=2")]
    invoke("init", "vit_tiny_patch16_224", "--num-classes", 5, *small, *args, "-o", init)
    settings = Settings(**{"steps": 23, "epochs": None, "batch_size": 8, "lr": 0.01, "eval_every": 13, **more})
    data = [load_dataset(fundus, split=split) for split in ("train", "valid")]

    def run(folder, signalled):
        device = torch.device("cpu")
        train(init, folder, *data, settings, data=fundus, arguments=[], device=device, signalled=signalled)

    run(tmp_path / "unbroken", lambda: 0)
    steps = []
    while not (tmp_path / "stopped" / "metrics.json").exists():
        try:
            run(tmp_path / "stopped", iter([0, signal.SIGTERM]).__next__)
        except Interrupted as stopped:
            steps.append((stopped.exit_status, str(stopped).partition(":")[0]))
    assert steps == [(143, f"stopped by SIGTERM after step {step} of 23") for step in range(1, 23)]
    assert content(tmp_path / "stopped") == content(tmp_path / "unbroken")


def test_a_signal_after_the_loss_has_left_the_numbers_keeps_the_state_before(fresh, fundus, tmp_path):
    settings = Settings(steps=9, epochs=None, batch_size=8, lr=1e30, optimizer="momentum", eval_every=9)
    data = [load_dataset(fundus, split=split) for split in ("train", "valid")]
    state = tmp_path / "run" / "resume.pt"

    def run(signals):
        train(
            fresh, state.parent, *data, settings, data=fundus, arguments=[], device=torch.device("cpu"),
            signalled=iter(signals).__next__,
        )  # fmt: skip

    with pytest.raises(Interrupted):
        run([signal.SIGTERM])
    begun = state.read_bytes()
    for signals in ([0, 0, 0, 0, signal.SIGTERM], [0] * 10):
        with pytest.raises(WsurgeryError, match=r"^the loss is (nan|inf) at step \d: try a lower --lr$"):
            run(signals)
        assert state.read_bytes() == begun


def test_a_signal_is_noted_and_only_a_later_ctrl_c_is_another(monkeypatch):
    def earlier(number, frame):
        raise KeyError(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, earlier) for number in numbers]
    try:
        with signals_noted() as signalled:
            assert signalled() == 0
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                assert signalled() == signal.SIGTERM
            monkeypatch.setattr(interruption, "IMPATIENT", 0)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(KeyError):
                os.kill(os.getpid(), signal.SIGINT)
        assert [signal.getsignal(number) for number in numbers] == [earlier, earlier]
        with signals_ignored():
            for number in numbers:
                os.kill(os.getpid(), number)
        assert [signal.getsignal(number) for number in numbers] == [earlier, earlier]
    finally:
        for number, each in zip(numbers, before, strict=True):
            signal.signal(number, each)


def test_a_closed_terminal_does_not_end_what_nohup_has_started():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_noted() as signalled:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signalled() == 0
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signalled() == signal.SIGUSR1
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_finished_run_is_left_alone(train_killed, tmp_path):
    run = tmp_path / "run"
    assert train_killed(run) == 0

    def state():
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}

    before = state()
    assert train_killed(run) == 0
    after = state()
    assert after["metrics.json"][1] == before["metrics.json"][1]  # its date says to make that the run is of now
    del after["metrics.json"], before["metrics.json"]
    assert after == before


@pytest.mark.parametrize(
    "more",
    [[], ["--optimizer", "adamw", "--warmup-epochs", 1, "--decay-epochs", "2"], ["--ema", 0.9]],
    ids=["adam", "schedule", "ema"],
)
def test_a_finished_run_is_lengthened_to_the_bytes_of_one_long_run(more, invoke, fresh, fundus, tmp_path):
    def train(folder, *length):
        words = ["--eval-every", 4, "--batch-size", 8, "--lr", 0.01, "--device", "cpu", "--threads", 1, *more]
        return invoke("train", fresh, "--data", fundus, "-o", folder, *words, *length)

    short, long = tmp_path / "short", tmp_path / "long"
    train(long, "--steps", 20)
    train(short, "--steps", 8)
    train(short, "--steps", 12)
    assert json.loads((short / "metrics.json").read_text())["steps"] == 12
    train(short, "--steps", 20)
    assert content(short) == content(long)


def test_a_run_that_a_longer_one_does_not_pass_through_is_not_lengthened(finished, invoke, fresh, fundus, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    words = ["--batch-size", 8, "--lr", 0.01, "--device", "cpu", "--threads", 1]

    def refused(folder, *more, status=2):
        before = content(folder)
        done = invoke("train", fresh, "--data", fundus, "-o", folder, *words, *more, check=False)
        assert done.exit_code == status
        assert content(folder) == before
        return done.stderr.splitlines()[-1]

    assert "it has 12 steps, and 8 are fewer" in refused(run, "--steps", 8, "--eval-every", 4)
    assert "(eval_every was 4 and is 5)" in refused(run, "--steps", 20, "--eval-every", 5)
    odd = tmp_path / "odd"
    invoke("train", fresh, "--data", fundus, "-o", odd, *words, "--steps", 6, "--eval-every", 4)
    assert "an evaluation after step 6" in refused(odd, "--steps", 12, "--eval-every", 4)
    for name in ("resume.pt", "best.safetensors"):
        (run / name).rename(tmp_path / name)
        assert f"is finished and has no {name}" in refused(run, "--steps", 16, "--eval-every", 4)
        (run / name).write_bytes(b"PK")
        assert name in refused(run, "--steps", 16, "--eval-every", 4, status=1)
        (tmp_path / name).replace(run / name)
    invoke("train", fresh, "--data", fundus, "-o", run, *words, "--steps", 16, "--eval-every", 4)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_lengthened(train_killed, invoke, fresh, fundus, tmp_path):
    run, long = tmp_path / "run", [*TRAINING, "--steps", 16]
    assert train_killed(run, kill_at=4) == -signal.SIGKILL
    assert (run / "resume.pt").exists()
    assert not (run / "best.safetensors").exists()
    for folder in (run, tmp_path / "long"):
        invoke("train", fresh, "--data", fundus, "-o", folder, *long)
    assert content(run) == content(tmp_path / "long")


def test_a_run_goes_on_wherever_its_weights_and_data_lie_now(finished, invoke, fresh, fundus, tmp_path):
    make_data(fundus, tmp_path / "data", threads=1)
    shutil.copy(fresh, tmp_path / "fresh.safetensors")
    words = [*TRAINING, "-o", tmp_path / "run", "--data"]
    invoke("train", tmp_path / "fresh.safetensors", *words, tmp_path / "data" / "manifest.csv", "--steps", 8)
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "moved" / "manifest.csv").rename(tmp_path / "moved" / "images.csv")
    (tmp_path / "fresh.safetensors").rename(tmp_path / "first.safetensors")
    invoke("train", tmp_path / "first.safetensors", *words, tmp_path / "moved" / "images.csv")
    once, moved = (load_file(folder / "last.safetensors") for folder in (finished, tmp_path / "run"))
    assert all(torch.equal(once[name], value) for name, value in moved.items())


def test_drawn_data_are_other_data_where_their_specification_is(invoke, tmp_path):
    """Textures of any size have the same rows."""
    data = [f"synthetic:textures?n=60&size={size}" for size in (16, 32)]
    labels = [open_data(spec).where("train").digest for spec in data]
    assert labels[0] == labels[1]
    classes = len(open_data(data[0]).label_names)
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", classes, "-o", tmp_path / "x")
    words = ["train", tmp_path / "x", "-o", tmp_path / "run", "--steps", 1, "--threads", 1, "--data"]
    invoke(*words, data[0])
    refused = invoke(*words, data[1], check=False)
    assert refused.exit_code == 2
    assert "was begun with other data" in refused.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lr", 0.5], "was begun with other settings: choose another folder with -o"),
        (["--seed", 7, "--lr", 0.5], "(lr was 0.01 and is 0.5, seed was 0 and is 7)"),
        (["--eval-split", "test"], "was begun with other data"),
    ],
)
def test_other_settings_on_the_same_folder_are_refused(more, words, finished, invoke, fresh, fundus):
    before = content(finished)
    refused = invoke("train", fresh, "--data", fundus, "-o", finished, *TRAINING, *more, check=False)
    assert refused.exit_code == 2
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert content(finished) == before


@pytest.mark.parametrize("more", [["--lr", 0.5], ["--steps", 8], ["--steps", 4, "--eval-every", 2]])
def test_anew_replaces_a_run_of_other_settings_and_goes_on_with_one_of_the_same(
    more, finished, invoke, fresh, fundus, tmp_path
):
    def train(folder, *more):
        return invoke("train", fresh, "--data", fundus, "-o", folder, *TRAINING, *more)

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    train(run, "--anew")
    after = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert {name for name in before if after[name] != before[name]} == {"metrics.json"}  # by which make comes to rest
    for name in ("eval.json", "predictions.csv", "cca-init.json", "notes"):  # of the run that is replaced, and not
        (run / name).write_text("old")
    train(run, *more, "--anew")
    train(tmp_path / "other", *more)
    assert content(run) == {**content(tmp_path / "other"), "notes": b"old"}


def test_anew_leaves_a_folder_alone_that_is_no_run(invoke, fresh, fundus, tmp_path):
    (tmp_path / "notes").write_text("mine")
    refused = invoke("train", fresh, "--data", fundus, "-o", tmp_path, *TRAINING, "--anew", check=False)
    assert refused.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_another_checkpoint_on_the_same_folder_is_refused(finished, invoke, fundus, tmp_path):
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 5, "--seed", 2, "-o", tmp_path / "other")
    refused = invoke("train", tmp_path / "other", "--data", fundus, "-o", finished, *TRAINING, check=False)
    assert refused.exit_code == 2
    assert "was begun with other init" in refused.stderr


def test_a_folder_with_something_else_in_it_is_refused(invoke, fresh, fundus, tmp_path):
    (tmp_path / "thesis.tex").write_text("Chapter 1")
    refused = invoke("train", fresh, "--data", fundus, "-o", tmp_path, *TRAINING, check=False)
    assert refused.exit_code == 2
    assert "holds thesis.tex and no run" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_optimisers_state_lies_in_memory_as_the_parameters_do(tmp_path):
    """Channels last, which fused kernels ask for; what is written is in PyTorch's own layout."""

    def begun(steps):
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        for _ in range(steps):
            network(torch.ones(1, 3, 5, 5)).sum().backward()
            optimizer.step()
        return network, optimizer

    network, optimizer = begun(2)
    path = tmp_path / "resume.pt"
    wrote(path, network, optimizer)
    again, fresh = begun(0)
    read_state(path, network=again, optimizer=fresh, average=None, steps=9, log_bytes=0)
    for parameter, before in zip(again.parameters(), network.parameters(), strict=True):
        for key, value in optimizer.state[before].items():
            assert torch.equal(fresh.state[parameter][key], value)
            assert fresh.state[parameter][key].stride() == value.stride()
    again(torch.ones(1, 3, 5, 5)).sum().backward()
    fresh.step()


def wrote(path, network, optimizer):
    with path.open("wb") as stream:
        write_state(stream, network=network, optimizer=optimizer, average=None, progress=Progress(), log_bytes=0)


def stepped(name, path=None, steps=0):
    """A network and its optimiser in the state that a file holds, or at the beginning, after more steps."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(36, 40))
    settings = Settings(optimizer=name, lr=0.01, weight_decay=0.01)
    optimizer = make_optimizer(list(network.parameters()), settings, [1, 1, 0.5, 0.5])
    done = 0
    if path is not None:
        read_state(path, network=network, optimizer=optimizer, average=None, steps=9, log_bytes=0)
        done = 3
    for step in range(done, done + steps):
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("name", ["lamb", "adan", "adafactorbv", "lookahead_adam", "adamw", "momentum"])
def test_an_optimiser_goes_on_from_its_written_state_as_if_it_had_not_stopped(name, tmp_path):
    wrote(tmp_path / "3.pt", *stepped(name, steps=3))
    wrote(tmp_path / "5.pt", *stepped(name, tmp_path / "3.pt", steps=2))
    wrote(tmp_path / "unbroken.pt", *stepped(name, steps=5))
    assert (tmp_path / "5.pt").read_bytes() == (tmp_path / "unbroken.pt").read_bytes()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("lamb", {"step": torch.ones(2)}),
        ("lamb", {"step": torch.ones((), dtype=torch.bool)}),
        ("adan", {"step": "1"}),
        ("adan", {"step": True}),
        ("adan", {"step": [1]}),
        ("adan", {"step": None}),
        ("adafactorbv", {"momentum_dtype": torch.float16}),
        ("adafactorbv", {"momentum_dtype": "bfloat16"}),
        ("adafactorbv", {"momentum_dtype": 1}),
    ],
)
def test_settings_that_no_optimiser_adds_or_changes_are_refused(name, more, tmp_path):
    network, optimizer = stepped(name, steps=1)
    optimizer.param_groups[0].update(more)
    wrote(tmp_path / "resume.pt", network, optimizer)
    with pytest.raises(WsurgeryError, match="its optimizer has other settings"):
        stepped(name, tmp_path / "resume.pt")
