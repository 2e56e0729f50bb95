"""`wsurgery fetch` against a local hub: what is fetched is what the library that made it computes with, bit for bit."""

import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.numpy import load_file, save
from safetensors.torch import save as save_torch

from tests.conftest import small_resnet, watching_imports
from tests.hub import HubServer
from wsurgery.checkpoint import open_checkpoint
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.models.load import create, load
from wsurgery.models.pretrained import download_url, find_pretrained, require_fit

MODEL = "test_resnet.r160_in1k"
ARGUMENTS = {"num_classes": 5, "drop_rate": 0.25}
SETTINGS = {
    "tag": "r160_in1k", "input_size": [3, 160, 160], "interpolation": "bicubic", "crop_pct": 0.95,
    "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "first_conv": "conv1.0", "classifier": "fc", "license": "apache-2.0",
}  # fmt: skip


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Weights and statistics that a mistake shows up in."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.01)
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return lively(timm.create_model("test_resnet", **ARGUMENTS))


@pytest.fixture(scope="module")
def as_timm_pushes(network) -> dict[str, bytes]:
    config = {"architecture": "test_resnet", "num_classes": 5, "model_args": ARGUMENTS, "pretrained_cfg": SETTINGS}
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    weights = save_torch(tensors, {"format": "pt"})
    return {"config.json": json.dumps(config).encode(), "model.safetensors": weights}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_HUB_DISABLE_XET"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.stop()


def entry(path: Path) -> dict:
    with open_checkpoint(path) as checkpoint:
        return json.loads(checkpoint.header.metadata["wsurgery"])


def test_a_model_of_timm_is_fetched_with_all_that_it_is(hub, network, as_timm_pushes, wsurgery, invoke, tmp_path):
    commit = hub.push("org/resnet.mine", as_timm_pushes)
    first = tmp_path / "first.safetensors"
    done = wsurgery("fetch", "org/resnet.mine", "-o", first)
    assert (done.stdout, done.stderr) == (b"", b"recorded the architecture test_resnet\n")
    done = wsurgery("fetch", f"hf://org/resnet.mine@{commit}", "--quiet")
    assert (done.stdout, done.stderr) == (first.read_bytes(), b"")

    found, weights = entry(first), as_timm_pushes["model.safetensors"]
    args = {"drop_rate": 0.25}
    described = {"name": "test_resnet", "num_classes": 5, "in_chans": 3, "args": args, "pretrained_cfg": SETTINGS}
    assert found["architecture"] == described
    (record,) = found["log"]
    assert (record["command"], record["arguments"]) == ("fetch", ["org/resnet.mine", "--revision", commit])
    (tmp_path / "source.safetensors").write_bytes(weights)
    (given,) = record["inputs"]
    assert given["size"] == len(weights)
    assert (given["name"], given["url"], given["revision"]) == (
        "model.safetensors", f"hf://org/resnet.mine@{commit}", commit,
    )  # fmt: skip
    # The content is the source's; so is its digest.
    assert invoke("digest", first).stdout == invoke("digest", tmp_path / "source.safetensors").stdout

    model = load(first)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(model(x), network(x))
    assert model.pretrained_cfg["mean"] == (0.5, 0.4, 0.3)
    assert model.pretrained_cfg["input_size"] == (3, 160, 160)
    assert model.num_classes == 5


def test_fetch_of_a_model_of_the_hub_imports_no_heavy_library(hub, as_timm_pushes, shell, tmp_path):
    hub.push("org/name", as_timm_pushes)
    run = watching_imports(tmp_path)
    done = shell(f"{run} fetch org/name -o out.safetensors", tmp_path)
    assert done.returncode == 0, done.stderr.decode()


def test_a_config_json_of_another_network_is_not_recorded(hub, as_timm_pushes, wsurgery, tmp_path):
    hub.push("org/name", {**as_timm_pushes, "config.json": b'{"architecture": "resnet18"}'})
    done = wsurgery("fetch", "org/name", "-o", tmp_path / "x")
    assert b"not recorded as resnet18, which it is by config.json: " in done.stderr
    assert "architecture" not in entry(tmp_path / "x")


