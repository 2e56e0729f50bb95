"""Weights that are stored as 8-bit numbers times a scale, as quantised checkpoints have them."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

E4M3 = torch.float8_e4m3fn
TRUE = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (192, 256)).astype(np.float32))


def stored(block: tuple[int, int], dtype=E4M3) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise TRUE in blocks, the last of which may be smaller: the weight and its scale, (blocks, blocks)."""
    rows, columns = (-(-size // side) for size, side in zip(TRUE.shape, block, strict=True))
    weight, scale = torch.empty(TRUE.shape, dtype=dtype), torch.empty(rows, columns)
    largest = 127 if dtype == torch.int8 else 448
    for i in range(rows):
        for j in range(columns):
            part = (
                slice(i * block[0], i * block[0] + block[0]),
                slice(j * block[1], j * block[1] + block[1]),
            )
            scale[i, j] = TRUE[part].abs().max() / largest
            numbers = TRUE[part] / scale[i, j]
            weight[part] = (numbers.round() if dtype == torch.int8 else numbers).to(dtype)
    return weight, scale


def cases():
    """By name: the weight, its scale, and the values that they stand for."""
    for word, block, dtype, shape in [
        ("weight_scale", (192, 256), E4M3, ()),
        ("weight_scale", (192, 256), torch.float8_e5m2, (1,)),
        ("scale_weight", (192, 256), E4M3, (1,)),
        ("weight_scale", (1, 256), E4M3, (192, 1)),
        ("weight_scale", (1, 256), torch.int8, (192,)),
        ("weight_scale_inv", (128, 128), E4M3, (2, 2)),  # 192 is one block and a half
        ("scale", (32, 32), E4M3, (6, 8)),
    ]:
        weight, scale = stored(block, dtype)
        spread = scale.repeat_interleave(block[0], 0)[:192].repeat_interleave(block[1], 1)[:, :256]
        yield pytest.param(word, weight, scale.reshape(shape), weight.double() * spread, id=f"{word} {block} {dtype}")


@pytest.mark.parametrize(("word", "weight", "scale", "values"), list(cases()))
def test_cast_multiplies_by_the_scale_and_leaves_it_out(word, weight, scale, values, invoke, shell, tmp_path):
    save_file(
        {"a.weight": weight, f"a.{word}": scale, "a.input_scale": torch.ones(1), "b": torch.ones(3)}, tmp_path / "x"
    )
    invoke("cast", tmp_path / "x", "--to", "fp32", "-o", tmp_path / "y")
    made = load_file(tmp_path / "y")
    assert made.keys() == {"a.weight", "b"}
    assert torch.equal(made["a.weight"], values.float())
    assert (made["a.weight"] - TRUE).norm() / TRUE.norm() < 0.08
    piped = shell("cat x | wsurgery cast --to fp32 | wsurgery cast --to bf16 > z", tmp_path)
    assert piped.returncode == 0, piped.stderr.decode()
    assert torch.equal(load_file(tmp_path / "z")["a.weight"], values.float().bfloat16())


def test_the_size_of_blocks_is_taken_from_the_config_where_it_says_it(invoke, tmp_path):
    weight, scale = stored((96, 96))
    save_file({"a.weight": weight, "a.weight_scale_inv": scale}, tmp_path / "model.safetensors")
    config = {"quantization_config": {"weight_block_size": [96, 96]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    invoke("cast", tmp_path, "--to", "fp32", "-o", tmp_path / "y")
    spread = scale.repeat_interleave(96, 0).repeat_interleave(96, 1)[:, :256]
    assert torch.equal(load_file(tmp_path / "y")["a.weight"], (weight.double() * spread).float())


def test_exponents_alone_scale_too(invoke, tmp_path):
    weight, scale = stored((128, 128))
    exponents = torch.exp2(scale.log2().ceil())
    bytes_ = torch.from_numpy(exponents.numpy().astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
    save_file({"a.weight": weight, "a.scale": bytes_.view(torch.float8_e8m0fnu)}, tmp_path / "x")
    invoke("cast", tmp_path / "x", "--to", "fp32", "-o", tmp_path / "y")
    spread = exponents.repeat_interleave(128, 0)[:192].repeat_interleave(128, 1)
    assert torch.equal(load_file(tmp_path / "y")["a.weight"], weight.float() * spread)


def test_what_is_not_chosen_or_has_the_type_already_keeps_its_scale_as_it_is(invoke, tmp_path):
    weight, scale = stored((128, 128))
    tensors = {"a.weight": weight, "a.weight_scale": scale, "b": TRUE, "scaled_fp8": weight[:0]}
    save_file(tensors, tmp_path / "x")
    for words in (["--to", "fp8_e4m3"], ["--to", "bf16", "--except", "a.weight"]):
        invoke("cast", tmp_path / "x", *words, "-o", tmp_path / "y", "--force")
        made = load_file(tmp_path / "y")
        assert torch.equal(made["a.weight_scale"], scale)
        assert made["a.weight"].dtype == E4M3
        assert made["b"].dtype != torch.float32
        assert "scaled_fp8" in made
    invoke("cast", tmp_path / "x", "--to", "bf16", "-o", tmp_path / "y", "--force")
    assert load_file(tmp_path / "y").keys() == {"a.weight", "b"}


@pytest.mark.parametrize(
    "words",
    [
        "meanvar x", "shuffle x", "scale x --by 2", "add-noise x --std 1", "average x x", "lerp plain x --t 0.5",
        "transfuse x --only a.* --into plain", "scale x --by 2 --only a.weight_scale", "drop x --only a.weight_scale",
        "transfuse x --only a.weight --into x2", "histogram x --only *.weight",
    ],
)  # fmt: skip
def test_nothing_is_computed_with_the_stored_numbers(words, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weight, scale = stored((128, 128))
    save_file({"a.weight": weight, "a.weight_scale": scale}, "x")
    save_file({"a.weight": weight, "a.weight_scale": scale * 2}, "x2")
    save_file({"a.weight": TRUE, "a.weight_scale": scale}, "plain")
    done = invoke(*words.split(), "-o", "out.png" if "histogram" in words else "out", check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "a.weight_scale" in done.stderr
    assert not (tmp_path / "out").exists()
    invoke("transfuse", "x", "--only", "a.*", "--into", "x2", "-o", "whole")
    assert torch.equal(load_file("whole")["a.weight_scale"], scale)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.qweight": torch.ones(4, 8, dtype=torch.int32), "a.scales": torch.ones(1, 8), "a.qzeros": torch.ones(1)},
        {"a.weight": torch.ones(4, 8, dtype=torch.int8), "a.SCB": torch.ones(4)},
        {"a.weight": torch.ones(4, 8, dtype=torch.uint8), "a.weight.absmax": torch.ones(2)},
        {"a_blocks": torch.ones(4, 8, dtype=torch.uint8), "a_scales": torch.ones(4, dtype=torch.uint8)},
        {"a.weight": torch.ones(4, 8, dtype=torch.uint8), "a.weight_scale": torch.ones(4, 1).to(E4M3)},
        {"a.weight": torch.ones(4, 8).to(E4M3), "a.weight_scale": torch.ones(3)},
        {"a.weight": torch.ones(4, 8).to(E4M3), "a.weight_scale": torch.ones(4, 1), "a.weight_scale_2": torch.ones(1)},
    ],
    ids=["GPTQ", "int8 of bitsandbytes", "nf4", "mxfp4", "nvfp4", "no shape of a scale", "two scales"],
)
def test_other_formats_are_refused_by_name(tensors, invoke, tmp_path):
    save_file(tensors, tmp_path / "x")
    done = invoke("cast", tmp_path / "x", "--to", "bf16", "-o", tmp_path / "y", check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.stderr
    assert next(iter(tensors)) in done.stderr
    assert "scaled by" in done.stderr


def test_show_and_diff_say_that_the_numbers_are_as_stored(invoke, tmp_path):
    weight, scale = stored((192, 256))
    save_file({"a.weight": weight, "a.weight_scale": scale}, tmp_path / "x")
    for words in (["show", tmp_path / "x", "--stats"], ["diff", tmp_path / "x", tmp_path / "x"]):
        assert "scaled by a.weight_scale: numbers here are as stored" in invoke(*words).stderr
    rows = json.loads(invoke("show", tmp_path / "x", "--json").stdout)["tensors"]
    assert {row["name"]: row.get("scaled_by") for row in rows}["a.weight"] == ["a.weight_scale"]
    assert "a.weight_scale" in invoke("show", tmp_path / "x", "--csv").stdout.splitlines()[-1]


def test_a_float8_file_without_scales_is_what_it_was(invoke, tmp_path):
    save_file({"a.weight": TRUE.to(E4M3), "a.scale": TRUE.to(E4M3), "b.weight": TRUE.to(E4M3)}, tmp_path / "x")
    assert invoke("show", tmp_path / "x").stderr == ""
    invoke("cast", tmp_path / "x", "--to", "fp32", "-o", tmp_path / "y")
    assert torch.equal(load_file(tmp_path / "y")["a.weight"], TRUE.to(E4M3).float())
