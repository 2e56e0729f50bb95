"""The studies in Python against their commands: the same options, the same JSON, the same bytes."""

import inspect
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import wsurgery
from wsurgery.commands.cca import cca as cca_command
from wsurgery.commands.compare import compare as compare_command
from wsurgery.commands.eval import eval as eval_command
from wsurgery.commands.path import path as path_command
from wsurgery.commands.train import train as train_command
from wsurgery.data.dataset import load_dataset
from wsurgery.data.manifest import write_manifest
from wsurgery.data.sources import open_data
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.models import load

TRAINING = {"steps": 12, "eval_every": 4, "batch_size": 8, "lr": 0.01, "device": "cpu", "threads": 1}
SMALL = {"device": "cpu", "threads": 1, "d": 4, "p": 2000, "images": 40, "repeats": 3}
FLAGS = [f"-{name}" if len(name) == 1 else f"--{name}" for name in SMALL]
SMALL_TYPED = [word for pair in zip(FLAGS, SMALL.values(), strict=True) for word in pair]
PRINTED = {"json", "quiet", "debug"}  # of the commands: how a result is shown
CALLED = {"say", "watch", "processes"}  # of the functions


def files_of(run: Path) -> dict[str, object]:
    """A run's files by name; of the log, all but how fast it went."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {**files, "log.jsonl": [{**entry, "images_per_second": None} for entry in log]}


def as_json(result: object) -> object:
    return json.loads(json.dumps(result))


@pytest.fixture
def network(fresh):
    """A network as its user has it: in training mode but for one part, and in the usual memory format."""
    model = load(fresh).train()
    next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    return model


def condition(model: torch.nn.Module) -> object:
    tensors = [(name, x.device, x.stride(), x.tolist()) for name, x in model.state_dict().items()]
    return tensors, [module.training for module in model.modules()], [x.requires_grad for x in model.parameters()]


@pytest.mark.parametrize(
    ("function", "command", "only_typed"),
    [
        (wsurgery.train, train_command, set()),
        (wsurgery.evaluate, eval_command, {"checkpoints", "beside", "last", "init"}),
        (wsurgery.cca, cca_command, {"context", "bias_corrected", "last", "init"}),
        (wsurgery.compare, compare_command, set()),
        (wsurgery.path, path_command, {"last", "init"}),
    ],
)
def test_the_options_have_the_commands_names_and_defaults(function, command, only_typed):
    ours, typed = (inspect.signature(each).parameters for each in (function, command))
    mine = {name: p.default for name, p in ours.items() if name not in {*CALLED, "checkpoint"}}
    theirs = {name: p.default for name, p in typed.items() if name not in PRINTED | only_typed}
    assert mine.keys() == theirs.keys()
    for name, default in theirs.items():
        expected = getattr(default, "value", default)
        assert mine[name] == (() if name == "log_to" else expected), name


def test_importing_wsurgery_and_listing_what_it_has_is_light():
    code = "import sys, wsurgery; assert 'train' in dir(wsurgery); assert not {'torch', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_run_is_the_commands(finished, fresh, fundus, tmp_path, capsys):
    done = wsurgery.train(fresh, data=fundus, output=tmp_path / "run", **TRAINING)
    assert done.folder == tmp_path / "run"
    assert done.metrics == json.loads((finished / "metrics.json").read_text())
    assert files_of(done.folder) == files_of(finished)
    assert capsys.readouterr() == ("", "")
    unedited = wsurgery.train(wsurgery.open(fresh), data=fundus, output=done.folder, **TRAINING)
    assert unedited == done


def test_a_pipeline_trains_as_if_it_were_piped_in(fresh, fundus, tmp_path, shell):
    typed = "--preset chexpert --steps 2 --image-size 32 --decay-epochs 1,2 --flip both --ema 1 --eval-split test"
    training = f"wsurgery train - {typed} --data '{fundus}' --device cpu --threads 1 -o piped"
    line = f"wsurgery shuffle {fresh} --seed 3 | {training}"
    assert shell(line, tmp_path).returncode == 0
    done = wsurgery.train(
        wsurgery.open(fresh).shuffle(seed=3),
        data=fundus,
        output=tmp_path / "run",
        preset="chexpert",
        steps=2,
        image_size=32,
        decay_epochs=(1, 2),
        flip="both",
        ema=1,
        eval_split="test",
        device="cpu",
        threads=1,
    )
    assert files_of(done.folder) == files_of(tmp_path / "piped")


def test_a_copy_of_a_network_is_trained_in_any_thread(finished, network, fundus, tmp_path):
    network.eval()
    before = condition(network)
    seen = []

    class Watch:
        def __init__(self, steps, labels):
            seen.append(steps)

        def __enter__(self):
            return lambda entry: seen.append(entry["step"])

        def __exit__(self, *error):
            seen.append("closed")

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(wsurgery.train, network, data=fundus, output=tmp_path / "run", watch=Watch, **TRAINING)
    assert condition(network) == before
    assert seen == [12, 0, 4, 8, 10, 12, "closed"]
    assert work.result().metrics == json.loads((finished / "metrics.json").read_text())
    for name in ("best", "last", "init"):
        trained, expected = (load_file(run / f"{name}.safetensors") for run in (tmp_path / "run", finished))
        assert list(trained) == list(expected)
        assert all(torch.equal(trained[key], expected[key]) for key in expected)


def test_an_evaluation_is_the_commands(finished, fundus, invoke, tmp_path, capsys):
    best = finished / "best.safetensors"
    typed = ["--data", fundus, "--threads", 1, "--device", "cpu", "--predictions", tmp_path / "typed.csv"]
    expected = json.loads(invoke("eval", best, *typed, "--json").stdout)
    given = {"threads": 1, "device": "cpu", "data": fundus}
    threads = torch.get_num_threads()
    found = wsurgery.evaluate(best, predictions=tmp_path / "called.csv", **given)
    assert as_json(found) == expected
    assert (tmp_path / "called.csv").read_bytes() == (tmp_path / "typed.csv").read_bytes()
    assert as_json(wsurgery.evaluate(wsurgery.open(best), **given)) == expected
    network = load(best).train()
    before = condition(network)
    shared = load_dataset(fundus, split="test")
    assert as_json(wsurgery.evaluate(network, **{**given, "data": shared})) == expected
    assert condition(network) == before
    save_file(network.state_dict(), tmp_path / "saved.safetensors")  # which it refuses in another memory format
    assert torch.get_num_threads() == threads
    assert capsys.readouterr() == ("", "")


def test_a_comparison_of_networks_is_the_commands(finished, fundus, invoke, tmp_path, network, capsys):
    best, init = finished / "best.safetensors", finished / "init.safetensors"
    typed = [*SMALL_TYPED, "--data", fundus, "--metric", "mean_cca,linear_cka", "-o", tmp_path / "typed.json"]
    invoke("cca", best, "--with-init", *typed, "--csv", tmp_path / "typed.csv")
    given = {"data": fundus, "metric": ["mean_cca", "linear_cka"], **SMALL}
    files = {"output": tmp_path / "called.json", "csv": tmp_path / "called.csv"}
    found = wsurgery.cca(best, with_init=True, **files, **given)
    assert as_json(found) == json.loads((tmp_path / "typed.json").read_text())
    for suffix in ("json", "csv"):
        assert (tmp_path / f"called.{suffix}").read_bytes() == (tmp_path / f"typed.{suffix}").read_bytes()
    before = condition(network)
    of_networks = wsurgery.cca(wsurgery.open(best), network, **given)
    assert condition(network) == before
    assert of_networks["layers"] == found["layers"]
    assert of_networks["a"] == found["a"]
    assert of_networks["b"] == {"name": "CBR", "digest": invoke("digest", init).stdout.strip()}
    assert capsys.readouterr() == ("", "")


def test_a_comparison_of_activations_is_the_commands(tmp_path, invoke):
    rng = np.random.default_rng(0)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(200, 6)))
    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    expected = json.loads(invoke("cca", "--activations", *paths, "-d", 4, "--compat", "svcca", "--json").stdout)
    assert as_json(wsurgery.cca(*paths, activations=True, d=4, compat="svcca")) == expected
    with pytest.raises(UsageError, match=r"^-p is not for --activations$"):
        wsurgery.cca(*paths, activations=True, p=50)
    with pytest.raises(UsageError, match="--activations is for files"):
        wsurgery.cca(paths[0], torch.nn.Linear(2, 2), activations=True)


def test_a_comparison_of_runs_is_the_commands(finished, fundus, invoke):
    typed = ["--data", fundus, "--threads", 1, "--device", "cpu", "--bootstrap", 50, "--threshold", 0.5, "--json"]
    expected = json.loads(invoke("compare", finished, finished, *typed).stdout)
    given = {"data": fundus, "threads": 1, "device": "cpu", "bootstrap": 50, "threshold": 0.5}
    assert as_json(wsurgery.compare(finished, finished, **given)) == expected


def test_what_the_commands_say_is_a_warning(finished, fresh, fundus, tmp_path):
    with pytest.warns(UserWarning, match="^no AUC compared") as caught:
        wsurgery.compare(finished, finished)
    assert caught[0].filename == __file__
    said = []
    wsurgery.compare(finished, finished, say=said.append)
    assert [line[:15] for line in said] == ["no AUC compared"]
    manifest = open_data(fundus)
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    alone = type(manifest)(manifest.root, paths, paths, manifest.splits, manifest.labels, manifest.label_names)
    write_manifest(alone, tmp_path / "alone.csv")
    with pytest.warns(UserWarning, match="^data has no patients") as caught:
        wsurgery.train(fresh, data=tmp_path / "alone.csv", output=tmp_path / "run", **{**TRAINING, "steps": 1})
    assert caught[0].filename == __file__
    (tmp_path / "broken.png").write_bytes(b"")
    lines = (tmp_path / "alone.csv").read_text().splitlines()
    test = next(i for i, line in enumerate(lines) if ",test," in line)
    lines[test] = re.sub("^[^,]*", "broken.png", lines[test])
    (tmp_path / "broken.csv").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"^test: 1 images left out, first: .*broken\.png") as caught:
        wsurgery.evaluate(fresh, data=tmp_path / "broken.csv", skip_bad=True, bootstrap=0)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"stepps": 3}, TypeError, "unexpected keyword argument 'stepps'"),
        ({"lr": -1}, UsageError, "--lr -1.0: at least 0"),
        ({"flip": "diagonal"}, UsageError, "--flip diagonal: one of none, horizontal"),
        ({"preset": "retinas"}, UsageError, "--preset retinas: one of retina, chexpert"),
        ({"precision": "fp8"}, UsageError, "--precision fp8: one of auto"),
        ({"log_to": ["paper"]}, UsageError, "--log-to paper: one of tensorboard"),
        ({"seed": -1}, UsageError, "--seed -1: at least 0"),
        ({"threads": -1}, UsageError, "--threads -1: at least 1"),
        ({"image_size": 0}, UsageError, "--image-size 0: at least 1"),
        ({"steps": 1, "epochs": 1}, UsageError, "--steps and --epochs both give the length"),
        ({"data": "nothing.csv"}, UsageError, "there is no such file"),
    ],
)
def test_a_mistake_is_told_and_claims_no_folder(given, error, words, fresh, fundus, tmp_path):
    with pytest.raises(error, match=words):
        wsurgery.train(fresh, **{"data": fundus, "output": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("study", ["evaluate", "cca", "path", "compare"])
def test_images_of_no_size_are_refused(study, finished, fresh, fundus):
    given = {"evaluate": (fresh,), "cca": (fresh, fresh), "path": (fresh, fresh), "compare": (finished, finished)}[
        study
    ]
    with pytest.raises(UsageError, match="--image-size 0: at least 1"):
        getattr(wsurgery, study)(*given, data=fundus, image_size=0)


def test_a_result_names_the_split_of_the_images_that_it_was_given(fresh, fundus):
    images = wsurgery.studies.Images(fundus, split="valid")
    loaded = wsurgery.studies.load_images(fundus, split="valid")
    for given in (images, loaded):
        assert wsurgery.evaluate(fresh, data=given, bootstrap=0)["split"] == "valid"


def test_what_cannot_be_written_is_told_before_the_network_runs(fresh, fundus, tmp_path, monkeypatch):
    def never(*given):
        raise AssertionError("the network ran")

    monkeypatch.setattr("wsurgery.studies._evaluate.predictions_of", never)
    (tmp_path / "there.csv").write_text("mine")
    for name, words in (("there.csv", "exists: add --force"), (".", "is a folder"), ("-", "is no file")):
        target = name if name == "-" else tmp_path / name
        with pytest.raises(UsageError, match=words):
            wsurgery.evaluate(fresh, data=fundus, predictions=target)


def test_what_is_no_checkpoint_is_told(fundus, tmp_path):
    with pytest.raises(WsurgeryError, match="int is no checkpoint"):
        wsurgery.evaluate(3, data=fundus)
    with pytest.raises(FileNotFoundError):
        wsurgery.evaluate(tmp_path / "nothing.safetensors", data=fundus)


def test_the_pages_code_runs(tmp_path, fundus):
    page = Path(__file__).parents[1] / "docs" / "python-studies.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 2
    (tmp_path / "page.py").write_text("\n".join(code))
    run = [sys.executable, "-W", "error", "page.py"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "'macro_auc'" in done.stdout
    assert (tmp_path / "runs" / "random" / "1" / "metrics.json").exists()


def test_training_waits_for_no_library_that_it_does_not_use() -> None:
    """Each of these takes between a third of a second and a whole one to import."""
    unused = ("scipy.stats", "scipy.optimize", "scipy.linalg", "matplotlib", "pandas", "sklearn")
    program = f"import sys, wsurgery; wsurgery.train; print([name for name in {unused} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
