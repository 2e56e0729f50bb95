import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsurgery.data.grades import GRADES, grade_labels, referable
from wsurgery.statistics.auc import auc_per_label


@pytest.mark.parametrize("ordinal", [False, True])
def test_labels_give_the_grade_back(ordinal):
    labels, names = grade_labels([0, 4, None, 2], GRADES, ordinal=ordinal)
    assert len(names) == labels.shape[1] == (4 if ordinal else 5)
    assert np.isnan(labels[2]).all()
    known = labels[[0, 1, 3]]
    assert (known.sum(1) if ordinal else known.argmax(1)).tolist() == [0, 4, 2]


def test_the_referable_score_of_one_hot_labels_is_their_share_of_probability():
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 5, 200)
    labels, names = grade_labels(grades.tolist(), GRADES, ordinal=False)
    logits = rng.normal(0, 2, (200, 5))
    truth, score = referable(names, labels, logits)
    p = 1 / (1 + np.exp(-logits))
    share = p[:, 2:].sum(1) / p.sum(1)
    np.testing.assert_allclose(1 / (1 + np.exp(-score)), share, rtol=1e-12)
    np.testing.assert_array_equal(truth, grades >= 2)
    auc = auc_per_label(truth[:, None], score[:, None], ["x"])["x"]
    assert auc == pytest.approx(roc_auc_score(grades >= 2, share), rel=1e-12)


def test_logits_of_any_size_are_ranked():
    labels, names = grade_labels([0, 1, 2, 3], GRADES, ordinal=False)
    logits = np.array([[900, 0, -900, -900, -900], [-1000] * 5, [-999, -1000, -990, -1000, -1000], [-9e3] * 4 + [9e3]])
    _, score = referable(names, labels, logits)
    assert np.isfinite(score).all()
    assert (np.diff(score) > 0).all()


def test_cumulative_labels_have_a_referable_one():
    labels, names = grade_labels([0, 1, 2, 3, None], GRADES, ordinal=True)
    logits = np.random.default_rng(0).normal(size=(5, 4))
    truth, score = referable(names, labels, logits)
    np.testing.assert_array_equal(truth, [0, 0, 1, 1, np.nan])
    np.testing.assert_array_equal(score, logits[:, names.index("at_least_moderate")])


def test_other_labels_have_none():
    assert referable(("edema", "effusion"), np.zeros((3, 2)), np.zeros((3, 2))) is None
