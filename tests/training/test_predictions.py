"""Files of predictions: what cannot be compared says why, in one line."""

import csv

import numpy as np
import pytest

from wsurgery.data.dataset import load_dataset
from wsurgery.errors import WsurgeryError
from wsurgery.training.predictions import Predictions, align, from_logits, read_predictions, write_predictions

HEADER = "path,patient,a,b,p_a,p_b,logit_a,logit_b\n"
ROWS = ["x.png,1,0,1,0,1,-1e3,38.5\n", "y.png,1,,0,0.5,0.7,0,0.85\n", "z.png,2,1,1,1,1,37,38.25\n"]
OLD_HEADER = "path,patient,a,b,p_a,p_b\n"
OLD_ROWS = ["x.png,1,0,1,0.1,0.9\n", "y.png,1,,0,0.2,0.7\n", "z.png,2,1,1,0.5,0.75\n"]


def written(path, text):
    path.write_text(text)
    return read_predictions(path)


def test_a_file_read_by_hand(tmp_path):
    found = written(tmp_path / "p.csv", HEADER + "".join(ROWS))
    assert (found.paths, found.patients) == (("x.png", "y.png", "z.png"), ("1", "1", "2"))
    assert (found.names, found.count) == (("a", "b"), 2)
    np.testing.assert_array_equal(found.labels, [[0, 1], [np.nan, 0], [1, 1]])
    np.testing.assert_array_equal(found.scores, [[-1000, 38.5], [0, 0.85], [37, 38.25]])


def test_a_file_without_logits_is_read_where_no_probability_was_rounded_to_0_or_1(tmp_path):
    found = written(tmp_path / "p.csv", OLD_HEADER + "".join(OLD_ROWS))
    assert (found.names, found.count) == (("a", "b"), 2)
    np.testing.assert_array_equal(found.scores, [[0.1, 0.9], [0.2, 0.7], [0.5, 0.75]])
    with pytest.raises(WsurgeryError, match=r"p\.csv has no logits, and 3 of its probabilities are rounded to 0 or 1"):
        written(tmp_path / "p.csv", OLD_HEADER + "".join(OLD_ROWS) + "1.png,3,0,1,1.0,1\n2.png,3,0,1,0.5,0\n")


def test_referable_stands_beside_the_labels(tmp_path):
    header = "path,patient,a,p_a,logit_a,referable,p_referable,logit_referable\n"
    found = written(tmp_path / "p.csv", header + "x.png,1,0,0.1,-2.2,,0.5,0\n")
    assert (found.names, found.count) == (("a", "referable"), 1)
    np.testing.assert_array_equal(found.labels, [[0, np.nan]])
    np.testing.assert_array_equal(found.scores, [[-2.2, 0]])
    found = written(tmp_path / "q.csv", "path,patient,a,p_a,referable,p_referable\nx.png,1,0,0.1,,0.5\n")
    assert (found.names, found.count) == (("a", "referable"), 1)
    np.testing.assert_array_equal(found.scores, [[0.1, 0.5]])
    found = written(tmp_path / "r.csv", "path,patient,referable,p_referable,logit_referable\nx.png,1,0,0.1,-2.2\n")
    assert (found.names, found.count) == (("referable",), 1)


def test_columns_are_found_by_place_whatever_labels_are_called(tmp_path):
    header = "path,patient,a,p_a,logit_a,p_a,p_p_a,p_logit_a,logit_a,logit_p_a,logit_logit_a\n"
    found = written(tmp_path / "p.csv", header + "x.png,1,0,1,0,0.1,0.9,0.2,-3,4,-2\n")
    assert found.names == ("a", "p_a", "logit_a")
    np.testing.assert_array_equal(found.labels, [[0, 1, 0]])
    np.testing.assert_array_equal(found.scores, [[-3, 4, -2]])


def test_what_is_written_comes_back_to_the_last_digit_and_without_a_word(tmp_path, recwarn):
    rng = np.random.default_rng(0)
    scores = np.column_stack([37 + rng.random(50).astype(np.float32), rng.normal(0, 300, 50), np.full(50, -1e4)])
    labels = rng.choice([0, 1, np.nan], (50, 3))
    paths = tuple(f"{i}.png" for i in range(50))
    found = Predictions("", paths, paths, ("a", "b", "referable"), labels, scores, 2)
    write_predictions(tmp_path / "p.csv", found)
    back = read_predictions(tmp_path / "p.csv")
    np.testing.assert_array_equal(back.labels, labels)
    np.testing.assert_array_equal(back.scores, scores)
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {float(row["p_a"]) for row in rows} == {1}
    assert len({row["logit_a"] for row in rows}) == 50
    assert {float(row["p_referable"]) for row in rows} == {0}
    assert not recwarn


