"""The surgery commands as a user runs them: real processes, real pipes."""

import contextlib
import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from blake3 import blake3
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.conftest import peak_memory, small_resnet, watching_imports

COMMANDS = {
    "meanvar": ["meanvar"],
    "shuffle": ["shuffle"],
    "sample": ["sample", "--bn", "meanvar"],
    "meanvar per": ["meanvar", "--per", "channel"],
    "shuffle within": ["shuffle", "--within", "position", "--axis", "out"],
    "covariance": ["covariance", "--of", "filter"],
    "spectrum": ["spectrum"],
    "reset-bn": ["reset-bn"],
    "gabor": ["gabor"],
    "freeze-spec": ["freeze-spec", "--upto", "conv1"],
    "transfuse": ["transfuse", "-", "--upto", "block1", "--rest", "random"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_command_gives_the_same_bytes_every_way_it_is_run(arguments, resnet, wsurgery, tmp_path):
    by_pipe = wsurgery(*arguments, stdin=resnet.read_bytes()).stdout
    again = wsurgery(*arguments, "--threads", 1, stdin=resnet.read_bytes()).stdout
    wsurgery(*arguments, "--threads", 8, "-o", tmp_path / "out.safetensors", stdin=resnet.read_bytes())
    assert by_pipe == again == (tmp_path / "out.safetensors").read_bytes()


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_the_reference_library_reads_the_result_and_foreign_metadata_is_kept(arguments, resnet, wsurgery, tmp_path):
    out = tmp_path / "out.safetensors"
    wsurgery(*arguments, "-o", out, stdin=resnet.read_bytes())
    before, after = load_file(resnet), load_file(out)
    assert {name: (x.shape, x.dtype) for name, x in before.items()} == {n: (x.shape, x.dtype) for n, x in after.items()}
    with safe_open(out, "numpy") as file:
        assert file.metadata()["author"] == "someone else"
        assert json.loads(file.metadata()["wsurgery"])["log"][-1]["command"] == arguments[0]


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_no_surgery_command_imports_a_heavy_library(arguments, resnet, tmp_path, shell):
    run = watching_imports(tmp_path)
    line = " ".join([run, *arguments, "-o", "out.safetensors", "<", str(resnet)])
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr.decode()


def test_looking_at_a_checkpoint_imports_no_heavy_library(resnet, tmp_path, shell):
    done = shell(f"{watching_imports(tmp_path)} view {resnet} --against {resnet} -o page.html", tmp_path)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("command", ["--help", "show x.safetensors", "log x.safetensors", "log x.safetensors --graph"])
def test_commands_that_read_the_header_do_not_import_numpy(command, resnet, tmp_path, shell):
    os.link(resnet, tmp_path / "x.safetensors")
    run = watching_imports(tmp_path, ["numpy"])
    done = shell(f"{run} {command}", tmp_path)
    assert done.returncode == 0, done.stderr.decode()


def test_a_pipe_equals_the_same_steps_through_files(resnet, shell, tmp_path):
    save_file(small_resnet(seed=1), tmp_path / "B.safetensors")
    pipe = (
        "wsurgery meanvar resnet.safetensors | wsurgery reset-bn"
        " | wsurgery transfuse B.safetensors --upto block1 --into - > C"
    )
    files = (
        "wsurgery meanvar resnet.safetensors -o 1 --threads 1 && wsurgery reset-bn 1 > 2"
        " && wsurgery transfuse B.safetensors --upto block1 --into 2 -o D --threads 2"
    )
    assert shell(pipe, tmp_path).returncode == 0
    assert shell(files, tmp_path).returncode == 0
    assert (tmp_path / "C").read_bytes() == (tmp_path / "D").read_bytes()


def test_transfuse_takes_each_tensor_bit_for_bit_from_where_it_says(wsurgery, resnet, tmp_path):
    save_file(small_resnet(seed=1), tmp_path / "into.safetensors")
    wsurgery("transfuse", resnet, "--upto", "block1", "--into", tmp_path / "into.safetensors", "-o", tmp_path / "out")
    source, into, out = load_file(resnet), load_file(tmp_path / "into.safetensors"), load_file(tmp_path / "out")
    for name, value in out.items():
        expected = source if name.startswith(("conv1", "bn1", "layer1")) else into
        assert value.tobytes() == expected[name].tobytes(), name


def test_transfuse_reads_what_is_piped_in_and_shapes_may_differ_above(wsurgery, resnet, tmp_path):
    save_file(small_resnet(seed=1, classes=3), tmp_path / "into.safetensors")
    piped = wsurgery("transfuse", resnet, "--upto", "block2", stdin=(tmp_path / "into.safetensors").read_bytes())
    named = wsurgery("transfuse", resnet, "--upto", "block2", "--into", tmp_path / "into.safetensors")
    (tmp_path / "a").write_bytes(piped.stdout)
    (tmp_path / "b").write_bytes(named.stdout)
    a, b = load_file(tmp_path / "a"), load_file(tmp_path / "b")
    assert all(a[name].tobytes() == b[name].tobytes() for name in b)
    assert a["fc.weight"].shape == (3, 32)
    refused = wsurgery("transfuse", resnet, "--upto", "head", "--into", tmp_path / "into.safetensors", check=False)
    assert refused.returncode == 1
    assert b"(10,)" in refused.stderr
    assert b"(3,)" in refused.stderr
    assert b"--except" in refused.stderr


def test_fresh_weights_of_gpt_2_count_the_inputs_where_it_keeps_them(wsurgery, tmp_path):
    """Its Conv1D is (in, out). Uniform numbers in ±a have the standard deviation a / √3."""
    shapes = {"h.0.attn.c_attn": (64, 192), "h.0.mlp.c_fc": (64, 256), "h.0.mlp.c_proj": (256, 64)}
    wide = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    bias = {f"{name}.bias": np.zeros(shape[1], np.float32) for name, shape in shapes.items()}
    save_file({**wide, **bias, "wte.weight": np.ones((9, 64), np.float32)}, tmp_path / "gpt2.safetensors")
    wsurgery("transfuse", tmp_path / "gpt2.safetensors", "--only", "wte.*", "-o", tmp_path / "out")
    made = load_file(tmp_path / "out")
    for name, (inputs, _) in shapes.items():
        assert made[f"{name}.weight"].std() == pytest.approx(1 / np.sqrt(3 * inputs), rel=0.05)
        assert np.abs(made[f"{name}.bias"]).max() <= 1 / np.sqrt(inputs)


def test_transfuse_without_into_draws_the_rest_fresh(wsurgery, resnet, tmp_path):
    wsurgery("transfuse", resnet, "--upto", "block1", "-o", tmp_path / "out")
    before, after = load_file(resnet), load_file(tmp_path / "out")
    assert (after["layer1.0.conv1.weight"] == before["layer1.0.conv1.weight"]).all()
    assert not np.isin(after["layer2.0.conv1.weight"], before["layer2.0.conv1.weight"]).any()
    assert (after["layer2.0.bn1.weight"] == 1).all()


def test_fresh_tensors_are_distributed_as_those_of_init(wsurgery, tmp_path):
    wsurgery("init", "resnet26", "--width", 0.25, "--num-classes", 40, "-o", tmp_path / "init")
    wsurgery("transfuse", tmp_path / "init", "--upto", "conv1", "--rest", "random", "-o", tmp_path / "fresh")
    init, fresh = load_file(tmp_path / "init"), load_file(tmp_path / "fresh")
    for name, value in init.items():
        if name.startswith(("conv1", "bn1")) or value.std() == 0:  # zeros and ones stand in the same places
            np.testing.assert_array_equal(fresh[name], value)
        else:
            assert (fresh[name] != value).any()
            assert fresh[name].std() == pytest.approx(value.std(), rel=5 / value.size**0.5)


@pytest.mark.parametrize("name", ["nfnet", "xcit_nano_12_p16_224", "edgenext_xx_small"])
def test_fresh_gains_and_temperatures_are_those_of_timm(name, wsurgery, tmp_path):
    import timm
    from safetensors.torch import save_file as save_torch
    from timm.models.nfnet import NfCfg, NormFreeNet

    if name == "nfnet":
        network = NormFreeNet(NfCfg((1, 1, 1, 1), (16, 16, 16, 16), stem_chs=8, group_size=8, skipinit=True))
    else:
        network = timm.create_model(name)
    save_torch(network.state_dict(), tmp_path / "x")
    wsurgery("transfuse", tmp_path / "x", "--blocks", "head", "--rest", "random", "-o", tmp_path / "fresh")
    fresh = load_file(tmp_path / "fresh")
    gains = {key: x.numpy() for key, x in network.state_dict().items() if key.endswith(("gain", "temperature"))}
    assert gains
    for key, x in gains.items():
        np.testing.assert_array_equal(fresh[key], x)


def test_resampling_leaves_integers_and_single_elements_alone(wsurgery, tmp_path):
    tensors = {
        "a.weight": np.array([[3.5]], np.float32),
        "ids": np.arange(50),
        "empty.weight": np.zeros((0, 4), np.float32),
        "flat.weight": np.full((4, 4), 2.0, np.float32),
    }
    save_file(tensors, tmp_path / "x")
    for command in ("meanvar", "shuffle", "sample", "covariance --of space"):
        wsurgery(*command.split(), tmp_path / "x", "-o", tmp_path / command)
        for name, value in load_file(tmp_path / command).items():
            np.testing.assert_array_equal(value, tensors[name])


def test_equal_shapes_draw_different_numbers_and_a_second_shuffle_another_permutation(wsurgery, tmp_path):
    values = np.arange(1000, dtype=np.float32).reshape(10, 100)
    save_file({"a.weight": values, "b.weight": values}, tmp_path / "x")
    once = wsurgery("shuffle", tmp_path / "x").stdout
    twice = wsurgery("shuffle", stdin=once).stdout
    (tmp_path / "1").write_bytes(once)
    (tmp_path / "2").write_bytes(twice)
    first, second = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    assert (first["a.weight"] != first["b.weight"]).mean() > 0.9
    again = first["a.weight"].ravel()[first["a.weight"].ravel().astype(int)]  # the same permutation applied twice
    assert (second["a.weight"].ravel() != again).mean() > 0.9


@pytest.mark.parametrize("keep", [0, 4, 100, 900, 0.5, 0.999])
def test_an_input_that_ends_early_fails_every_later_command_and_leaves_no_file(keep, resnet, shell, tmp_path):
    content = resnet.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    done = shell(
        "cat cut | wsurgery meanvar | wsurgery reset-bn | wsurgery shuffle -o out; echo ${PIPESTATUS[@]}", tmp_path
    )
    assert done.stdout.split() == [b"0", b"1", b"1", b"1"]
    assert len(done.stderr.decode().strip().splitlines()) == 3
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_opened_to_be_written_over_is_written_from_its_beginning(resnet, shell, tmp_path):
    shell("wsurgery scale resnet.safetensors --by 2 > new; printf xyz > over", tmp_path)
    done = shell("wsurgery scale resnet.safetensors --by 2 1<> over", tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "over").read_bytes() == (tmp_path / "new").read_bytes()


def test_a_redirected_output_is_taken_back_on_failure(resnet, shell, tmp_path):
    (tmp_path / "cut").write_bytes(resnet.read_bytes()[:-10])
    done = shell("cat cut | wsurgery meanvar > out", tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "out").stat().st_size == 0


@pytest.mark.parametrize("output", [["-o", "out"], []])
def test_a_terminated_command_leaves_nothing(output, resnet, tmp_path):
    content = resnet.read_bytes()
    command = [sys.executable, "-m", "wsurgery", "meanvar", *output]
    redirected = tmp_path / "redirected"
    with (
        redirected.open("wb") as stdout,
        subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=stdout, cwd=tmp_path) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(content[: len(content) // 2])
        while not output and not redirected.stat().st_size:
            assert process.poll() is None
        time.sleep(0.2 if output else 0)  # an unnamed file shows no progress
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "redirected").stat().st_size == 0


def test_a_reader_that_leaves_is_an_error_in_one_line(resnet, shell, tmp_path):
    done = shell("wsurgery meanvar resnet.safetensors | head -c 100 > /dev/null", tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().count("\n") == 1
    assert b"closed by its reader" in done.stderr


def test_output_may_replace_the_input_only_with_force(resnet, wsurgery):
    before = resnet.read_bytes()
    refused = wsurgery("meanvar", resnet, "-o", resnet, check=False)
    assert refused.returncode == 2
    assert b"--force" in refused.stderr
    assert resnet.read_bytes() == before
    expected = wsurgery("meanvar", resnet).stdout
    wsurgery("meanvar", resnet, "-o", resnet, "--force")
    assert resnet.read_bytes() == expected


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["meanvar", "missing.safetensors"], 1, "missing.safetensors: No such file"),
        (["meanvar"], 2, "no input"),
        (["transfuse", "resnet.safetensors"], 2, "--upto"),
        (["transfuse", "resnet.safetensors", "--upto", "block9"], 2, "conv1, block1, block2, head"),
        (["transfuse", "resnet.safetensors", "--upto", "head", "--into", "x", "--rest", "random"], 2, "choose one"),
        (["meanvar", "resnet.safetensors", "--role", "embedding"], 2, "batch_norm"),
        (["freeze-spec", "resnet.safetensors"], 2, "--upto"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(arguments, status, words, resnet, wsurgery, tmp_path):
    done = wsurgery(*arguments, check=False, cwd=tmp_path)
    assert done.returncode == status
    assert words in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1
    assert done.stdout == b""


@pytest.mark.parametrize("ending", [".pth", ".npz", ".onnx", ".H5", ".pth.tar"])
def test_no_safetensors_are_written_under_the_name_of_another_format(ending, resnet, wsurgery, tmp_path):
    path = tmp_path / f"x{ending}"
    done = wsurgery("shuffle", resnet, "-o", path, check=False)
    told = done.stderr.decode()
    assert done.returncode == 2
    assert "end its name in .safetensors" in told
    assert "wsurgery convert writes .pth" in told
    assert not path.exists()


def test_log_prints_a_pipeline_that_makes_the_same_bytes_again(resnet, shell, tmp_path):
    save_file(small_resnet(seed=1), tmp_path / "donor one.safetensors")
    made = shell(
        "wsurgery shuffle resnet.safetensors --seed 3 --except 'fc.*' | wsurgery shuffle --role conv"
        " | wsurgery transfuse 'donor one.safetensors' --upto conv1 | wsurgery freeze-spec --blocks block1 > made",
        tmp_path,
    )
    assert made.returncode == 0, made.stderr.decode()
    printed = shell("wsurgery log made", tmp_path).stdout.decode()
    again = shell(f"{printed.strip()} > again", tmp_path)
    assert again.returncode == 0, printed + again.stderr.decode()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "made").read_bytes()


def test_a_source_with_a_history_of_its_own_keeps_it(resnet, shell, tmp_path):
    shell("wsurgery meanvar resnet.safetensors > donor; cp resnet.safetensors into", tmp_path)
    assert shell("wsurgery transfuse donor --upto conv1 --into into > made", tmp_path).returncode == 0
    assert "<(wsurgery meanvar resnet.safetensors" in shell("wsurgery log made", tmp_path).stdout.decode()


def test_show_json_has_the_contracts_fields(resnet, wsurgery, tmp_path):
    wsurgery("freeze-spec", resnet, "--upto", "conv1", "-o", tmp_path / "frozen")
    shown = json.loads(wsurgery("show", tmp_path / "frozen", "--json", "--stats").stdout)
    tensors = load_file(resnet)
    assert [block["name"] for block in shown["blocks"]] == ["conv1", "block1", "block2", "head"]
    assert sum(len(block["tensors"]) for block in shown["blocks"]) == len(tensors)
    trained = sum(
        x.size for name, x in tensors.items() if not name.endswith(("running_mean", "running_var", "tracked"))
    )
    assert sum(block["parameters"] for block in shown["blocks"]) == trained
    for row in shown["tensors"]:
        value = tensors[row["name"]]
        assert row["shape"] == list(value.shape)
        assert row["frozen"] == row["name"].startswith(("conv1", "bn1"))
        if value.dtype == np.float32:
            assert row["mean"] == pytest.approx(value.mean(dtype=float), rel=1e-6)
            assert row["std"] == pytest.approx(value.std(dtype=float), rel=1e-6)
            assert (row["min"], row["max"]) == (value.min(), value.max())


def test_show_says_where_a_file_came_from(resnet, wsurgery, shell, tmp_path):
    shell("wsurgery shuffle resnet.safetensors | wsurgery freeze-spec --upto conv1 > made", tmp_path)
    assert b"from resnet.safetensors by shuffle, freeze-spec" in wsurgery("show", tmp_path / "made").stdout
    assert json.loads(wsurgery("show", tmp_path / "made", "--json").stdout)["history"] == [
        {"command": "shuffle", "inputs": ["resnet.safetensors"]},
        {"command": "freeze-spec", "inputs": ["-"]},
    ]
    assert b" by " not in wsurgery("show", resnet).stdout


def test_show_csv_is_the_json_by_tensor(resnet, wsurgery):
    rows = list(csv.DictReader(wsurgery("show", resnet, "--stats", "--csv").stdout.decode().splitlines()))
    tensors = json.loads(wsurgery("show", resnet, "--stats", "--json").stdout)["tensors"]
    assert [row["name"] for row in rows] == [tensor["name"] for tensor in tensors]
    for row, tensor in zip(rows, tensors, strict=True):
        assert row["shape"] == "x".join(map(str, tensor["shape"]))
        assert row["mean"] == ("" if "mean" not in tensor else str(tensor["mean"]))
        assert int(row["bytes"]) == tensor["bytes"]


@pytest.mark.parametrize("output", ["-o made", "> made", "| cat > made", "-o made/ --shard-size 100KB"])
def test_the_recorded_digest_is_the_files_however_it_is_written(output, resnet, shell, tmp_path):
    assert shell(f"wsurgery meanvar resnet.safetensors {output}", tmp_path).returncode == 0
    made = tmp_path / "made"
    for file in made.glob("*.safetensors") if made.is_dir() else [made]:
        with safe_open(file, "numpy") as opened:
            [given] = json.loads(opened.metadata()["wsurgery"])["log"][0]["inputs"]
        assert given["blake3"] == blake3(resnet.read_bytes()).hexdigest()


def test_without_digests_the_rest_is_the_same_and_replay_says_that_it_trusts(resnet, wsurgery, tmp_path):
    wsurgery("meanvar", resnet, "--no-digest", "-o", tmp_path / "made")
    wsurgery("meanvar", resnet, "-o", tmp_path / "with")
    assert b"blake3" not in (tmp_path / "made").read_bytes()
    assert wsurgery("digest", tmp_path / "made").stdout == wsurgery("digest", tmp_path / "with").stdout
    done = wsurgery("replay", "made", cwd=tmp_path)
    assert done.stdout == b"identical\n"
    assert b"on trust" in done.stderr


def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    for count in (4, 40):
        save_file({f"w{i}.weight": np.zeros((1024, 1024), np.float32) for i in range(count)}, tmp_path / f"{count}")
    small, large = (peak_memory("meanvar", tmp_path / f"{count}", "-o", "/dev/null") for count in (4, 40))
    assert large < 1.1 * small
    assert large < (64 << 10) + 4 * (4 << 10) + 30_000  # KiB


def on_a_terminal(arguments: list[str], cwd) -> str:
    """Run with a pseudo-terminal as standard input, output and error; return what it shows."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execv(sys.executable, [sys.executable, "-m", "wsurgery", *arguments])
    shown = b""
    with contextlib.suppress(OSError):  # the terminal closes with its last process
        while part := os.read(terminal, 1 << 16):
            shown += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown.decode()
    return shown.decode()


def test_on_a_terminal_the_result_goes_to_a_file_named_after_the_edit(resnet, wsurgery, tmp_path):
    shown = on_a_terminal(["transfuse", "resnet.safetensors", "--upto", "block2"], tmp_path)
    assert shown.strip() == "resnet.transfuse-block2.safetensors"
    expected = wsurgery("transfuse", resnet, "--upto", "block2", "--rest", "random").stdout
    assert (tmp_path / "resnet.transfuse-block2.safetensors").read_bytes() == expected


def test_names_in_a_table_of_show_drive_no_terminal_and_are_no_formulas(tmp_path, wsurgery):
    names = ["=cmd|' /C calc'!A0", "@x", "a\x1b[2J\u202e", "-1+x", "plain.weight"]
    save_file({name: np.ones((2, 2), np.float32) for name in names}, tmp_path / "x")
    done = wsurgery("show", tmp_path / "x", "--csv").stdout.decode()
    assert all(line.isprintable() for line in done.splitlines())
    shown = {row["name"] for row in csv.DictReader(done.splitlines())}
    assert shown == {"'=cmd|' /C calc'!A0", "'@x", "a\\x1b[2J\\u202e", "'-1+x", "plain.weight"}
