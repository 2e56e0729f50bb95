"""A model card says what the history says, and text from files stays text."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from safetensors.torch import save_model
from torch.nn.utils.parametrizations import spectral_norm

from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.card import model_card, sources

LOG = [
    {"command": "fetch", "arguments": ["hf://org/a"], "version": "0", "inputs": [
        {"name": "model.safetensors", "size": 3, "blake3": "a" * 64, "url": "hf://org/a@" + "0" * 40}]},
    {"command": "transfuse", "arguments": ["--upto", "block2"], "version": "0", "inputs": [
        {"name": "-", "header": "b" * 64},
        {"name": "into.safetensors", "size": 3, "blake3": "c" * 64, "log": [
            {"command": "scale", "arguments": ["--by", "2"], "version": "0", "inputs": [
                {"name": "x`|<b>.safetensors", "size": 3, "header": "d" * 64, "url": "hf://org/b/x`|<b>.safetensors"}]}]}]},
]  # fmt: skip


def card(tmp_path, log=LOG, licences=None, name="net", **metadata: str) -> str:
    entry = {"log": log, "freeze": ["conv1.*"], "architecture": {"name": "resnet18"}}
    path = tmp_path / "x.safetensors"
    save_file({"w": np.ones((3, 4), np.float32), "b": np.ones(3)}, path, {"wsurgery": json.dumps(entry), **metadata})
    with open_checkpoint(path) as checkpoint:
        return model_card(checkpoint, name, licences)


def front(text: str) -> str:
    return text.split("---\n")[1]


def test_it_says_what_was_done_to_what(tmp_path, wsurgery):
    text = card(tmp_path)
    pipeline = wsurgery("log", tmp_path / "x.safetensors").stdout.decode().strip()
    assert pipeline in text
    assert "2 tensors, 15 parameters" in text
    assert "`resnet18`" in text
    assert "`conv1.*`" in text
    for digest in "acd":
        assert digest * 64 in text
    assert wsurgery("log", "--card", tmp_path / "x.safetensors").stdout.decode() == text.replace("# net\n", "# x\n")


def test_parameters_are_those_that_a_network_has_and_that_show_counts(tmp_path, wsurgery):
    def counted(network: torch.nn.Module, *, tied: bool = False, **buffers: torch.Tensor) -> int:
        path = tmp_path / "net.safetensors"
        if tied:
            save_model(network, path)
        else:
            save_torch({**network.state_dict(), **buffers}, path)
        (said,) = re.findall(r"tensors, ([\d,]+) parameters", wsurgery("log", "--card", path).stdout.decode())
        blocks = json.loads(wsurgery("show", path, "--json").stdout)["blocks"]
        assert int(said.replace(",", "")) == sum(block["parameters"] for block in blocks)
        return int(said.replace(",", ""))

    def parameters(network: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())  # torch gives a tied one once

    for name in ("resnet18", "swin_tiny_patch4_window7_224", "levit_128s"):
        network = timm.create_model(name, num_classes=3)
        assert counted(network) == parameters(network)
    masks = {
        "layer.attn.bias": torch.ones(1, 1, 8, 8), "layer.rope.inv_freq": torch.ones(16), "attn_mask": torch.ones(4, 9, 9),
        "1.num_batches_tracked": torch.ones(()),
    }  # fmt: skip
    network = torch.nn.Sequential(spectral_norm(torch.nn.Linear(5, 7)), torch.nn.BatchNorm1d(7))
    assert counted(network, **masks) == parameters(network)
    tied = torch.nn.Sequential(torch.nn.Embedding(11, 5), torch.nn.Linear(5, 11, bias=False))
    tied[1].weight = tied[0].weight
    assert counted(tied, tied=True) == parameters(tied) == 55


def test_models_of_the_hub_are_its_bases_and_a_licence_is_theirs_if_there_is_one(tmp_path):
    assert front(card(tmp_path)) == 'base_model:\n- "org/a"\n- "org/b"\ntags:\n- wsurgery\n'
    both = {"org/a": "mit", "org/b": "gpl-3.0"}
    assert "license:" not in front(card(tmp_path, licences=both))  # of two: neither is the whole's
    assert "| mit |" in card(tmp_path, licences=both)
    assert front(card(tmp_path, LOG[:1], both)).startswith("license: mit\n")
    assert front(card(tmp_path, licences=both, license="apache-2.0")).startswith("license: apache-2.0\n")


@pytest.mark.parametrize("other", [{"name": "x", "blake3": "c" * 64}, {"name": "-", "header": "c" * 64, "log": []}])
def test_a_licence_of_the_hub_is_of_what_was_read_from_one_model_alone(other, tmp_path):
    both = {"org/a": "mit", "org/b": "gpl-3.0"}
    flowed = {"command": "scale", "arguments": [], "version": "0", "inputs": [{"name": "-", "header": "b" * 64}]}
    assert front(card(tmp_path, [LOG[0], flowed], both)).startswith("license: mit\n")
    mixed = {**LOG[0], "inputs": [*LOG[0]["inputs"], other]}
    assert "license:" not in front(card(tmp_path, [mixed, flowed], both))
    assert "license:" not in front(card(tmp_path, [LOG[0], {**flowed, "inputs": [*flowed["inputs"], other]}], both))
    piped = {**flowed, "inputs": [{"name": "-", "header": "b" * 64}, *LOG[0]["inputs"]]}  # nobody knows from where
    assert "license:" not in front(card(tmp_path, [piped], both))


@pytest.mark.parametrize("name", ["MIT", "Apache-2.0", "CC-BY-NC-SA-4.0", "llama3.1", "openrail++"])
def test_a_licence_of_the_hubs_list_is_written_as_it_is_there(name, tmp_path):
    text = card(tmp_path, license=name)
    assert front(text).startswith(f"license: {name.lower()}\n")
    assert "Licence:" not in text


@pytest.mark.parametrize("name", ["Ours, of 2024", "mit-0", "['mit', 'gpl']", "mit\nevil: yes", "`x`|<b>", "ſ" * 5000])
def test_any_other_is_named_in_the_text(name, tmp_path):
    """The hub refuses a card with a licence that it does not list."""
    text = card(tmp_path, license=name)
    assert front(text) == 'license: other\nbase_model:\n- "org/a"\n- "org/b"\ntags:\n- wsurgery\n'
    assert name[:3] in re.search(r"Licence: .*\.$", text, re.MULTILINE)[0]


def test_replay_is_named_where_it_runs(tmp_path):
    trained = {"command": "train", "arguments": [], "version": "0", "inputs": [{"name": "-", "header": "b" * 64}]}
    assert "wsurgery replay" in card(tmp_path)
    assert "wsurgery replay" not in card(tmp_path, [*LOG, trained])


def test_text_of_others_stays_text(tmp_path):
    log = [{**LOG[0], "arguments": ["```", "# head"]}, *LOG[1:]]
    text = card(tmp_path, log, {"org/a": "[x](http://y)|"}, name="<script>\n# n")
    assert "\\<script\\>" in text
    assert text.count("\n# ") == 1
    fence = re.search("^(`+)sh\n", text, re.MULTILINE)[1]
    assert len(fence) > 3
    assert text.count(f"{fence}\n") == 1
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert "[x]" not in text


def test_a_checkpoint_without_history_has_a_card_too(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": np.ones(3)}, path)
    with open_checkpoint(path) as checkpoint:
        text = model_card(checkpoint, "net")
    assert text == "---\ntags:\n- wsurgery\n---\n\n# net\n\n1 tensors, 3 parameters.\n"
    with open_checkpoint(path) as checkpoint:
        from wsurgery.checkpoint.provenance import History

        assert sources(History.of(checkpoint)) == []


def test_of_a_run_it_names_the_folder_the_data_and_the_auc(tmp_path, wsurgery):
    trained = {
        "command": "train", "arguments": ["--data", "m.csv"], "version": "0",
        "inputs": [{"name": "-", "header": "b" * 64}],
        "trained_on": {
            "image_size": 32, "channels": 3, "mean": [0.5], "std": [0.2], "labels": ["edema"], "digest": "e" * 64,
        },
    }  # fmt: skip
    for name, title in (("arm/1", "arm-1"), ("mine", "mine")):
        run = tmp_path / name
        run.mkdir(parents=True)
        for file in ("best", "init"):
            tensors = {"bn.weight": np.ones(2, np.float32), "bn.running_mean": np.ones(2, np.float32)}
            tensors |= {"bn.num_batches_tracked": np.ones((), np.int64), "w": np.ones((2, 3), np.float16)}
            save_file(tensors, run / f"{file}.safetensors", {"wsurgery": json.dumps({"log": [trained]})})
        (run / "log.jsonl").touch()
        (run / "metrics.json").write_text(json.dumps({"steps": 9, "best": {"step": 4, "macro_auc": 0.75}}))
        tested = {"macro_auc": 0.7, "macro_delong_ci": [0.6, 0.8], "split": "test", "n": 20, "units": 10}
        (run / "eval.json").write_text(json.dumps({**tested, "independent": "patients"}))
        text = wsurgery("log", "--card", run).stdout.decode()
        assert f"\n# {title}\n" in text
        assert "4 tensors, 8 parameters." in text
        assert f"of the split `train`, digest of their rows `{'e' * 64}`" in text
        assert "- macro AUC on `valid`: 0.7500, at step 4" in text
        assert (
            "- macro AUC on `test`: 0.7000 (95 %, DeLong: 0.6000 to 0.8000; 20 images, 10 independent patients)" in text
        )
        assert "\n# init\n" in wsurgery("log", "--card", run / "init.safetensors").stdout.decode()