def test_logits_are_the_predictions_of_the_data(fundus):
    data = load_dataset(fundus, split="test")
    logits = np.random.default_rng(0).normal(size=data.labels.shape).astype(np.float32)
    found = from_logits("x", data, logits)
    assert (found.names, found.count) == ((*data.label_names, "referable"), 5)
    np.testing.assert_array_equal(found.labels[:, :5], data.labels)
    np.testing.assert_array_equal(found.labels[:, 5], data.labels[:, 2:].sum(axis=1))
    np.testing.assert_array_equal(found.scores[:, :5], logits)
    with pytest.raises(WsurgeryError, match="x has 4 outputs, the data 5 labels"):
        from_logits("x", data, logits[:, :4])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no table of predictions"),
        ("a,b\n1,2\n", "no table of predictions"),
        ("path,patient,a,b,p_b,p_a\n", "no table of predictions"),
        ("path,patient,a,b,p_a,p_b,logit_b,logit_a\n", "no table of predictions"),
        ("path,patient,a,b,p_a,p_b,logit_a\n", "no table of predictions"),
        ("path,patient,a,b,logit_a,logit_b\n", "no table of predictions"),
        ("path,patient\n", "no table of predictions"),
        (HEADER, "holds no image"),
        (HEADER + ROWS[0] + "y.png,1,0\n", "row 2 is broken"),
        (HEADER + "x.png,1,0,1,0.5,0.9,half,2\n", "row 1 is broken"),
        (OLD_HEADER + "x.png,1,0,1,half,0.9\n", "row 1 is broken"),
        (HEADER + "x.png,1,2,1,0.5,0.9,0,2\n", "row 1: a label is neither 0 nor 1"),
        (HEADER + "x.png,1,1,1,0.5,0.9,nan,2\n", "or a logit or probability no number"),
        (HEADER + ROWS[0] + ROWS[1] + ROWS[0], r"names image x\.png 2 times"),
        ("\0", "no table of predictions"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(WsurgeryError, match=said) as caught:
        written(tmp_path / "p.csv", text)
    assert "p.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_are_brought_into_one_order(tmp_path):
    a = written(tmp_path / "a.csv", HEADER + "".join(ROWS))
    b = written(tmp_path / "b.csv", HEADER + "".join(reversed(ROWS)))
    (aligned,) = align(a, [b])
    assert aligned.paths == a.paths
    np.testing.assert_array_equal(aligned.labels, a.labels)
    np.testing.assert_array_equal(aligned.scores, a.scores)


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        (HEADER, ROWS[:2], r"image z\.png is in .*a\.csv and not in .*b\.csv"),
        (HEADER, [*ROWS, "more.png,3,0,1,0.1,0.9,-2,2\n"], r"image more\.png is in .*b\.csv and not in .*a\.csv"),
        (HEADER, [*ROWS[:2], "z.png,2,1,0,1,1,37,38.25\n"], r"different labels of image z\.png"),
        (HEADER, [ROWS[0], "y.png,1,0,0,0.5,0.7,0,0.85\n", ROWS[2]], r"different labels of image y\.png"),
        ("path,patient,a,c,p_a,p_c,logit_a,logit_c\n", ROWS, "different labels, a, b and a, c"),
    ],
)
def test_what_is_not_the_same_names_the_first_difference(tmp_path, header, rows, said):
    a = written(tmp_path / "a.csv", HEADER + "".join(ROWS))
    with pytest.raises(WsurgeryError, match=said) as caught:
        align(a, [written(tmp_path / "b.csv", header + "".join(rows))])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"path,patient", b"a" * 20_000_000, (HEADER + "x" * 20_000_000).encode(), HEADER.encode() + b"\0",
        HEADER.encode() + b'"' + b"x" * 200_000, HEADER.encode() + b"x.png,1,0,1," + b"9" * 5000 + b",x\n",
        HEADER.encode() + b"x.png\n",
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(WsurgeryError, match=r"^[^\n]*p\.csv [^\n]+$"):
        read_predictions(tmp_path / "p.csv")


def test_a_file_of_many_labels_is_read_in_no_more_than_its_time(tmp_path):
    """100,000 columns, each looked for among all, were ten thousand million steps."""
    n = 50_000
    header = ",".join(["path,patient", *(f"a{i}" for i in range(n)), *(f"p_a{i}" for i in range(n))])
    found = written(tmp_path / "p.csv", f"{header}\nx.png,1{',1' * n}{',0.5' * n}\n")
    assert found.scores.shape == (1, n)


def test_text_that_a_spreadsheet_takes_for_a_formula_is_none_in_the_file_and_comes_back(tmp_path):
    texts = ("=x.png", "-y.png", "'@z.png")
    found = Predictions("", texts, texts, ("=a", "+b"), np.ones((3, 2)), np.zeros((3, 2)), 2)
    write_predictions(tmp_path / "p.csv", found)
    back = read_predictions(tmp_path / "p.csv")
    assert (back.paths, back.patients, back.names) == (texts, texts, ("=a", "+b"))
    with (tmp_path / "p.csv").open(newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "-", "+", "@"))]
