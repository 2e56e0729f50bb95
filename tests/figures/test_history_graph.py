"""The history as a drawing, against the records that it draws."""

from itertools import combinations
from xml.etree import ElementTree

import pytest

from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.provenance import History
from wsurgery.figures.history_graph import MOST_NODES, Node, history_graph, history_svg

HOSTILE = "</text><script>alert(1)</script>'\"&\x1b[31m.safetensors"
LEAF = {"name": "a.safetensors", "size": 98_000_000, "blake3": "ab12cd34" * 8}


def record(command, *inputs):
    return {"command": command, "arguments": [], "inputs": list(inputs)}


def flows():
    return {"name": "-", "header": "00" * 32}


def inputs_of(log):
    """Count the inputs that have no history of their own and are not what flows from the record before."""
    found = 0
    for i, each in enumerate(log):
        for j, given in enumerate(each["inputs"]):
            if i and not j and given["name"] == "-":
                continue
            found += inputs_of(given["log"]) if given.get("log") else 1
    return found


def records_of(log):
    return len(log) + sum(records_of(given.get("log", [])) for each in log for given in each["inputs"])


@pytest.fixture(scope="session")
def transfused(tmp_path_factory, shell):
    """A meanvar of A, transfused into B."""
    folder = tmp_path_factory.mktemp("history")
    made = [
        f"wsurgery init cbr_tiny --width 0.05 --seed {seed} -o {name}.safetensors" for seed, name in enumerate("AB")
    ]
    last = "wsurgery transfuse <(wsurgery meanvar A.safetensors --seed 7) --upto block1 --into B.safetensors -o C.safetensors"
    assert shell(" && ".join([*made, last]), folder).returncode == 0
    return folder / "C.safetensors"


def test_a_meanvar_of_a_transfused_into_b(transfused):
    with open_checkpoint(transfused) as checkpoint:
        nodes = history_graph(History.of(checkpoint).log, "C.safetensors")
    (transfuse,) = (node for node, _ in nodes[0].inputs)
    (into, option), (source, _) = transfuse.inputs
    assert (transfuse.title, into.title, source.title, option) == ("transfuse", "init", "meanvar", "--into")
    assert source.detail == "seed 7 · --bn identity"
    assert [node.title for node, _ in source.inputs] == ["init"]
    assert transfuse.column == into.column == 0 < source.column


LOGS = {
    "none": [],
    "one file": [record("meanvar", LEAF)],
    "a chain": [record("meanvar", LEAF), record("scale", flows()), record("cast", flows())],
    "three at once": [record("average", LEAF, LEAF, LEAF)],
    "standard input beside": [record("scale", LEAF), record("lerp", flows(), {"name": "-", "header": "11", "log": []})],
    "histories beside": [
        record("scale", LEAF),
        record("merge", flows(), {**LEAF, "log": [record("lerp", LEAF, LEAF), record("cast", flows())]}, LEAF),
        record("transfuse", flows(), {**LEAF, "log": [record("meanvar", LEAF)] + [record("scale", flows())] * 5}),
    ],
}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_there_is_a_node_for_each_record_and_each_input_and_none_lie_on_each_other(log):
    nodes = history_graph(log, "x")
    assert [node.kind for node in nodes].count("command") == records_of(log)
    assert [node.kind for node in nodes].count("file") == inputs_of(log)
    places = [(node.column, node.depth) for node in nodes]
    assert len(set(places)) == len(places)
    for node in nodes:
        assert all(other.depth == node.depth + 1 for other, _ in node.inputs)


def lines(nodes: list[Node]):
    """Where each edge runs: from its file's column in the gap below it to the column of what read it."""
    return [(other.depth, node.column, other.column) for node in nodes for other, _ in node.inputs]


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_edges_to_different_commands_do_not_cross(log):
    for (depth, a, b), (other, c, d) in combinations(lines(history_graph(log, "x")), 2):
        assert depth != other or a == c or b < c or d < a


def test_a_history_without_end_has_a_bounded_drawing():
    beside = {**LEAF, "log": [record("meanvar", LEAF)]}
    long = [record("scale", flows(), beside) for _ in range(20_000)]
    wide = [record("average", *[LEAF] * 20_000)]
    for log in (long, wide):
        nodes = history_graph(log, "x")
        assert MOST_NODES <= len(nodes) < MOST_NODES + 10
        assert any("more" in node.detail or "earlier" in node.detail for node in nodes)
    assert history_graph(long, "x")[1].title == "scale"  # the newest are there


def test_it_is_xml_and_hostile_names_are_text():
    log = [record("meanvar", {**LEAF, "name": HOSTILE}), record("scale", {"name": "-", "option": HOSTILE})]
    for alone in (False, True):
        svg = history_svg(log, HOSTILE, alone=alone)
        assert svg == history_svg(log, HOSTILE, alone=alone)
        assert "\x1b" not in svg
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
        assert tags <= {"svg", "style", "rect", "path", "g", "title", "text"}


def test_the_command_prints_it_or_writes_it(invoke, transfused, tmp_path):
    printed = invoke("log", transfused, "--graph").stdout
    invoke("log", transfused, "--graph", "-o", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == printed
    texts = {element.text for element in ElementTree.fromstring(printed).iter() if element.tag.endswith("text")}
    assert {"meanvar", "transfuse", "--into", "C.safetensors"} <= texts


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "--graph"],
        ["--card", "--graph"],
        ["--card", "-o", "a.svg"],
        ["-o", "a.svg"],
        ["--graph", "-o", "a.png"],
    ],
)
def test_what_makes_no_sense_is_a_line(words, invoke, transfused):
    done = invoke("log", transfused, *words, check=False)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
