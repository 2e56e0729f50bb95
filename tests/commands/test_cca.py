import csv
import json
import os
import pty
import signal
import subprocess
import sys
from shutil import copy

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.conftest import said_on, watching_imports
from wsurgery.command_line import build_app
from wsurgery.models import cbr_small
from wsurgery.similarity.metric_names import METRICS

pytest.importorskip("wsurgery.data.dataset")

FIELDS = {"layer", "metric", "value", "se", "floor", "ceiling", "normalised", "c_a", "c_b", "d", "p", "images"}
FIELDS |= {"rank_a", "rank_b", "dead_a", "dead_b", "repeats"}
MEASURED = {"value", "se", "se_images", "se_channels", "bias_corrected", "floor", "ceiling", "normalised", "repeats"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cca")
    rng, lines = np.random.default_rng(0), ["path,patient,split,ill"]
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{i},{'test' if i < 20 else 'train'},{i % 2}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    for name, seed in (("a", 1), ("b", 2)):
        model = cbr_small(num_classes=1)
        for i, tensor in enumerate(model.parameters()):
            tensor.data = 0.1 * tensor.new_tensor(np.random.default_rng([seed, i]).standard_normal(tensor.shape))
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path))
    a, b, data = folder / "a.safetensors", folder / "b.safetensors", folder / "manifest.csv"
    given = [
        "cca",
        str(a),
        str(b),
        "--data",
        str(data),
        "--arch",
        "cbr_small",
        "--device",
        "cpu",
        "-d",
        "8",
        "--threads",
        "1",
    ]
    return lambda *more: CliRunner().invoke(build_app(), [*given, "--layers", "block1,pool2", *more])


def test_json_on_standard_output_says_all_that_is_needed_to_run_it_again(run, folder):
    result = run("--json", "--repeats", "3")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [layer["layer"] for layer in found["layers"]] == ["block1", "pool2"]
    for layer in found["layers"]:
        assert set(layer) >= FIELDS
        assert 0 < layer["floor"] < layer["ceiling"] <= 1
        assert layer["value"] == pytest.approx(np.mean(layer["repeats"]))
        assert (layer["images"], len(layer["repeats"])) == (20, 3)
    assert found["a"]["name"] == "a.safetensors"
    assert found["a"]["blake3"] != found["b"]["blake3"]
    assert found["arguments"]["repeats"] == 3
    assert found["data"]["split"] == "test"
    assert found["versions"].keys() == {"python", "numpy", "timm", "torch"}
    assert run("--json", "--repeats", "3").stdout == result.stdout


def test_a_table_for_people_and_the_json_in_a_file(run, tmp_path):
    result = run("-o", str(tmp_path / "cca.json"))
    assert result.exit_code == 0, result.stderr
    assert "ceiling" in result.stdout
    assert "pool2" in result.stdout
    layers = json.loads((tmp_path / "cca.json").read_text())["layers"]
    assert f"{layers[0]['value']:.3f}" in result.stdout
    again = run("-o", str(tmp_path / "cca.json"))
    assert again.exit_code == 2
    assert "--force" in again.stderr


def test_errors_are_one_line_and_leave_no_file(run, tmp_path):
    for more, status, words in (
        (["--layers", "block9"], 2, "block1, block2"),
        (["-p", "10", "--images", "2"], 2, "forces every correlation to 1"),
        (["--channels", "some"], 2, "independent"),
    ):
        result = run(*more, "-o", str(tmp_path / "cca.json"))
        assert (result.exit_code, result.stdout) == (status, "")
        assert len(result.stderr.splitlines()) == 1
        assert words in result.stderr
        assert not (tmp_path / "cca.json").exists()


def test_warnings_go_to_standard_error(run):
    result = run("--json", "-p", "60")
    assert "only 60 rows" in result.stderr
    json.loads(result.stdout)


def test_each_layer_has_an_entry_for_every_metric(run):
    result = run("--json", "--metric", "linear_cka,mean_cca")
    assert result.exit_code == 0, result.stderr
    layers = json.loads(result.stdout)["layers"]
    assert [(x["layer"], x["metric"]) for x in layers] == [
        (layer, metric) for layer in ("block1", "pool2") for metric in ("linear_cka", "mean_cca")
    ]
    alone = json.loads(run("--json").stdout)["layers"]
    assert [x["repeats"] for x in layers[1::2]] == [pytest.approx(x["repeats"], abs=1e-12) for x in alone]
    assert "unbiased_cka" in run("--metric", "unbiased_cka").stdout