def test_a_name_of_timm_gives_what_timm_itself_loads(hub, as_timm_pushes, invoke, monkeypatch, tmp_path):
    # This process has read the environment already, and another one would take seconds to import timm.
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    pretrained = lively(timm.create_model("test_resnet"))
    weights = save_torch({name: value.contiguous() for name, value in pretrained.state_dict().items()})
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": SETTINGS}
    commit = hub.push(f"timm/{MODEL}", {"config.json": json.dumps(config).encode(), "model.safetensors": weights})
    out = tmp_path / "out.safetensors"
    said = invoke("fetch", "test_resnet", "-o", out).stderr
    assert said == f"test_resnet is {MODEL}\nrecorded the architecture test_resnet\n"
    theirs = timm.create_model(MODEL, pretrained=True).eval()
    x = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(load(out)(x), theirs(x))
    found = entry(out)
    assert found["log"][0]["arguments"] == [MODEL, "--revision", commit]
    assert found["architecture"]["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]

    hub.push(f"timm/{MODEL}", {"model.safetensors": weights})  # a model that does not say what it is: timm does
    invoke("fetch", MODEL, "-o", tmp_path / "bare.safetensors")
    described = entry(tmp_path / "bare.safetensors")["architecture"]
    assert (described["name"], described["num_classes"]) == ("test_resnet", 1000)
    assert tuple(described["pretrained_cfg"]["mean"]) == timm.models.get_pretrained_cfg(MODEL).mean

    hub.push(f"timm/{MODEL}", as_timm_pushes | {"config.json": b"{}", "model.safetensors": save(small_resnet())})
    refusal = invoke("fetch", MODEL, "-o", tmp_path / "foreign.safetensors", check=False)
    assert refusal.exit_code == 1
    assert "timm rewrites these weights" in refusal.stderr
    assert not (tmp_path / "foreign.safetensors").exists()


def test_a_model_of_transformers_in_shards_of_pickles(hub, wsurgery, tmp_path):
    with warnings.catch_warnings():  # of other packages, as it looks which there are
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        config = transformers.ViTConfig(
            image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, num_labels=5,
        )  # fmt: skip
        theirs = lively(transformers.ViTForImageClassification(config))
    tensors = theirs.state_dict()
    files = {"config.json": config.to_json_string().encode()}
    files["preprocessor_config.json"] = json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}).encode()
    weight_map = {}
    for i in range(3):
        part = {name: tensors[name].clone() for name in sorted(tensors)[i::3]}
        stream = io.BytesIO()
        torch.save(part, stream)
        files[f"pytorch_model-{i}.bin"] = stream.getvalue()
        weight_map |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    files["pytorch_model.bin.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.push("org/vit", files)
    said = wsurgery("fetch", "org/vit", "-o", tmp_path / "vit.safetensors").stderr.decode()
    assert "renamed from Hugging Face's ViT to timm's names" in said
    model = load(tmp_path / "vit.safetensors")
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == ((0.5,) * 3, (0.25,) * 3)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), theirs(x).logits, rtol=1e-5, atol=1e-5)
    (given,) = entry(tmp_path / "vit.safetensors")["log"][0]["inputs"]
    assert given["name"] == "vit"
    assert given["size"] == sum(len(data) for name, data in files.items() if name.endswith(".bin"))


def test_shards_of_safetensors_are_the_whole_file(hub, wsurgery, tmp_path):
    tensors = small_resnet()
    files, weight_map = {}, {}
    for i in range(2):
        part = {name: tensors[name] for name in sorted(tensors)[i::2]}
        files[f"model-{i}.safetensors"] = save(part)
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.push("org/shards", files)
    wsurgery("fetch", "org/shards", "-o", tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)


def test_a_revision_pins_the_bytes_and_the_cache_gives_them_without_a_network(hub, wsurgery, monkeypatch, tmp_path):
    first = hub.push("org/name", {"model.safetensors": save(small_resnet(0))}, tag="v1")
    wsurgery("fetch", "org/name", "-o", tmp_path / "first")
    second = hub.push("org/name", {"model.safetensors": save(small_resnet(1))})
    wsurgery("fetch", "org/name", "-o", tmp_path / "second")
    wsurgery("fetch", "org/name", "--revision", "v1", "-o", tmp_path / "tag")
    assert entry(tmp_path / "second")["log"][0]["arguments"][-1] == second
    assert np.array_equal(load_file(tmp_path / "second")["fc.weight"], small_resnet(1)["fc.weight"])
    assert (tmp_path / "tag").read_bytes() == (tmp_path / "first").read_bytes() != (tmp_path / "second").read_bytes()

    hub.stop()  # a port that nobody listens to
    again = {
        ("org/name", "--offline"): "second",
        ("org/name@v1", "--offline"): "first",
        (f"org/name@{first}",): "first",
    }
    fetch_many(*((*words, "-o", f"again{i}") for i, words in enumerate(again)), cwd=tmp_path)
    for i, pinned in enumerate(again.values()):
        assert (tmp_path / f"again{i}").read_bytes() == (tmp_path / pinned).read_bytes()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert wsurgery("fetch", "org/name").stdout == (tmp_path / "second").read_bytes()


MANY = """import json, sys
from typer.testing import CliRunner
from wsurgery.command_line import build_app

done = [CliRunner(env={"COLUMNS": "200"}).invoke(build_app(), ["fetch", *words]) for words in json.load(sys.stdin)]
print(json.dumps([[end.exit_code, end.stdout, end.stderr] for end in done]))
"""


