"""cast, rename, drop, keep, scale, add-noise, average, lerp, new-head, low-rank and prune as a user runs them."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.conftest import small_resnet, watching_imports

COMMANDS = {
    "cast": ["cast", "--to", "bf16", "--except", "fc.*"],
    "rename": ["rename", r"^layer(\d)\.", r"stages.\1.", "-"],
    "drop": ["drop", "--blocks", "head"],
    "keep": ["keep", "--upto", "block1"],
    "scale": ["scale", "--by", "-0.5", "--role", "conv"],
    "add-noise": ["add-noise", "--std", "0.1", "--relative", "--seed", "3"],
    "average": ["average", "-", "B", "--weights", "0.2,0.8", "--except", "fc.*"],
    "lerp": ["lerp", "-", "B", "--t", "0.3"],
    "new-head": ["new-head", "--num-classes", "3", "--seed", "1"],
    "low-rank": ["low-rank", "--rank", "3"],
    "low-rank energy": ["low-rank", "--energy", "0.7", "--except", "fc.*"],
    "prune": ["prune", "--sparsity", "0.7"],
    "prune all": ["prune", "--sparsity", "0.7", "--scope", "all"],
    "prune random": ["prune", "--sparsity", "0.7", "--by", "random", "--seed", "5"],
    "prune all random": ["prune", "--sparsity", "0.7", "--scope", "all", "--by", "random"],
    "adapt": ["adapt", "--in-chans", "1"],
}


@pytest.fixture
def folder(resnet, tmp_path):
    """`resnet.safetensors` and another network of its kind, B."""
    save_file(small_resnet(seed=1), tmp_path / "B")
    return tmp_path


def history(path) -> dict:
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["wsurgery"])


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_threads_and_pipes_give_the_same_bytes_without_a_heavy_library(arguments, resnet, wsurgery, shell, folder):
    wsurgery(*arguments, "--threads", 8, "-o", "many", stdin=resnet.read_bytes(), cwd=folder)
    run = watching_imports(folder)
    quoted = " ".join(f"'{word}'" for word in arguments)
    done = shell(f"cat resnet.safetensors | {run} {quoted} --threads 1 > one", folder)
    assert done.returncode == 0, done.stderr.decode()
    assert (folder / "many").read_bytes() == (folder / "one").read_bytes()
    with safe_open(folder / "one", "numpy") as file:
        assert file.metadata()["author"] == "someone else"


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_log_prints_a_line_that_makes_the_same_bytes_again(arguments, invoke, shell, folder, monkeypatch):
    monkeypatch.chdir(folder)
    invoke("reset-bn", "resnet.safetensors", "-o", "first")  # a second record: the edit stands behind a pipe
    given = ["first" if word == "-" else word for word in arguments]
    invoke(*given, *([] if "first" in given else ["first"]), "-o", "made")
    printed = invoke("log", "made").stdout.strip()
    assert printed.startswith("wsurgery reset-bn resnet.safetensors")
    again = shell(f"{printed} > again", folder)
    assert again.returncode == 0, printed + again.stderr.decode()
    assert (folder / "again").read_bytes() == (folder / "made").read_bytes(), printed


def test_names_and_patterns_like_options_are_logged_so_that_they_run(invoke, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"a-b": np.zeros(2, np.float32)}, "x")
    invoke("rename", "-o", "made", "--", "-b", "-c d", "x")
    again = shell(f"{invoke('log', 'made').stdout.strip()} > again", tmp_path)
    assert again.returncode == 0, again.stderr.decode()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "made").read_bytes()
    assert list(load_file("made")) == ["a-c d"]


def test_cast_leaves_integers_and_its_own_type_alone_and_reports_overflow(invoke, tmp_path):
    nan = np.array([0x7FA1], np.uint16).view(ml_dtypes.bfloat16)  # a signalling NaN keeps its bits
    x = np.array([1e5, -7e4, 65519, 65520, np.inf, np.nan, 1], np.float32)
    save_file({"b": x, "a": x[:3], "ids": np.arange(5), "half": nan, "fine": x[-1:]}, tmp_path / "x")
    done = invoke("cast", tmp_path / "x", "--to", "fp16", "-o", tmp_path / "y")
    with np.errstate(over="ignore"):
        expected = int(np.isinf(x.astype(np.float16)).sum() - 1 + np.isinf(x[:3].astype(np.float16)).sum())
    assert f"{expected} finite values in 2 tensors became infinite, first in a" in done.stderr
    assert load_file(tmp_path / "y")["ids"].tolist() == [0, 1, 2, 3, 4]
    assert invoke("cast", tmp_path / "x", "--to", "fp64", "-o", tmp_path / "z").stderr == ""
    invoke("cast", tmp_path / "x", "--to", "bf16", "--only", "half", "-o", tmp_path / "w")
    for name, value in load_file(tmp_path / "w").items():
        assert value.tobytes() == load_file(tmp_path / "x")[name].tobytes(), name


def test_cast_there_and_back_is_the_identity(shell, tmp_path):
    rng = np.random.default_rng(0)
    save_file({"w": rng.normal(size=(300, 1000)).astype(np.float16)}, tmp_path / "x")
    done = shell("wsurgery cast x --to fp32 | wsurgery cast --to fp16 > y", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert load_file(tmp_path / "x")["w"].tobytes() == load_file(tmp_path / "y")["w"].tobytes()


def test_drop_and_keep_share_the_tensors_out_and_the_freeze_specification_follows(invoke, resnet, tmp_path):
    invoke("freeze-spec", resnet, "--upto", "block1", "-o", tmp_path / "x")
    invoke("drop", tmp_path / "x", "--blocks", "conv1,head", "-o", tmp_path / "dropped")
    invoke("keep", tmp_path / "x", "--blocks", "conv1,head", "-o", tmp_path / "kept")
    dropped, kept, everything = (load_file(tmp_path / name) for name in ("dropped", "kept", "x"))
    assert not set(dropped) & set(kept)
    assert {**dropped, **kept}.keys() == everything.keys()
    assert all(value.tobytes() == everything[name].tobytes() for name, value in (dropped | kept).items())
    assert history(tmp_path / "dropped")["freeze"] == ["layer1.*"]
    invoke("rename", "layer1", "stages.0", tmp_path / "dropped", "-o", tmp_path / "renamed")
    assert history(tmp_path / "renamed")["freeze"] == ["stages.*"]


def test_the_later_freeze_specification_counts(invoke, resnet, tmp_path):
    invoke("freeze-spec", resnet, "--upto", "block1", "-o", tmp_path / "first")
    for source, out in ((resnet, "once"), (tmp_path / "first", "twice")):
        invoke("freeze-spec", source, "--blocks", "head", "-o", tmp_path / out)
    assert history(tmp_path / "once")["freeze"] == history(tmp_path / "twice")["freeze"] == ["fc.*"]


def test_renamed_there_and_back_everything_is_as_before(invoke, resnet, tmp_path):
    invoke("rename", "^layer(.)", r"stages.\1.blocks", resnet, "-o", tmp_path / "there")
    invoke("rename", r"^stages\.(.)\.blocks", r"layer\1", tmp_path / "there", "-o", tmp_path / "back")
    with safe_open(resnet, "numpy") as before, safe_open(tmp_path / "back", "numpy") as after:
        assert before.offset_keys() == after.offset_keys()
    before, after = load_file(resnet), load_file(tmp_path / "back")
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
    assert not any(name.startswith("layer") for name in load_file(tmp_path / "there"))


def test_batch_norm_that_was_reset_lets_its_input_through(invoke, tmp_path):
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    norm = torch.nn.BatchNorm2d(5).eval()
    for name, value in norm.state_dict().items():
        value.copy_(torch.arange(2, 7) if value.ndim else torch.tensor(9))
        assert value.any(), name
    save_torch({f"bn1.{name}": value for name, value in norm.state_dict().items()}, tmp_path / "x")
    invoke("reset-bn", tmp_path / "x", "-o", tmp_path / "y")
    norm.load_state_dict({name.removeprefix("bn1."): value for name, value in load_torch(tmp_path / "y").items()})
    images = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(images), images / (1 + norm.eps) ** 0.5)
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("command", [["scale", "--by", "-3"], ["add-noise", "--std", "5"]])
def test_running_statistics_change_only_when_they_are_chosen(command, invoke, resnet, tmp_path):
    invoke(*command, resnet, "-o", tmp_path / "y")
    before, after = load_file(resnet), load_file(tmp_path / "y")
    for name, value in before.items():
        is_kept = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert (value.tobytes() == after[name].tobytes()) == is_kept, name
    refused = invoke(*command, resnet, "--role", "batch_norm", "-o", tmp_path / "z", check=False)
    assert refused.exit_code == 1
    assert "would become negative" in refused.stderr
    assert not (tmp_path / "z").exists()
    invoke("scale", resnet, "--by", 4, "--only", "*running_var", "-o", tmp_path / "z")
    assert (load_file(tmp_path / "z")["bn1.running_var"] == 4 * before["bn1.running_var"]).all()


@pytest.mark.parametrize(
    "command", ["average a b --weights 1.5,-0.5", "lerp a b --t -0.5", "merge b --base a --method task --lambda -0.5"]
)
def test_no_sum_makes_a_running_variance_negative(command, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, variance in (("a", 1), ("b", 4)):
        norm = {f"bn.{part}": np.full(2, variance, np.float32) for part in ("weight", "running_mean", "running_var")}
        save_file(norm, name)
    refused = invoke(*command.split(), "-o", "c", check=False)
    assert refused.exit_code == 1
    assert "bn.running_var is a running variance and would become negative: leave it out" in refused.stderr
    invoke(*command.split(), "--except", "*running_var", "-o", "c")
    made = load_file("c")
    assert (made["bn.weight"] == 1.5 * 1 - 0.5 * 4).all()


@pytest.mark.parametrize("command", ["transfuse a --into b --upto conv1", "transfuse a --into b --only *"])
def test_what_the_receiving_type_does_not_reach_is_said(command, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.array([1e6, -7e4, 1, np.inf], np.float32)
    save_file({"conv1.weight": x}, "a")
    save_file({"conv1.weight": np.zeros(4, np.float16)}, "b")
    said = invoke(*command.split(), "-o", "c").stderr
    assert "2 finite values in 1 tensors became infinite, first in conv1.weight: F16" in said
    assert load_file("c")["conv1.weight"].tolist() == [np.inf, -np.inf, 1, np.inf]


def test_a_second_noise_is_another_one(invoke, resnet, tmp_path):
    invoke("add-noise", resnet, "--std", 1, "-o", tmp_path / "1")
    invoke("add-noise", tmp_path / "1", "--std", 1, "-o", tmp_path / "2")
    zero, one, two = (load_file(path)["fc.weight"] for path in (resnet, tmp_path / "1", tmp_path / "2"))
    assert abs(np.corrcoef((one - zero).ravel(), (two - one).ravel())[0, 1]) < 0.3


def test_average_and_lerp_are_numpys_in_float64(invoke, folder, tmp_path):
    save_file(small_resnet(seed=2), folder / "C")
    a, b, c = (load_file(folder / name) for name in ("resnet.safetensors", "B", "C"))
    paths = [folder / name for name in ("resnet.safetensors", "B", "C")]
    invoke("average", *paths, "-o", folder / "mean")
    invoke("average", *paths, "--weights", "0.5,-0.25,0.75", "-o", folder / "weighted")
    invoke("lerp", *paths[:2], "--t", "0.3", "-o", folder / "lerp")
    expected = {
        "mean": lambda x, y, z: (x + y + z) / 3,
        "weighted": lambda x, y, z: 0.5 * x - 0.25 * y + 0.75 * z,
        "lerp": lambda x, y, z: 0.7 * x + 0.3 * y,
    }
    for name, formula in expected.items():
        for key, value in load_file(folder / name).items():
            if value.dtype == np.int64:
                assert value == a[key]
                continue
            want = formula(*(np.float64(x[key]) for x in (a, b, c)))
            np.testing.assert_allclose(value, want, rtol=2**-24, atol=1e-15)  # half a unit in the last place


def test_average_of_itself_and_the_ends_of_lerp_are_copies_and_nan_does_not_leak(invoke, folder):
    a = folder / "resnet.safetensors"
    broken = {name: np.full_like(x, np.nan) if x.dtype == np.float32 else x for name, x in small_resnet(1).items()}
    save_file(broken, folder / "nan")
    invoke("average", a, a, "-o", folder / "self")
    invoke("lerp", a, folder / "nan", "--t", 0, "-o", folder / "0")
    invoke("lerp", folder / "nan", a, "--t", 1, "-o", folder / "1")
    invoke("average", a, folder / "nan", a, "--weights", "0.5,0,0.5", "-o", folder / "third")
    for name in ("self", "0", "1", "third"):
        result = load_file(folder / name)
        assert all(value.tobytes() == result[key].tobytes() for key, value in load_file(a).items()), name
    invoke("lerp", a, folder / "nan", "--t", 1, "--blocks", "head", "-o", folder / "part")
    for key, value in load_file(folder / "part").items():
        assert value.tobytes() == (broken if key.startswith("fc") else load_file(a))[key].tobytes()


@pytest.mark.parametrize("size", [3, 90_000])  # many together, and by itself
def test_an_infinity_that_all_have_stays_whatever_the_weights(size, invoke, tmp_path):
    mask = np.where(np.arange(size) % 3 == 0, -np.inf, np.arange(size)).astype(np.float32)
    for name, shift in (("a", 0), ("b", 1)):
        save_file({"mask": mask + np.float32(shift), "one": np.full(size, np.inf, np.float32)}, tmp_path / name)
    invoke("average", tmp_path / "a", tmp_path / "b", "--weights", "2,-1", "-o", tmp_path / "average")
    invoke("lerp", tmp_path / "a", tmp_path / "b", "--t", -1, "-o", tmp_path / "lerp")
    for made in (load_file(tmp_path / "average"), load_file(tmp_path / "lerp")):
        np.testing.assert_array_equal(made["mask"], np.where(np.isinf(mask), mask, mask - 1))
        np.testing.assert_array_equal(made["one"], np.inf)


def test_a_dtype_that_differs_becomes_the_firsts(invoke, tmp_path):
    x = np.random.default_rng(0).normal(size=50)
    save_file({"w": x.astype(np.float16)}, tmp_path / "a")
    save_file({"w": x}, tmp_path / "b")
    for t in (0.5, 1):
        invoke("lerp", tmp_path / "a", tmp_path / "b", "--t", t, "-o", tmp_path / f"{t}")
        want = (1 - t) * x.astype(np.float16).astype(float) + t * x
        assert load_file(tmp_path / f"{t}")["w"].tobytes() == want.astype(np.float16).tobytes()


def test_the_other_checkpoint_may_be_a_pipe_too(shell, folder):
    save_file(dict(reversed(small_resnet(seed=1).items())), folder / "B")
    line = "wsurgery average resnet.safetensors <(cat B) -o piped && wsurgery average resnet.safetensors B -o named"
    done = shell(f"{line} && wsurgery average B <(wsurgery reset-bn B) | wsurgery log", folder)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"wsurgery average B <(wsurgery reset-bn B)\n"
    piped, named = load_file(folder / "piped"), load_file(folder / "named")
    assert all(value.tobytes() == named[name].tobytes() for name, value in piped.items())


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_new_head_has_the_scale_of_torchs_linear_layers(dtype, invoke, tmp_path):
    save_file({"fc.weight": np.ones((10, 400), dtype), "fc.bias": np.ones(10, dtype)}, tmp_path / "x")
    invoke("new-head", tmp_path / "x", "--num-classes", 100, "-o", tmp_path / "y")
    head = load_file(tmp_path / "y")
    assert head["fc.weight"].shape == (100, 400)
    assert head["fc.bias"].shape == (100,)
    for value in head.values():
        assert value.dtype == dtype
        assert abs(value).max() <= 1 / 20
    assert head["fc.weight"].std(dtype=float) == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    invoke("new-head", tmp_path / "x", "--num-classes", 100, "--seed", 1, "-o", tmp_path / "z")
    assert (load_file(tmp_path / "z")["fc.weight"] != head["fc.weight"]).mean() > 0.9


@pytest.mark.parametrize(
    "name", ["resnet18", "deit_tiny_distilled_patch16_224", "test_convnext", "mobilenetv3_small_050"]
)
def test_a_network_with_a_new_head_loads_strictly_into_timm(name, invoke, tmp_path):
    import timm
    import torch
    from safetensors.torch import load_file as load_torch

    invoke("init", name, "-o", tmp_path / "x")
    invoke("new-head", tmp_path / "x", "--num-classes", 7, "-o", tmp_path / "y")
    model = timm.create_model(name, num_classes=7)
    model.load_state_dict(load_torch(tmp_path / "y"), strict=True)
    assert history(tmp_path / "y")["architecture"]["num_classes"] == 7
    before, after = load_torch(tmp_path / "x"), load_torch(tmp_path / "y")
    changed = {
        key for key in before if before[key].shape != after[key].shape or not torch.equal(before[key], after[key])
    }
    classifiers = {key for key, value in after.items() if value.shape[:1] == (7,)}
    assert changed == classifiers


@pytest.mark.parametrize("name", ["efficientvit_b0", "vgg11_bn"])
def test_the_head_of_a_file_without_a_history_is_its_last_layer(name, invoke, tmp_path):
    import timm
    import torch
    from safetensors.torch import load_file as load_torch

    def shapes(classes):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=classes)
        return {key: tuple(value.shape) for key, value in sorted(model.state_dict().items())}

    save_file({key: np.zeros(shape, np.float16) for key, shape in shapes(10).items()}, tmp_path / "x")
    invoke("new-head", tmp_path / "x", "--num-classes", 7, "-o", tmp_path / "y")
    assert {key: tuple(x.shape) for key, x in load_torch(tmp_path / "y").items()} == shapes(7)


@pytest.mark.parametrize(
    "command", [["average", "x", "less"], ["average", "less", "x"], ["lerp", "less", "x", "--t", "0.5"]]
)
def test_what_only_one_has_can_be_left_out_as_the_message_says(command, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"fc.weight": np.ones((2, 2), np.float32), "fc.bias": np.ones(2, np.float32)}, "x")
    save_file({"fc.weight": np.ones((2, 2), np.float32)}, "less")
    assert "leave it out with --except" in invoke(*command, "-o", "out", check=False).stderr
    invoke(*command, "--except", "fc.bias", "-o", "out")
    assert "matches no tensor" in invoke(*command, "--except", "fc.bia", "-o", "other", check=False).stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["drop", "x"], 2, "--only"),
        (["keep", "x"], 2, "--only"),
        (["drop", "x", "--only", "*"], 2, "every tensor"),
        (["scale", "x", "--by", "nan"], 2, "finite"),
        (["add-noise", "x", "--std", "inf"], 2, "finite"),
        (["average", "x", "x", "--weights", "0.5,0.6"], 2, "sum to 1.1"),
        (["average", "x", "x", "--weights", "1"], 2, "2 checkpoints and 1 weights"),
        (["average", "x", "x", "--weights", "a,b"], 2, "write numbers"),
        (["average", "-", "-"], 2, "standard input"),
        (["lerp", "x", "other", "--t", "0.5"], 1, "fc.weight is (10, 32) in x and (3, 32) in other"),
        (["lerp", "x", "less", "--t", "0.5"], 1, "fc.bias is in x and not in less"),
        (["lerp", "less", "x", "--t", "0.5"], 1, "fc.bias is in x and not in less"),
        (["lerp", "x", "ints", "--t", "0.5"], 1, "fc.bias is F32 in x and I64 in ints"),
        (["rename", "bias", "weight", "x"], 1, "fc.bias and fc.weight would both be called fc.weight"),
        (["rename", "(", "", "x"], 2, "not a regular expression"),
        (["new-head", "ids", "--num-classes", "3"], 2, "no head"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(arguments, status, words, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = {"fc.weight": np.ones((10, 32), np.float32), "fc.bias": np.ones(10, np.float32)}
    save_file(head, "x")
    save_file({**head, "fc.weight": np.ones((3, 32), np.float32)}, "other")
    save_file({"fc.weight": head["fc.weight"]}, "less")
    save_file({**head, "fc.bias": np.ones(10, np.int64)}, "ints")
    save_file({"ids": np.arange(3)}, "ids")
    done = invoke(*arguments, "-o", "out", check=False)
    assert done.exit_code == status, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [("new-head", "--num-classes"), ("adapt", "--in-chans"), ("shuffle", "--seed")], ids=lambda words: words[0]
)
def test_a_number_without_end_is_a_usage_error(words, resnet, tmp_path, wsurgery):
    command, option = words
    done = wsurgery(command, resnet, option, "9" * 400, "-o", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") <= 4  # with the usage, where an option's bounds are what it breaks
    assert not (tmp_path / "x").exists()