def test_compat_is_near_ours_on_sound_data(run):
    theirs, ours = (json.loads(run("--json", *more).stdout)["layers"][0] for more in (["--compat", "svcca"], []))
    assert theirs["metric"] == "google_svcca"
    assert theirs["value"] == pytest.approx(ours["value"], abs=1e-4)
    assert theirs["value"] != ours["value"]


@pytest.fixture
def arrays(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", x @ rng.standard_normal((8, 8)) + rng.standard_normal((500, 8)))
    return [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]


def test_activations_need_no_network_and_no_data(arrays, invoke):
    found = json.loads(invoke("cca", "--activations", *arrays, "--channels", "all", "--threads", 1, "--json").stdout)
    (layer,) = found["layers"]
    assert set(layer) >= FIELDS
    assert layer["floor"] < layer["value"] < layer["ceiling"] == pytest.approx(1)
    assert (found["a"]["name"], len(found["b"]["blake3"])) == ("a.npy", 64)
    assert found["versions"].keys() == {"python", "numpy"}
    assert "activations" in invoke("cca", "--activations", *arrays, "--channels", "all", "--fast").stdout


def test_activations_are_compared_by_numpy_alone(arrays, tmp_path):
    metrics = ",".join(METRICS)
    run = f"{watching_imports(tmp_path)} cca --activations {' '.join(arrays)} --metric {metrics} --csv a.csv"
    done = subprocess.run(run.split(), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == len(METRICS) + 1


def test_options_that_would_be_ignored_are_refused(arrays, invoke):
    for more, words in (
        (["--activations", "-p", 10_000], "-p is not for --activations"),
        (["--activations", "--data", "x.csv"], "--data is not for --activations"),
        (["--activations", "--image-size", 32], "--image-size is not for --activations"),
        ([], "--data SPEC is needed, or --activations"),
        (["--data", "x.csv", "--fast"], "--fast is for --activations"),
        (["--activations", "--compat", "cka"], "--compat is svcca, not cka"),
        (["--activations", "--compat", "svcca", "--metric", "svcca"], "leave --metric out"),
        (["--activations", "--metric", "cka"], "metrics are mean_cca"),
    ):
        result = invoke("cca", *arrays, *more, check=False)
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert words in result.stderr


def test_a_csv_and_a_figure_beside_the_json(run, tmp_path):
    files = [tmp_path / name for name in ("cca.json", "cca.csv", "cca.pdf")]
    result = run("-o", str(files[0]), "--csv", str(files[1]), "--plot", str(files[2]), "--bias-corrected")
    assert result.exit_code == 0, result.stderr
    assert "bias-corrected" in result.stdout
    layers = json.loads(files[0].read_text())["layers"]
    lines = list(csv.DictReader(files[1].read_text().splitlines()))
    assert [(x["layer"], float(x["se"])) for x in lines] == [(x["layer"], x["se"]) for x in layers]
    assert files[2].read_bytes().startswith(b"%PDF")
    for option, name in (("--csv", files[1]), ("--plot", files[2]), ("--plot", tmp_path / "cca.jpg")):
        again = run(option, str(name), "-o", str(tmp_path / "other.json"))
        assert (again.exit_code, again.stdout, len(again.stderr.splitlines())) == (2, "", 1)
        assert not (tmp_path / "other.json").exists()


def test_the_matrix_in_every_output(run, tmp_path):
    result = run("--matrix", "--csv", str(tmp_path / "m.csv"), "--plot", str(tmp_path / "m.png"))
    assert result.exit_code == 0, result.stderr
    lines = list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines()))
    assert [(x["layer_a"], x["layer_b"]) for x in lines] == [
        (a, b) for a in ("block1", "pool2") for b in ("block1", "pool2")
    ]
    row = next(line for line in result.stdout.splitlines() if line.strip().startswith("pool2"))
    assert row.split()[1::3] == [f"{float(x['value']):.3f}" for x in lines[2:]]
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_blocks_of_other_maps_are_those_of_one_map(fundus, invoke, fresh, tmp_path):
    """Under one name would else be other layers."""
    own = json.dumps({"block1": ["block[12].*"], "block2": ["block[34].*"], "head": ["fc.*"]})
    invoke("scale", fresh, "--by", 1, "--block-map", own, "-o", tmp_path / "mapped")
    options = ["--data", fundus, "--metric", "linear_cka", "--threads", 1, "--device", "cpu", "--json"]
    for pair in ((tmp_path / "mapped", fresh), (fresh, tmp_path / "mapped")):
        done = invoke("cca", *pair, *options)
        layers = json.loads(done.stdout)["layers"]
        assert [layer["layer"] for layer in layers] == ["block1", "block2"]
        assert all(
            layer["value"] == pytest.approx(1, abs=1e-6) for layer in layers
        )  # the same layer of the same network
        assert f"blocks are {'AB'[pair[0] == fresh]}'s in both" in done.stderr


