"""`wsurgery diff`: real processes on small networks."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from tests.conftest import small_resnet


def moved(path, tmp_path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, tmp_path / "b", metadata={"other": "metadata"})


def test_json_has_the_contracts_fields_with_numpys_values(resnet, wsurgery, tmp_path):
    def change(tensors):
        tensors["layer2.0.conv2.weight"] = tensors["layer2.0.conv2.weight"] * np.float32(1.5)
        tensors["fc.bias"] = -tensors["fc.bias"]

    moved(resnet, tmp_path, change)
    shown = json.loads(wsurgery("diff", resnet, tmp_path / "b", "--json").stdout)
    before, after = load_file(resnet), load_file(tmp_path / "b")
    assert [row["name"] for row in shown["blocks"]] == ["conv1", "block1", "block2", "head"]
    assert {row["name"] for row in shown["tensors"]} == set(before)
    parts = {"block2": ("layer2",), "head": ("fc",), "conv1": ("conv1", "bn1"), "block1": ("layer1",)}
    for row in shown["blocks"]:
        names = [name for name in before if name.startswith(parts[row["name"]])]
        x, y = (
            np.concatenate([side[n].ravel().astype(float) for n in names if side[n].dtype == np.float32])
            for side in (before, after)
        )
        assert row["relative_l2"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-12, abs=0)
        assert row["cosine"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
        assert row["max"] == np.abs(y - x).max()
        equal, size = sum(int((before[n] == after[n]).sum()) for n in names), sum(before[n].size for n in names)
        assert row["equal"] == pytest.approx(equal / size)
        assert row["identical"] == (row["name"] in ("conv1", "block1"))
    assert shown["identical"] is False


def test_either_side_may_be_a_pipe_in_an_order_of_its_own(resnet, wsurgery, tmp_path):
    moved(resnet, tmp_path, lambda tensors: tensors["fc.bias"].__imul__(2))
    by_file = wsurgery("diff", resnet, tmp_path / "b", "--json").stdout
    reordered = wsurgery("transfuse", tmp_path / "b", "--upto", "head", "--into", resnet).stdout
    assert wsurgery("diff", "-", tmp_path / "b", "--json", stdin=resnet.read_bytes()).stdout == by_file
    assert wsurgery("diff", resnet, "-", "--json", "--threads", 1, stdin=reordered).stdout == by_file
    refused = wsurgery("diff", "-", "-", stdin=resnet.read_bytes(), check=False)
    assert refused.returncode == 2
    assert b"only one" in refused.stderr


def test_status_tells_a_difference_only_when_asked(resnet, wsurgery, tmp_path):
    moved(resnet, tmp_path, lambda tensors: tensors["fc.bias"].__imul__(2))
    assert wsurgery("diff", resnet, tmp_path / "b").returncode == 0
    assert wsurgery("diff", resnet, tmp_path / "b", "--exit-code", check=False).returncode == 1
    assert wsurgery("diff", resnet, resnet, "--exit-code").returncode == 0
    assert wsurgery("diff", resnet, tmp_path / "b", "--exit-code", "--except", "fc.bias").returncode == 0


def test_what_cannot_be_compared_is_listed_and_is_a_difference(resnet, wsurgery, tmp_path):
    def change(tensors):
        tensors["fc.weight"] = tensors["fc.weight"][:3].copy()
        tensors["fc.bias"] = tensors["fc.bias"].astype(np.float16)
        tensors["fc.new"] = tensors.pop("conv1.weight")

    moved(resnet, tmp_path, change)
    done = wsurgery("diff", resnet, tmp_path / "b", "--exit-code", check=False)
    shown = json.loads(wsurgery("diff", resnet, tmp_path / "b", "--json").stdout)
    text = done.stdout.decode()
    assert done.returncode == 1
    assert "only in A: conv1.weight F32 (16, 3, 7, 7)" in text
    assert "only in B: fc.new" in text
    assert "fc.weight F32 (10, 32) in A, F32 (3, 32) in B" in text
    assert "fc.bias F32 (10,) in A, F16 (10,) in B" in text
    assert [row["name"] for row in shown["only_in_a"]] == ["conv1.weight"]
    assert [row["name"] for row in shown["changed_dtype"]] == ["fc.bias"]
    assert [row["name"] for row in shown["changed_kind"]] == ["fc.weight"]
    head = shown["blocks"][-1]
    assert (head["name"], head["tensors"], head["compared"], head["identical"]) == ("head", 3, 1, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("size", [5, 3_000])
def test_other_element_types_are_compared_by_value(dtype, size, invoke, tmp_path):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=size).astype(np.float32))
    save_torch({"w": x}, tmp_path / "a")
    save_torch({"w": x.to(dtype)}, tmp_path / "b")
    done = invoke("diff", tmp_path / "a", tmp_path / "b", "--json")
    row = json.loads(done.stdout)["tensors"][0]
    difference = x.to(dtype).double() - x.double()
    assert row["relative_l2"] == pytest.approx((difference.norm() / x.double().norm()).item(), rel=1e-12)
    assert row["equal"] == (difference == 0).float().mean().item()
    assert not row["identical"]
    assert invoke("diff", tmp_path / "a", tmp_path / "b", "--exit-code", check=False).exit_code == 1


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e5m2], ids=str)
def test_no_number_is_no_number_in_any_type_and_a_zero_has_no_sign_by_value(dtype, invoke, tmp_path):
    x = torch.tensor([1, float("nan"), -0.0, 0, 2, -2], dtype=torch.float32)
    save_torch({"w": x}, tmp_path / "a")
    save_torch({"w": x.to(dtype)}, tmp_path / "b")
    row = json.loads(invoke("diff", tmp_path / "a", tmp_path / "b", "--json").stdout)["tensors"][0]
    assert (row["equal"], row["relative_l2"]) == (1, 0)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "encoder_q."])
def test_prefixes_are_looked_through_and_missing_counters_passed_over(prefix, invoke, tmp_path):
    tensors = small_resnet()
    save_file(tensors, tmp_path / "a")
    other = {prefix + name: x for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
    save_file(other | {"criterion.pos_weight": np.ones(3, np.float32)}, tmp_path / "b")
    shown = json.loads(invoke("diff", tmp_path / "a", tmp_path / "b", "--json").stdout)
    assert [row["name"] for row in shown["only_in_b"]] == ["criterion.pos_weight"]
    assert shown["only_in_a"] == []
    assert all(row["identical"] for row in shown["tensors"])
    assert len(shown["tensors"]) == len(other)


def test_selectors_choose_the_part_and_tensors_its_rows(resnet, wsurgery, tmp_path):
    moved(resnet, tmp_path, lambda tensors: tensors["layer1.0.conv1.weight"].__imul__(2))
    lines = wsurgery(
        "diff", resnet, tmp_path / "b", "--tensors", "--blocks", "block1", "--role", "conv"
    ).stdout.decode()
    assert [line.split()[:3] for line in lines.splitlines()[1:]] == [["layer1.0.conv1.weight", "block1", "1"]]
    assert wsurgery("diff", resnet, tmp_path / "b", "--blocks", "block9", check=False).returncode == 2


def test_a_pair_that_differs_in_one_element_is_not_called_identical(wsurgery, tmp_path):
    values = np.ones(3_000_000, np.float32)
    save_file({"fc.weight": values}, tmp_path / "a")
    values[5] = 2
    save_file({"fc.weight": values}, tmp_path / "b")
    text = wsurgery("diff", tmp_path / "a", tmp_path / "b").stdout.decode()
    assert "identical" not in text
    assert "<100 %" in text


@pytest.mark.parametrize("side", [0, 1])
def test_an_input_that_ends_early_is_one_line(side, resnet, wsurgery):
    sources = ["-", resnet] if side else [resnet, "-"]
    done = wsurgery("diff", *sources, stdin=resnet.read_bytes()[:-1], check=False)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"standard input ends early" in done.stderr


def test_names_are_shown_escaped(wsurgery, tmp_path):
    save_file({"\x1b[2J[red]x": np.ones(2)}, tmp_path / "a")
    text = wsurgery("diff", tmp_path / "a", tmp_path / "a", "--tensors").stdout
    assert b"\x1b" not in text
    assert b"\\x1b[2J[red]x" in text


def test_memory_does_not_grow_with_the_tensors(wsurgery, tmp_path, shell):
    for mebibytes in (8, 128):
        for side in "ab":
            value = np.full(mebibytes << 18, 1.0 + (side == "b"), np.float32)
            save_file({"w": value}, tmp_path / f"{side}{mebibytes}")
    (tmp_path / "measure.py").write_text(
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'wsurgery', 'diff', *sys.argv[1:]], check=True, stdout=sys.stderr)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    small, large = (int(shell(f"python measure.py a{n} b{n}", tmp_path).stdout) for n in (8, 128))
    assert large < small + (20 << 10)  # KiB


def test_weights_of_a_network_that_did_not_move_have_no_distance(wsurgery, tmp_path):
    save_file(small_resnet(), tmp_path / "a")
    made = wsurgery("freeze-spec", tmp_path / "a", "--upto", "conv1").stdout
    shown = json.loads(wsurgery("diff", tmp_path / "a", "-", "--json", stdin=made).stdout)
    assert shown["identical"] is True
    assert all((row["relative_l2"], row["cosine"], row["equal"]) == (0, 1, 1) for row in shown["blocks"])


@pytest.mark.parametrize("words", ["tied untied", "- untied", "untied -"])
def test_tied_tensors_are_compared_by_each_of_their_names_in_files_and_streams(words, wsurgery, tmp_path):
    table, middle = (np.random.default_rng(seed).normal(size=(200, 300)).astype(np.float32) for seed in (0, 1))
    save_file({"embed.weight": table, "mid.weight": middle}, tmp_path / "tied", {"lm_head.weight": "embed.weight"})
    untied = {"embed.weight": table, "mid.weight": middle, "lm_head.weight": table + 1}
    save_file(untied, tmp_path / "untied")
    done = wsurgery("diff", *words.split(), "--json", cwd=tmp_path, stdin=(tmp_path / "tied").read_bytes())
    found = {row["name"]: row["max"] for row in json.loads(done.stdout)["tensors"]}
    assert found == {"embed.weight": 0, "mid.weight": 0, "lm_head.weight": pytest.approx(1)}
