"""Checkpoints written to the Hugging Face hub: whole or not at all, in one commit, whatever happens on the way."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from tests.conftest import peak_memory
from tests.faults import Proxy
from tests.hub import HubServer
from wsurgery.checkpoint import hub_upload
from wsurgery.checkpoint.hub_upload import HubUpload, exists
from wsurgery.checkpoint.output_folder import open_folder_output
from wsurgery.checkpoint.shards import INDEX
from wsurgery.errors import UsageError, WsurgeryError

TOKEN = "hf_SECRET"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with an empty model `org/net` of which nothing but TOKEN may write, behind a proxy."""
    server = HubServer()
    server.push("org/net", {})
    server.token = TOKEN
    with Proxy(server.server_port) as proxy:
        server.proxy = proxy
        for name, value in (
            ("HF_ENDPOINT", f"http://127.0.0.1:{proxy.server_port}"),
            ("HF_HOME", str(tmp_path / "hf")),
            ("HF_TOKEN", TOKEN),
            ("HF_HUB_DISABLE_XET", "1"),  # whose servers are others
            ("no_proxy", "127.0.0.1"),
        ):
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        yield server
    server.stop()


@pytest.fixture
def here(hub, monkeypatch):
    """The hub, for huggingface_hub in this process, too: it reads its settings once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.proxy.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return hub


def files(hub, branch="main", model="org/net") -> dict[str, bytes]:
    return hub.models[model][branch][1]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    rng = np.random.default_rng(0)
    save_file({f"l{i}.weight": rng.normal(size=(500, 1250 + i)).astype("f4") for i in range(4)}, path)
    return path


def test_a_file_has_the_bytes_of_the_file_and_a_card_beside_it(hub, large, wsurgery, tmp_path):
    wsurgery("meanvar", large, "--seed", 3, "-o", tmp_path / "file")
    wsurgery("meanvar", large, "--seed", 3, "-o", "hf://org/net/a.safetensors")
    assert files(hub)["a.safetensors"] == (tmp_path / "file").read_bytes()
    assert hub.commits == [("org/net", "main", ["README.md", "a.safetensors"])]
    assert wsurgery("log", tmp_path / "file").stdout.decode().strip() in files(hub)["README.md"].decode()
    assert b"hf_SECRET" not in b"".join(files(hub).values())
    # And it is read again from there.
    digest = wsurgery("digest", "hf://org/net/a.safetensors").stdout.split()[0]
    assert digest == wsurgery("digest", tmp_path / "file").stdout.split()[0]


def test_a_model_is_one_commit_with_its_index_and_settings(hub, resnet, wsurgery, tmp_path):
    (tmp_path / "model").mkdir()
    source = tmp_path / "model" / "model.safetensors"
    source.write_bytes(resnet.read_bytes())
    (tmp_path / "model" / "LICENSE").write_text("mine")
    hub.models["org/net"]["mine"] = hub.models["org/net"]["main"]
    given = ["shuffle", source, "--seed", 1, "--shard-size", "20kB"]
    wsurgery(*given, "-o", f"{tmp_path}/whole/")
    wsurgery(*given, "-o", "hf://org/net@mine")
    assert len(hub.commits) == 1
    card = files(hub, "mine").pop("README.md")
    assert b"wsurgery shuffle" in card
    assert files(hub, "mine") == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert files(hub) == {}
    again = wsurgery(*given, "-o", "hf://org/net@mine", check=False)
    assert again.returncode == 2
    assert b"exists: add --force" in again.stderr


@pytest.mark.slow
def test_parts_make_the_whole_in_a_commit_each(hub, resnet, wsurgery, tmp_path):
    given = ["shuffle", resnet, "--seed", 1, "--shard-size", "20kB"]
    wsurgery(*given, "-o", f"{tmp_path}/whole/")
    for k in (2, 1):
        wsurgery(*given, "-o", "hf://org/net/", "--part", f"{k}/2")
    files(hub).pop("README.md")
    assert files(hub) == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}


@pytest.mark.slow
def test_push_copies_as_it_is_and_keeps_a_card(hub, resnet, wsurgery, tmp_path):
    hub.push("org/net", {"README.md": b"mine"})
    wsurgery("push", resnet, "hf://org/net/sub/a.safetensors")
    assert files(hub) == {"README.md": b"mine", "sub/a.safetensors": resnet.read_bytes()}
    wsurgery("meanvar", resnet, "--shard-size", "20kB", "-o", f"{tmp_path}/shards/")
    (tmp_path / "shards" / "config.json").write_text("{}")
    shown = json.loads(wsurgery("push", tmp_path / "shards", "hf://org/net", "--json").stdout)
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert {Path(name).name for name in shown["written"]} == names
    assert {name: files(hub)[name] for name in names} == {n: (tmp_path / "shards" / n).read_bytes() for n in names}
    assert files(hub)["README.md"] == b"mine"
    clean = wsurgery("push", "--clean", "hf://org/net", check=False)
    assert (clean.returncode, clean.stderr) == (
        2,
        b"wsurgery push: hf://org/net: the hub keeps nothing of an upload that was not finished: there is nothing to clean\n",
    )


def test_a_whole_model_and_shards_do_not_stay_side_by_side(hub, resnet, large, wsurgery, tmp_path):
    """Whoever reads gets what was written last: from the address, and by fetch into a folder."""

    def digests():
        wsurgery("fetch", "org/net", "-o", tmp_path / "fetched", "--force")
        return {wsurgery("digest", place).stdout.split()[0] for place in ("hf://org/net", tmp_path / "fetched")}

    wsurgery("push", resnet, "hf://org/net")
    shards = ["scale", large, "--by", 1, "--shard-size", "5MB", "-o", "hf://org/net"]
    for given in (shards, [*shards, "--part", "1/2", "--force"]):
        done = wsurgery(*given, check=False)
        assert done.returncode == 2
        assert b"org/net/model.safetensors is there, and would stay beside the new weights: name another" in done.stderr
    assert files(hub).keys() == {"README.md", "model.safetensors"}
    wsurgery(*shards, "--force")
    assert "model.safetensors" not in files(hub)
    assert digests() == {wsurgery("digest", large).stdout.split()[0]}
    both = {**files(hub), "model.safetensors": resnet.read_bytes()}
    assert wsurgery("push", resnet, "hf://org/net", check=False).returncode == 2
    wsurgery("push", resnet, "hf://org/net", "--force")
    assert INDEX not in files(hub)
    assert digests() == {wsurgery("digest", resnet).stdout.split()[0]}
    assert len(hub.commits) == 3
    hub.push("org/net", both)  # as others may leave it: one order for all
    assert digests() == {wsurgery("digest", large).stdout.split()[0]}


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("reset", "PUT /lfs/"),
        ("lost", "/commit/"),
        *(
            pytest.param(fault, what, marks=pytest.mark.slow)
            for fault in ("reset", "lost", 429, 503)
            for what in ("PUT /lfs/", "/commit/", "paths-info", "GET /api/models")
            if (fault, what) not in (("reset", "PUT /lfs/"), ("lost", "/commit/"), ("reset", "GET /api/models"))
        ),
    ],
)
def test_what_fails_for_a_while_is_done_again(fault, what, hub, large, wsurgery):
    hub.proxy.set(fault, what, 1 if (fault, what) == ("lost", "/commit/") else 2)
    wsurgery("push", large, "hf://org/net/a.safetensors")
    assert hub.proxy.times <= 0
    assert files(hub)["a.safetensors"] == large.read_bytes()
    assert len(hub.commits) == 1  # and not again, because an answer was lost


OF_HTTPX = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # what huggingface_hub hands on


@pytest.fixture
def impatient(here, monkeypatch):
    """The hub, which is given up after a moment of silence."""
    from huggingface_hub import close_session

    monkeypatch.setattr("wsurgery.checkpoint.hub_api._SILENCE", 0.3)
    close_session()
    yield here
    close_session()


@OF_HTTPX
@pytest.mark.parametrize(
    "what", ["paths-info", "/preupload/", "/objects/batch", "PUT /lfs/", "validate-yaml", "/commit/"]
)
def test_a_hub_that_keeps_silent_is_asked_again(what, impatient, large):
    impatient.proxy.set("silent", what, 1)
    with HubUpload("hf://org/net/a.safetensors") as mine:
        mine.write(large.read_bytes())
    assert impatient.proxy.times == 0
    assert files(impatient)["a.safetensors"] == large.read_bytes()


def test_a_hub_that_always_keeps_silent_is_given_up(impatient, monkeypatch):
    monkeypatch.setattr("wsurgery.checkpoint.hub_upload._PATIENCE", 0.1)
    impatient.proxy.set("silent", "", 100)
    with pytest.raises(WsurgeryError, match=r"failed \(.*timed out.*\): run it again"):
        exists("hf://org/net/a.safetensors")
    assert sum("paths-info" in line for line in impatient.proxy.seen) == 2


@OF_HTTPX
def test_somebody_elses_commit_comes_between(here, large):
    hub = here
    with HubUpload("hf://org/net/a.safetensors") as mine:
        mine.write(large.read_bytes())
        hub.push("org/net", {"elsewhere.json": b"theirs"})
    assert files(hub).keys() == {"README.md", "a.safetensors", "elsewhere.json"}
    address = "hf://org/net/b.safetensors"
    with pytest.raises(UsageError, match=r"b\.safetensors appeared meanwhile: add --force"), HubUpload(address) as mine:
        mine.write(large.read_bytes())
        hub.push("org/net", {"b.safetensors": b"theirs"})
    assert files(hub) == {"b.safetensors": b"theirs"}
    with HubUpload(address, force=True) as mine:
        mine.write(large.read_bytes())
    assert files(hub)["b.safetensors"] == large.read_bytes()


@OF_HTTPX
def test_parts_that_run_at_once_write_one_index(here):
    def part(name):
        return open_folder_output("hf://org/net/{}".format, {name: 1}, index=b"{}", beside={}, force=False, part=True)

    with part("a") as one:
        one["a"].write(b"1")
        here.push("org/net", {"b": b"2", INDEX: b"{}"})
    assert files(here) == {"a": b"1", "b": b"2", INDEX: b"{}"}
    here.push("org/net", {})
    with pytest.raises(UsageError, match=f"{INDEX} appeared meanwhile"), part("c") as one:
        one["c"].write(b"3")
        here.push("org/net", {INDEX: b"of another model"})
    assert files(here) == {INDEX: b"of another model"}


@OF_HTTPX
def test_outputs_that_are_open_at_once_are_commits_of_their_own(here, large):
    """As of two threads: whoever has left one finds it there, and another that fails takes nothing along."""
    with pytest.raises(ValueError, match="enough"), HubUpload("hf://org/net/a.safetensors") as mine:
        mine.write(large.read_bytes())
        with HubUpload("hf://org/net/b.safetensors") as other:
            other.write(large.read_bytes())
        assert files(here)["b.safetensors"] == large.read_bytes()
        raise ValueError("enough")
    assert files(here).keys() == {"README.md", "b.safetensors"}


@OF_HTTPX
def test_settings_that_appear_meanwhile_are_left_alone(here):
    given = {"index": None, "beside": {"LICENSE": b"ours", "config.json": b"{}"}, "force": False}
    with open_folder_output("hf://org/net/{}".format, {"a": 1}, **given) as one:
        one["a"].write(b"1")
        here.push("org/net", {"LICENSE": b"theirs"})
    assert files(here) == {"a": b"1", "LICENSE": b"theirs", "config.json": b"{}"}


@OF_HTTPX
@pytest.mark.parametrize(
    "moment", ["model_info", pytest.param("create_commit", marks=pytest.mark.slow)], ids=["before", "after"]
)
def test_a_commit_between_a_look_and_its_own_is_seen(moment, here, large, monkeypatch):
    """Whether it comes before the head was read or after it, when the hub refuses: what it brought, a card too, stays."""
    hub = here
    from huggingface_hub import HfApi

    own = getattr(HfApi, moment)
    theirs = {"elsewhere.json": b"theirs", "README.md": b"theirs"}

    def late(api, *arguments, **options):
        if not hub.commits:
            _, there = hub.models["org/net"]["main"]
            hub.commits.append(("somebody", "else", []))
            hub.push("org/net", {**there, **theirs})
        return own(api, *arguments, **options)

    monkeypatch.setattr(HfApi, moment, late)
    with HubUpload("hf://org/net/a.safetensors") as mine:
        mine.write(large.read_bytes())
    assert files(hub) == {"a.safetensors": large.read_bytes(), **theirs}


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "hf://org/none/x.safetensors",
            "the hub has no such model: make it on http://127.0.0.1:{port}/new, or log in with",
        ),
        (
            "hf://org/net@none/x.safetensors",
            "the model has no such branch: HfApi().create_branch('org/net', branch='none') of",
        ),
        ("hf://datasets/org/x", "data sets, spaces and buckets hold no models: name one as hf://org/repo"),
        ("hf://spaces/org/x/y", "data sets, spaces and buckets hold no models: name one as hf://org/repo"),
        ("hf://org/net/hybrid", "is read as a folder's: end its name in .safetensors, or in / for a folder"),
        ("hf://net", "write it as hf://org/repo"),
    ],
)
def test_an_address_that_is_none_is_one_line(address, words, hub, resnet, wsurgery):
    done = wsurgery("scale", resnet, "--by", 2, "-o", address, check=False)
    assert done.returncode in (1, 2)
    assert words.replace("{port}", str(hub.proxy.server_port)) in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_who_may_not_write_is_told_so_and_nothing_is_there(hub, resnet, wsurgery, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    done = wsurgery("scale", resnet, "--by", 2, "-o", "hf://org/net", check=False)
    assert done.returncode == 1
    assert (
        b"the hub answered 403: log in with `hf auth login` or HF_TOKEN, with a token that may write here"
        in done.stderr
    )
    assert b"expired" not in done.stderr
    assert files(hub) == {}


@OF_HTTPX
@pytest.mark.parametrize(
    ("path", "status", "words", "remedy"),
    [
        ("/commit/", 400, "Your push was rejected", "mend what it names"),
        ("/commit/", 402, "", "make room there"),
        ("/commit/", 403, "Private repository storage limit reached", "make room there"),
        ("/commit/", 403, "Authorization error", "log in with `hf auth login` or HF_TOKEN"),
        ("/commit/", 413, "Payload too large", "write smaller files (--shard-size)"),
        ("/commit/", 422, "No such thing\x1b[2J", "mend what it names"),
        ("/objects/batch", 413, "Payload too large", "write smaller files (--shard-size)"),
        ("/paths-info/", 418, "No hub\nat all", "check the name, and HF_ENDPOINT"),
    ],
)
def test_what_the_hub_refuses_is_not_asked_again_and_its_own_words_are_said(path, status, words, remedy, here, large):
    here.refuses[path] = status, words
    with pytest.raises(WsurgeryError) as told, HubUpload("hf://org/net/a.safetensors") as mine:
        mine.write(large.read_bytes())
    said = words.replace("\x1b", "\\x1b").replace("\n", " ")
    assert f"the hub answered {status}{said and f' ({said})'}: {remedy}" in str(told.value)
    assert str(told.value).isprintable()
    assert sum(path in line for line in here.proxy.seen) == 1
    assert files(here) == {}


def test_who_is_offline_is_told_what_to_unset(hub, resnet, wsurgery, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = wsurgery("push", resnet, "hf://org/net", check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(b": unset HF_HUB_OFFLINE\n")


def test_a_history_of_which_no_card_can_be_written_is_said_before_bytes_are_sent(hub, wsurgery, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"w": np.ones(3)}, path, {"wsurgery": "{"})
    done = wsurgery("push", path, "hf://org/net", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"wsurgery push: hf://org/net/model.safetensors")
    assert not any(method == "PUT" for method, _ in hub.asked)
    hub.push("org/net", {"README.md": b"mine"})
    wsurgery("push", path, "hf://org/net")


def test_a_card_of_ones_own_goes_along_and_from_an_address_the_weights_alone(hub, resnet, wsurgery, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(resnet.read_bytes())
    for name in ("LICENSE", "README.md"):
        (tmp_path / "model" / name).write_text("mine")
    wsurgery("push", tmp_path / "model", "hf://org/net")
    assert files(hub) == {"model.safetensors": resnet.read_bytes(), "LICENSE": b"mine", "README.md": b"mine"}
    said = b"hf://org/net: settings and a licence that may lie there do not go along: copy them yourself\n"
    hub.push("org/copy", {})
    assert said in wsurgery("push", "hf://org/net", "hf://org/copy").stderr
    assert files(hub, model="org/copy").keys() == {"model.safetensors", "README.md"}
    assert said in wsurgery("scale", "hf://org/net", "--by", 2, "-o", f"{tmp_path}/out/").stderr
    assert said not in wsurgery("scale", "hf://org/net", "--by", 2, "-o", tmp_path / "file").stderr


@pytest.mark.parametrize("ignored", ["*.safetensors", "LICENSE"])
def test_what_gitignore_leaves_out_is_said_and_nothing_is_written(ignored, hub, resnet, wsurgery, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(resnet.read_bytes())
    (tmp_path / "model" / "LICENSE").write_text("mine")
    hub.push("org/net", {".gitignore": ignored.encode()})
    done = wsurgery("push", tmp_path / "model", "hf://org/net", check=False)
    assert done.returncode == 1
    assert b": .gitignore of this model leaves it out: mend that, or name the file otherwise\n" in done.stderr
    assert (list(files(hub)), hub.commits) == ([".gitignore"], [])


@OF_HTTPX
@pytest.mark.parametrize(("typed", "written"), [("MIT", "mit"), ("Ours, of 2024", "other")])
def test_a_card_has_a_licence_that_the_hub_takes(typed, written, here):
    with HubUpload("hf://org/net/a.safetensors") as mine:
        mine.write(save({"w": np.ones(3)}, {"license": typed}))
    assert f"\nlicense: {written}\n" in files(here)["README.md"].decode()


@OF_HTTPX
def test_a_card_of_the_users_that_the_hub_refuses_is_said_at_once(here):
    with pytest.raises(WsurgeryError, match=r'400 \(.*"license" must be one of.*\): mend what it names'):  # noqa: SIM117
        with HubUpload("hf://org/net/README.md") as mine:
            mine.write(b"---\nlicense: MINE\n---\n")
    assert sum("validate-yaml" in line for line in here.proxy.seen) == 1


@pytest.mark.slow
def test_an_input_that_ends_early_leaves_nothing(hub, large, wsurgery):
    content = large.read_bytes()[:-1000]
    done = wsurgery("scale", "--by", 2, "-o", "hf://org/net/a.safetensors", stdin=content, check=False)
    assert done.returncode == 1
    assert b"ends early" in done.stderr
    assert (files(hub), hub.commits) == ({}, [])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_is_ended_leaves_nothing(number, hub, large, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    command = [sys.executable, "-m", "wsurgery", "scale", "--by", "2", "-o", "hf://org/net/a.safetensors"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(large.read_bytes()[:-1000])
        process.stdin.flush()
        while not any("paths-info" in path for _, path in hub.asked):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        said = process.stderr.read()
    assert b"Traceback" not in said
    assert (files(hub), hub.commits, list((tmp_path / "tmp").iterdir())) == ({}, [], [])


@pytest.mark.slow
def test_shards_that_are_more_than_may_be_open_raise_the_limit(hub, tmp_path):
    path = tmp_path / "many.safetensors"
    save_file({f"l{i:03}.weight": np.ones(100, np.float32) for i in range(80)}, path)
    script = "import resource; most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
    script += "resource.setrlimit(resource.RLIMIT_NOFILE, (64, most)); from wsurgery.__main__ import main; main()"
    given = ["scale", str(path), "--by", "2", "--shard-size", "400", "--threads", "1", "-o", "hf://org/net"]
    done = subprocess.run([sys.executable, "-c", script, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(files(hub)) == 82


def test_a_full_disk_names_the_folder_and_the_remedy(hub, large):
    limit = large.stat().st_size // 2
    script = f"import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    script += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from wsurgery.__main__ import main; main()"
    typed = [sys.executable, "-c", script, "scale", str(large), "--by", "2", "-o", "hf://org/net/a.safetensors"]
    done = subprocess.run(typed, capture_output=True, text=True)
    assert done.returncode == 1
    assert "where hf://org/net/a.safetensors waits until it is whole; TMPDIR moves it" in done.stderr
    assert files(hub) == {}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(hub, tmp_path):
    peaks = []
    for count in (10, 60):
        rng = np.random.default_rng(0)
        path = tmp_path / f"{count}"
        save_file({f"l{i}.weight": rng.normal(size=(1000, 1250)).astype("f4") for i in range(count)}, path)
        peaks.append(peak_memory("scale", path, "--by", 2, "-o", f"hf://org/net/{count}.safetensors"))
    assert peaks[1] < peaks[0] + 20e6


def test_where_descriptors_have_no_names_what_waits_is_a_file_that_goes(monkeypatch):
    monkeypatch.setattr(hub_upload, "_DESCRIPTORS", "/nowhere")
    file, name = hub_upload._temporary()
    with file:
        file.write(b"waits")
        assert Path(name).read_bytes() == b"waits"
    assert not Path(name).exists()