def test_with_its_own_initialisation(finished, fundus, invoke, fresh, tmp_path):
    def cca(checkpoint, *more, **options):
        given = ["--data", fundus, "-d", 3, "--repeats", 2, "--threads", 1, "--device", "cpu", "--json"]
        return invoke("cca", checkpoint, *more, *given, **options)

    found, named = (
        json.loads(cca(finished / "last.safetensors", other).stdout)
        for other in ("--with-init", finished / "init.safetensors")
    )
    assert found["b"]["name"] == "init.safetensors"
    assert found["b"] == named["b"]
    assert found["layers"] == named["layers"]
    copy(finished / "best.safetensors", tmp_path)
    for remedy in ("init.safetensors is not there", "is not what"):
        failed = cca(tmp_path / "best.safetensors", "--with-init", check=False)
        assert (failed.exit_code, failed.stdout, len(failed.stderr.splitlines())) == (1, "", 1)
        assert remedy in failed.stderr
        assert "as B" in failed.stderr
        copy(finished / "last.safetensors", tmp_path / "init.safetensors")
    assert "no file whose history ends in training" in cca(fresh, "--with-init", check=False).stderr
    assert "name one of B and --with-init" in cca(fresh, fresh, "--with-init", check=False).stderr
    assert "B is needed" in cca(fresh, check=False).stderr


@pytest.mark.slow
@pytest.mark.parametrize("patients", [None, 2])  # of two in a row, half of the images are rolled to the other process
def test_two_processes_find_what_one_finds(patients, finished, fundus, invoke, torchrun, tmp_path):
    data = tmp_path / "data.csv"
    invoke("data", "make", fundus, "-o", data)
    if patients:
        head, *rows = [line.split(",") for line in data.read_text().splitlines()]
        patient, split = head.index("patient"), head.index("split")
        rows = [row for row in rows if row[split] == "train"]
        for i, row in enumerate(rows):
            row[patient] = f"p{i * patients // len(rows)}"
        data.write_text("".join(f"{','.join(row)}\n" for row in [head, *rows]))
    given = [finished / "init.safetensors", finished / "last.safetensors", "--data", data, "--split", "train"]
    given += ["-d", 3, "--repeats", 3, "--threads", 1, "--device", "cpu", "--metric", "mean_cca,unbiased_cka"]
    given += ["--image-size", 320]  # four batches
    one = json.loads(invoke("cca", *given, "--json").stdout)
    torchrun("cca", *given, "-o", tmp_path / "two.json")
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["arguments"]["processes"] == 2
    for x, y in zip(one["layers"], two["layers"], strict=True):
        assert x["images"] == 60
        for field, value in x.items():
            assert y[field] == (pytest.approx(value, abs=1e-12) if field in MEASURED else value)


def test_interrupted_at_a_terminal_it_says_so_in_a_line_and_leaves_nothing(finished, fundus, tmp_path):
    given = [finished / "init.safetensors", finished / "last.safetensors", "--data", fundus, "-d", 3, "--groups", 1]
    given += ["--rows", "whole", "--repeats", 300, "--threads", 1, "--device", "cpu"]  # ten seconds of work
    outputs = ["-o", tmp_path / "cca.json", "--csv", tmp_path / "cca.csv", "--plot", tmp_path / "cca.pdf"]
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "wsurgery", "cca", *map(str, given + outputs)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    ) as process:
        os.close(stderr)
        said = b""
        while b"images" not in said:  # its progress bar
            said += os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        said = said_on(terminal)
        assert process.stdout.read() == b""
    assert process.returncode == 130
    assert said.endswith(b"wsurgery cca: interrupted\r\n")
    assert b"Traceback" not in said
    assert list(tmp_path.iterdir()) == []
