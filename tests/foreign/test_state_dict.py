"""State dicts as they are found: in wrappers, in .npz, damaged."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from wsurgery.checkpoint import open_checkpoint
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.foreign.state_dict import open_state_dict

WEIGHTS = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}
OTHERS = {"conv.weight": torch.full((2, 3), 7.0), "conv.bias": torch.zeros(2)}
BEST = torch.tensor(0.9)
FORMATS = {"zip": True, "legacy": False}


@pytest.fixture
def saved(tmp_path):
    def save(content: object):
        torch.save(content, tmp_path / "saved.pth")
        return tmp_path / "saved.pth"

    return save


def read_all(path, key=None):
    with open_state_dict(path, key=key) as state:
        return {name: (tensor.dtype, tensor.shape, bytes(state.read(name))) for name, tensor in state.tensors.items()}


def first_number(path, key=None):
    return np.frombuffer(read_all(path, key)["conv.weight"][2], np.float32)[0]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (WEIGHTS, ""),
        ({"state_dict": WEIGHTS, "epoch": 3}, "took state_dict"),
        ({"model": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "took model"),
        ({"epoch": 3, "ema": OTHERS, "state_dict": WEIGHTS}, "took state_dict; --key takes another: ema"),
        ({"my_net": WEIGHTS, "loss": 0.5}, "took my_net"),
        ({"state_dict": WEIGHTS, "loss": torch.tensor(0.5)}, "took state_dict"),
        ({"model": {"state_dict": {"net": WEIGHTS}}}, "took model took state_dict took net"),
        ({**WEIGHTS, "conv._extra_state": None}, "left out what is not a tensor: conv._extra_state"),
        ({**WEIGHTS, "others": OTHERS}, "--key takes another: others"),
        # A single number is of the bookkeeping, and hides no network.
        ({"encoder": WEIGHTS, "best_acc": BEST}, "took encoder"),
        ({"best_acc": BEST, "epoch": BEST[None], "encoder": WEIGHTS}, "took encoder"),
        ({"encoder": {"state_dict": WEIGHTS}, "best_acc": BEST}, "took encoder took state_dict"),
        ({"best": {"accuracy": BEST}, "encoder": WEIGHTS}, "took encoder"),
        ({"ema": {"decay": BEST}, "encoder": WEIGHTS}, "took encoder"),
        ({"ema": {"decay": BEST}, **WEIGHTS}, "left out what is not a tensor: ema"),
        ({"encoder": {name: x.numpy() for name, x in WEIGHTS.items()}, "best_acc": BEST}, "took encoder"),
    ],
)
def test_the_weights_are_found_and_the_choice_is_said(content, note, saved):
    with open_state_dict(saved(content)) as state:
        assert list(state.tensors) == list(WEIGHTS)
        assert " ".join(state.notes) == note
        assert bytes(state.read("conv.weight")) == WEIGHTS["conv.weight"].numpy().tobytes()


def test_key_takes_another(saved):
    path = saved({"state_dict": WEIGHTS, "model_ema": {"module": OTHERS}, "epoch": 1})
    assert (first_number(path), first_number(path, "model_ema")) == (1, 7)


def test_a_key_leads_through_entries_and_into_names(saved):
    nested = {"a.b": {"c": {**{f"k.{name}": tensor for name, tensor in OTHERS.items()}, **WEIGHTS}}}
    path = saved({"state_dict": WEIGHTS, "deep": nested})
    assert (first_number(path, "deep.a.b.c"), first_number(path, "deep.a.b.c.k")) == (1, 7)
    with pytest.raises(UsageError, match="under 'x'"):
        read_all(path, "deep.a.b.x")


def test_a_key_is_looked_for_in_the_wrapper_that_is_taken_without_one(saved):
    both = {f"{name}.{part}": x for name, some in (("a", WEIGHTS), ("b", OTHERS)) for part, x in some.items()}
    path = saved({"state_dict": both, "ema": OTHERS})
    assert [first_number(path, key) for key in ("a", "b", "state_dict.a", "ema")] == [1, 7, 1, 7]
    with pytest.raises(UsageError, match=r"under 'c': state_dict, ema, state_dict\.a, state_dict\.b"):
        read_all(path, "c")


def test_a_whole_network_has_the_names_of_its_state_dict(saved):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    network.register_buffer("passing", torch.ones(2), persistent=False)
    for content in (network, {"epoch": 3, "model": network}):
        found = read_all(saved(content))
        assert list(found) == list(network.state_dict())
        assert found["0.weight"][2] == network[0].weight.detach().numpy().tobytes()


def test_a_network_that_holds_itself_many_times_ends(saved):
    network = torch.nn.Linear(2, 2)
    for _ in range(40):
        network = torch.nn.ModuleList([network, network])
    assert read_all(saved(network))


def test_arrays_are_weights_where_there_is_no_tensor(saved):
    arrays = {name: tensor.numpy() for name, tensor in OTHERS.items()}
    assert first_number(saved({"model": arrays})) == 7
    path = saved({"model": WEIGHTS, "history": arrays})
    with open_state_dict(path) as state:
        assert state.notes == ("took model",)
    assert first_number(path, "history") == 7


@pytest.mark.parametrize(
    ("content", "key", "kind", "words"),
    [
        ({"generator": WEIGHTS, "discriminator": OTHERS}, None, UsageError, "--key, one of generator, discriminator"),
        ({"generator": WEIGHTS, "critic": OTHERS, "mean": np.ones(3)}, None, UsageError, "one of generator, critic"),
        ({"model": {"a": WEIGHTS, "b": OTHERS}}, None, UsageError, r"--key, one of model\.a, model\.b"),
        ({"model": {"a": WEIGHTS, "b": OTHERS}}, "c", UsageError, r"under 'c': model\.a, model\.b"),
        ({"model": {"a": WEIGHTS}, "mean": np.ones(3)}, None, UsageError, r"--key, one of model\.a"),
        (
            {"encoder": WEIGHTS, "prior": torch.ones(3)},
            None,
            UsageError,
            r"tensors \(prior\) and dicts .*--key, one of encoder",
        ),
        ({"a": WEIGHTS, "b": OTHERS, "best_acc": BEST}, None, UsageError, "--key, one of a, b"),
        ({"a": {"k": WEIGHTS}, "best_acc": BEST}, None, UsageError, r"--key, one of a\.k"),
        ({"state_dict": WEIGHTS}, "ema", UsageError, "under 'ema': state_dict"),
        ({"epoch": 3}, None, WsurgeryError, "no dict of tensors"),
        ([WEIGHTS], None, WsurgeryError, "no dict of tensors"),
        (torch.ones(2), None, WsurgeryError, "no dict of tensors"),
        ({0: torch.ones(2)}, None, WsurgeryError, "not a string but int"),
        ({"__metadata__": torch.ones(2)}, None, WsurgeryError, "__metadata__"),
        ({"a\ud800": torch.ones(2)}, None, WsurgeryError, r"not valid Unicode: a\\ud800"),
    ],
)
def test_a_file_without_one_clear_state_dict(content, key, kind, words, saved):
    with pytest.raises(kind, match=words):
        read_all(saved(content), key)


def test_a_dict_that_holds_itself_ends(saved):
    content: dict[str, object] = {"epoch": 1}
    content["model"] = content
    with pytest.raises(WsurgeryError, match="no dict of tensors"):
        read_all(saved(content))


def test_tensors_that_are_one_are_told_from_those_that_only_share_a_storage(saved):
    base = torch.arange(12.0)
    tied = {"b": base, "a": base, "half": base[:6], "shape": base.reshape(3, 4), "equal": base.clone(), "c": base}
    empty = torch.empty(0)
    with open_state_dict(saved(tied | {"e": empty, "f": empty})) as state:
        assert state.aliases == {"b": "a", "c": "a"}
        assert bytes(state.read("c")) == base.numpy().tobytes()


@pytest.fixture
def hub(tmp_path):
    """A folder as the Hugging Face hub keeps it, in two shards of torch.save."""
    (tmp_path / "hub").mkdir()
    for shard, tensors in {
        "1.bin": {"conv.weight": WEIGHTS["conv.weight"]},
        "2.bin": {"conv.bias": WEIGHTS["conv.bias"]},
    }.items():
        torch.save(tensors, tmp_path / "hub" / shard)
    return write_index(tmp_path / "hub", {"conv.weight": "1.bin", "conv.bias": "2.bin"})


def write_index(folder, weight_map):
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_are_one_state_dict(hub, saved):
    assert read_all(hub) == read_all(saved(WEIGHTS))
    torch.save(OTHERS, hub / "pytorch_model.bin")  # the index counts
    assert first_number(hub) == 1
    (hub / "pytorch_model.bin.index.json").unlink()
    assert first_number(hub) == 7
    save_file(
        {name: value.numpy() + 1 for name, value in OTHERS.items()}, hub / "model.safetensors"
    )  # and safetensors most
    assert first_number(hub) == 8


def test_a_folder_with_one_weights_file_of_another_name_is_opened(tmp_path, saved):
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(OTHERS, folder / "checkpoint_best.pth")
    for beside in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        torch.save({"state": torch.ones(2)}, folder / beside)
    assert first_number(folder) == 7
    with pytest.raises(WsurgeryError, match=r"run wsurgery convert on checkpoint_best\.pth"):
        open_checkpoint(folder)
    torch.save(WEIGHTS, folder / "last.pth")
    with pytest.raises(WsurgeryError, match=r"with 2 checkpoints: name one of checkpoint_best\.pth, last\.pth"):
        read_all(folder)
    weights = {name: value.numpy() for name, value in WEIGHTS.items()}
    save_file(weights, folder / "adapter_model.safetensors")  # counts before any pickle
    assert first_number(folder) == 1
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(WEIGHTS)
    save_file(weights, folder / "other.safetensors")
    with pytest.raises(WsurgeryError, match=r"name one of adapter_model\.safetensors, other\.safetensors"):
        open_checkpoint(folder)


def test_an_index_of_another_name_is_opened(tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    for name, value in WEIGHTS.items():
        save_file({name: value.numpy()}, folder / f"{name}.safetensors")
    places = {name: f"{name}.safetensors" for name in WEIGHTS}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(WEIGHTS)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"conv.weight": "3.bin"}, "hub lacks 3.bin"),
        ({"conv.weight": "../1.bin"}, r"names the file \.\./1\.bin"),
        ({"conv.weight": ".."}, r"names the file \.\."),
        ({"conv.weight": 1}, "names the file 1"),
        ({"conv.weight": ["1.bin"]}, "not an index"),
        (["1.bin"], "not an index"),
        ({"conv.weight": "1.bin", "conv.bias": "1 again.bin"}, "1.bin holds conv.weight, as another shard does"),
    ],
)
def test_an_index_that_does_not_fit_is_one_line(weight_map, words, hub):
    (hub / "1 again.bin").write_bytes((hub / "1.bin").read_bytes())
    with pytest.raises(WsurgeryError, match=words) as raised:
        read_all(write_index(hub, weight_map))
    assert "\n" not in str(raised.value)


def test_a_header_whose_length_looks_like_another_format_is_read(tmp_path):
    # gzip's first bytes as a length: 0x088b1f = 559,903; a safetensors file may be that way.
    length = 0x088B1F
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    size = int.from_bytes(content[:8], "little")
    padded = length.to_bytes(8, "little") + content[8 : 8 + size] + b" " * (length - size) + content[8 + size :]
    (tmp_path / "x").write_bytes(padded)
    assert read_all(tmp_path / "x")["w"][2] == np.ones(3, np.float32).tobytes()


def test_npz_holds_what_numpy_saved(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "block/kernel": rng.normal(size=(3, 3, 2, 4)),
        "half": rng.normal(size=5).astype(np.float16),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4)).astype(np.float32)),
        "big": rng.normal(size=4).astype(">f4"),
        "step": np.array(7),
        "empty": np.zeros((0, 2), np.float32),
    }
    for name, write in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        write(tmp_path / name, **arrays)
        found = read_all(tmp_path / name)
        assert list(found) == list(arrays)
        for key, (_, shape, data) in found.items():
            expected = arrays[key]
            assert shape == expected.shape
            got = np.frombuffer(data, expected.dtype.newbyteorder("<")).reshape(shape)
            np.testing.assert_array_equal(got, expected)


def test_npz_with_objects_or_text_is_refused(tmp_path):
    for array in (np.array([{"code": 1}], object), np.array(["words"])):
        np.savez(tmp_path / "odd.npz", fine=np.zeros(2), odd=array)
        with pytest.raises(WsurgeryError, match=r"odd\.npz: odd") as raised:
            read_all(tmp_path / "odd.npz")
        assert "\n" not in str(raised.value)


def test_npz_without_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "none.npz")
    with pytest.raises(WsurgeryError, match=r"none\.npz holds no arrays: save them with np\.savez"):
        read_all(tmp_path / "none.npz")


@pytest.mark.parametrize("kind", [*FORMATS, "npz"])
def test_a_file_cut_anywhere_is_one_line(kind, tmp_path):
    content = write_small(kind, tmp_path)
    path = tmp_path / f"damaged.{'npz' if kind == 'npz' else 'pth'}"
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(WsurgeryError) as raised:
            read_all(path)
        assert str(raised.value).startswith(str(path))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [*FORMATS, "npz"])
def test_a_file_with_any_byte_changed_is_read_or_refused_in_one_line(kind, tmp_path):
    content = write_small(kind, tmp_path)
    path = tmp_path / f"damaged.{'npz' if kind == 'npz' else 'pth'}"
    rng = np.random.default_rng(0)
    refusals = []
    for position in range(0, len(content), 2):
        path.write_bytes(content[:position] + bytes([rng.integers(256)]) + content[position + 1 :])
        try:
            read_all(path)
        except WsurgeryError as error:
            refusals.append(str(error))
    assert not any("\n" in refusal for refusal in refusals)
    assert len(refusals) > len(content) / 40


def write_small(kind, folder) -> bytes:
    path = folder / "whole"
    tensors = {"a": torch.arange(3.0), "b": torch.arange(4.0).reshape(2, 2).T}
    if kind == "npz":
        np.savez(folder / "whole.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
        path = folder / "whole.npz"
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=FORMATS[kind])
    return path.read_bytes()