def fetch_many(*commands: tuple[str, ...], cwd: Path) -> list[list]:
    """Run several fetches in one new process: status, output and messages of each."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refused(*commands: tuple[str, ...], cwd: Path) -> list[str]:
    """Fetch into a file: nothing but one line comes of it."""
    lines = []
    for status, stdout, stderr in fetch_many(*((*words, "-o", "out.safetensors") for words in commands), cwd=cwd):
        assert (stdout, stderr.count("\n")) == ("", 1), stderr
        lines.append(f"{status}: {stderr}")
    assert not (cwd / "out.safetensors").exists()
    return lines


def test_what_cannot_be_fetched_ends_in_one_line(hub, tmp_path):
    hub.push("org/name", {"model.safetensors": save(small_resnet())})
    hub.push("org/gated", {"model.safetensors": save(small_resnet())})
    hub.push("org/words", {"README.md": b"words"})
    hub.push("org/torn", {"model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'})
    hub.push("org/out", {"model.safetensors.index.json": b'{"weight_map": {"a": "../../b.safetensors"}}'})
    hub.push("org/list", {"model.safetensors.index.json": b"[]"})
    hub.gated.add("org/gated")
    fails = {
        "org/nothing": "1: wsurgery fetch: org/nothing: the hub has no such model: check the name, or log in with ",
        "org/gated": f"1: wsurgery fetch: org/gated: it is gated: accept its terms on {hub.url}/org/gated, then log in",
        "org/name@v9": "1: wsurgery fetch: org/name@v9: the model has no such revision: name a branch, a tag or a commit",
        "org/words": "1: wsurgery fetch: org/words has none of model.safetensors.index.json, ",
        "org/torn": "1: wsurgery fetch: org/torn lacks b.safetensors, which its index names",
        "org/out": "1: wsurgery fetch: org/out: model.safetensors.index.json names ../../b.safetensors: a shard is a file",
        "org/list": "1: wsurgery fetch: org/list: model.safetensors.index.json is not an index",
        "org/a/b": "2: wsurgery fetch: org/a/b is not a name on the hub: write org/name",
        "org/name@v1 --revision v2": "2: wsurgery fetch: org/name@v1 and --revision v2: say one",
        "org/name --offline": "1: wsurgery fetch: org/name: model.safetensors is not in the cache ",
    }
    for said, expected in zip(refused(*map(str.split, fails), cwd=tmp_path), fails.values(), strict=True):
        assert said.startswith(expected)
    hub.stop()
    (said,) = refused(("org/name",), cwd=tmp_path)
    assert said.startswith(f"1: wsurgery fetch: org/name: the download from {hub.url} failed (")


def test_a_damaged_download_is_noticed(hub, as_timm_pushes, tmp_path):
    hub.push("org/name", as_timm_pushes)
    hub.damages = True
    (message,) = refused(("org/name",), cwd=tmp_path)
    blob = hashlib.sha256(as_timm_pushes["model.safetensors"]).hexdigest()
    assert message.startswith("1: wsurgery fetch: org/name: model.safetensors is damaged, its SHA-256 is not the hub's")
    assert f"{blob}, then fetch again" in message
    hub.damages = False
    (path,) = (tmp_path / "hf").rglob(f"blobs/{blob}")
    path.unlink()
    assert fetch_many(("org/name", "-o", "out.safetensors"), cwd=tmp_path)[0][0] == 0


def test_the_history_of_what_was_fetched_is_kept(hub, resnet, wsurgery, tmp_path):
    wsurgery("meanvar", resnet, "-o", tmp_path / "made.safetensors")
    hub.push("org/made", {"model.safetensors": (tmp_path / "made.safetensors").read_bytes()})
    wsurgery("fetch", "org/made", "-o", tmp_path / "out.safetensors")
    (record,) = entry(tmp_path / "out.safetensors")["log"]
    assert record["inputs"][0]["log"] == entry(tmp_path / "made.safetensors")["log"]
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(resnet).keys()


def test_timm_s_registry_names_the_weights():
    found = find_pretrained("resnet50.a1_in1k")
    assert (found.name, found.architecture, found.repo) == ("resnet50.a1_in1k", "resnet50", "timm/resnet50.a1_in1k")
    assert found.settings["mean"] == (0.485, 0.456, 0.406)
    for name in ("resnet50", "vit_base_patch16_224", "tf_efficientnet_b0"):
        cfg = timm.models.get_pretrained_cfg(name)
        assert find_pretrained(name).name == f"{name}.{cfg.tag}"
    assert find_pretrained("vit_base_patch16_224_in21k").name == "vit_base_patch16_224.augreg_in21k"  # an old name
    assert find_pretrained("legacy_seresnet18").url.endswith("seresnet18-4bb0ce65.pth")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet50.a99_in1k", "resnet50.a1_in1k"),
        ("resnett50.a1_in1k", "resnet50.a1_in1k"),
        ("q", "for a model of the hub write org/name"),
    ],
)
def test_a_name_that_timm_does_not_know_gives_similar_ones(name, hint):
    with pytest.raises(UsageError, match=f"timm has no pretrained '{name}'.*{hint}"):
        find_pretrained(name)


def test_every_pretrained_name_of_timm_says_where_it_is():
    for name in timm.list_pretrained():
        found = find_pretrained(name)
        assert found.name == name
        assert "/" in (found.repo or found.url)


def test_weights_that_timm_rewrites_are_not_taken_for_its_own(network):
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    architecture = {"name": "test_resnet", "num_classes": 5}
    require_fit(shapes, architecture)
    require_fit(
        {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}, architecture
    )
    shapes["encoder.weight"] = shapes.pop("fc.weight")
    with pytest.raises(WsurgeryError, match=r"encoder.weight is \(5, .* in the file and is not in timm's test_resnet"):
        require_fit(shapes, architecture)


def test_a_file_that_is_not_on_the_hub_is_checked_against_the_hash_in_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    content = b"weights"
    good = tmp_path / f"x-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    for path in (good, tmp_path / "x-01234567.pth"):
        path.write_bytes(content)
    with pytest.raises(WsurgeryError, match="not in the cache: fetch it once while online"):
        download_url(good.as_uri(), offline=True, progress=False)
    found = download_url(good.as_uri(), offline=False, progress=False)
    assert found.read_bytes() == content
    good.unlink()
    assert download_url(good.as_uri(), offline=True, progress=False) == found
    with pytest.raises(WsurgeryError, match=r"could not be downloaded .*invalid hash value"):
        download_url((tmp_path / "x-01234567.pth").as_uri(), offline=False, progress=False)
    found.write_bytes(b"other")
    with pytest.raises(WsurgeryError, match="is damaged: delete it"):
        download_url(good.as_uri(), offline=False, progress=False)


def test_the_image_settings_of_a_checkpoint_cannot_break_what_reads_them():
    for settings in (
        [],
        {"mean": "abc"},
        {"mean": [0.5]},
        {"std": [1, 0, 1]},
        {"std": [1, 1]},
        {"mean": [float("nan")] * 3},
    ):
        architecture = {"name": "test_resnet", "num_classes": 2, "pretrained_cfg": settings}
        if settings == {"mean": [0.5]}:  # of one channel, for all
            assert create(architecture).pretrained_cfg["mean"] == (0.5,)
            continue
        with pytest.raises(UsageError, match="test_resnet: its metadata has a pretrained_cfg"):
            create(architecture)
    hostile = {"url": "http://127.0.0.1:9/x.pth", "file": "/etc/passwd", "state_dict": {}, "num_classes": 7}
    model = create({"name": "test_resnet", "num_classes": 2, "pretrained_cfg": hostile})
    assert model.num_classes == 2
    assert model.pretrained_cfg.get("file") is None


def test_log_shows_the_fetch_and_replay_makes_it_again_where_it_may(hub, as_timm_pushes, wsurgery, tmp_path):
    commit = hub.push("org/name", as_timm_pushes)
    wsurgery("fetch", "org/name", "-o", tmp_path / "a.safetensors")
    wsurgery("meanvar", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors")
    shown = wsurgery("log", tmp_path / "b.safetensors").stdout.decode()
    assert shown.startswith(f"wsurgery fetch org/name --revision {commit} \\\n  | wsurgery meanvar")
    refusal = wsurgery("replay", tmp_path / "b.safetensors", check=False)
    assert refusal.returncode == 2
    assert f"fetched org/name --revision {commit}: add --remote to fetch it again" in refusal.stderr.decode()
    hub.push("org/name", {"model.safetensors": save(small_resnet())})
    assert wsurgery("replay", tmp_path / "b.safetensors", "--remote").stdout == b"identical\n"
    hub.stop()  # what is in the cache needs no network
    assert wsurgery("replay", tmp_path / "b.safetensors", "--remote").stdout == b"identical\n"
    # A fetched file that gave a part is taken as it is where it may not be fetched: its digest is known.
    (tmp_path / "raw.safetensors").write_bytes(as_timm_pushes["model.safetensors"])
    words = ("--upto", "block1", "--into", tmp_path / "raw.safetensors")
    wsurgery("transfuse", tmp_path / "a.safetensors", *words, "-o", tmp_path / "c.safetensors")
    done = wsurgery("replay", tmp_path / "c.safetensors")
    assert done.stdout == b"identical\n"
    assert b"a.safetensors is taken as it is: its history fetched org/name" in done.stderr
