"""The paired test against its definition over all pairs of images, and against resampling."""

import numpy as np
import pytest
from scipy.stats import norm

from wsurgery.statistics.bootstrap import bootstrap_aucs
from wsurgery.statistics.delong import paired_delong


def two_networks(rng, n, k, levels=10**6, images=1, unknown=0.0):
    """Labels that correlate with each other, the scores of two networks that do too, and patients."""
    owner = np.repeat(np.arange(n // images), images)
    severity = (rng.normal(0, 1, (n // images, k)) + rng.normal(0, 1, (n // images, 1)))[owner]
    labels = (severity + rng.normal(0, 1, severity.shape) > 0.8).astype(np.float32)
    labels[rng.random(labels.shape) < unknown] = np.nan
    shared = severity + rng.normal(0, 1, severity.shape)
    own = [rng.normal(0, 1.5, (n // images, k))[owner] + rng.normal(0, 0.5, shared.shape) for _ in "ab"]
    a, b = (np.round((shared + errors) * levels / 12) for errors in own)
    return labels, a, b, [f"patient {i}" for i in owner]


def by_definition(labels, a, b):
    """AUC of each, and the covariance of the two, from the m·n kernels (DeLong et al. 1988, equations 3 to 7)."""
    aucs, v10, v01 = [], [], []
    for scores in (a, b):
        x, y = scores[labels == 1], scores[labels == 0]
        kernel = (y[None, :] < x[:, None]) + 0.5 * (y[None, :] == x[:, None])
        aucs.append(kernel.mean())
        v10.append(kernel.mean(1))
        v01.append(kernel.mean(0))
    return aucs, np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])


@pytest.mark.parametrize("levels", [6, 10**6])
def test_one_label_is_delongs_test_by_its_definition(levels):
    labels, a, b, _ = two_networks(np.random.default_rng(0), 150, 1, levels, unknown=0.2)
    aucs, covariance = by_definition(labels[:, 0], a[:, 0], b[:, 0])
    variance = np.array([1, -1]) @ covariance @ np.array([1, -1])
    found = paired_delong(labels, a, b, level=0.9)
    assert (found.a, found.b) == pytest.approx(tuple(aucs), rel=1e-12)
    assert found.difference == pytest.approx(aucs[0] - aucs[1], rel=1e-10)
    assert found.se == pytest.approx(np.sqrt(variance), rel=1e-10)
    assert found.z == pytest.approx(found.difference / np.sqrt(variance), rel=1e-9)
    assert found.p == pytest.approx(2 * norm.cdf(-abs(found.z)), rel=1e-9)
    half = norm.ppf(0.95) * np.sqrt(variance)
    assert found.ci == pytest.approx((found.difference - half, found.difference + half), rel=1e-9)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_the_error_of_the_mean_over_labels_is_that_of_resampling(images, unknown):
    """Labels correlate, and each is known of other images; with three images a patient, patients are resampled."""
    labels, a, b, patients = two_networks(np.random.default_rng(1), 900, 4, images=images, unknown=unknown)
    drawn = [bootstrap_aucs(labels, scores, patients, resamples=3000, seed=0).mean(axis=1) for scores in (a, b)]
    found = paired_delong(labels, a, b, patients=patients)
    assert found.se == pytest.approx((drawn[0] - drawn[1]).std(), rel=0.05)  # 3000 samples know it to 1.3 %
    if images > 1:
        assert paired_delong(labels, a, b).se < 0.93 * found.se


def test_the_mean_over_labels_has_the_error_of_a_jackknife():
    labels, a, b, _ = two_networks(np.random.default_rng(2), 300, 3, levels=20, unknown=0.3)
    keep = [np.delete(np.arange(300), i) for i in range(300)]
    left = [paired_delong(labels[rows], a[rows], b[rows]).difference for rows in keep]
    jackknife = np.sqrt(299 / 300 * ((left - np.mean(left)) ** 2).sum())
    assert paired_delong(labels, a, b).se == pytest.approx(jackknife, rel=0.03)


def obuchowski(labels, scores, patients):
    """Variance of one AUC with several images a patient, from the m·n kernel (Obuchowski 1997, equation 5)."""
    x, y = scores[labels == 1], scores[labels == 0]
    kernel = (y[None, :] < x[:, None]) + 0.5 * (y[None, :] == x[:, None])
    owners, auc = np.array(patients), kernel.mean()
    names = np.unique(owners)
    tens = np.array([(kernel.mean(1)[owners[labels == 1] == name] - auc).sum() for name in names])
    ones = np.array([(kernel.mean(0)[owners[labels == 0] == name] - auc).sum() for name in names])
    m, n = len(x), len(y)
    i10, i01, i = len(set(owners[labels == 1])), len(set(owners[labels == 0])), len(names)
    s10, s01 = i10 / ((i10 - 1) * m) * (tens**2).sum(), i01 / ((i01 - 1) * n) * (ones**2).sum()
    s11 = i / (i - 1) * (tens * ones).sum()
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def test_several_images_a_patient_are_obuchowskis_clusters():
    labels, a, _, patients = two_networks(np.random.default_rng(3), 240, 1, levels=20, images=3)
    never = np.zeros_like(a)  # its influence is zero, so that what is left is one AUC's variance
    found = paired_delong(labels, a, never, patients=patients)
    expected = np.sqrt(obuchowski(labels[:, 0], a[:, 0], patients))
    assert found.se == pytest.approx(expected, rel=0.005)  # his factor of the cross term is another by 1 in 80
    labels[:, 0] = np.repeat(labels[::3, 0], 3)  # one class a patient: no cross term
    found = paired_delong(labels, a, never, patients=patients)
    assert found.se == pytest.approx(np.sqrt(obuchowski(labels[:, 0], a[:, 0], patients)), rel=1e-10)


def test_a_patient_with_one_image_is_an_image_and_copies_add_nothing():
    labels, a, b, patients = two_networks(np.random.default_rng(4), 120, 2, levels=9, unknown=0.2)
    alone = paired_delong(labels, a, b)
    named = paired_delong(labels, a, b, patients=patients)
    assert (named.difference, named.se, named.p) == pytest.approx((alone.difference, alone.se, alone.p), rel=1e-9)
    twice = [np.repeat(x, 2, axis=0) for x in (labels, a, b)]
    copied = paired_delong(*twice, patients=np.repeat(patients, 2))
    assert copied.se == pytest.approx(alone.se, rel=1e-9)


def test_the_same_ranks_do_not_differ_at_all():
    labels, a, _, patients = two_networks(np.random.default_rng(5), 80, 3, levels=9)
    found = paired_delong(labels, a, np.exp(a / 10), patients=patients)
    assert (found.difference, found.se, found.ci, found.z, found.p) == (0, 0, (0, 0), 0, 1)


def test_without_an_estimate_of_its_error_a_difference_has_no_p():
    labels = np.array([[0], [0], [1], [1]], np.float32)
    right = np.arange(4.0)[:, None]
    found = paired_delong(labels, right, -right)
    assert (found.difference, found.se, found.z, found.p) == (1, 0, None, None)
    found = paired_delong(labels[:3], right[:3], -right[:3])  # one positive has no variance
    assert (found.difference, found.se, found.ci, found.p) == (1, None, None, None)
    found = paired_delong(labels, right, -right, patients=["a", "b", "c", "c"])
    assert (found.se, found.p) == (None, None)


def test_one_true_null_in_twenty_is_rejected():
    rng = np.random.default_rng(6)
    drawn = (two_networks(rng, 240, 2, images=2, unknown=0.2) for _ in range(400))
    p = [paired_delong(labels, a, b, patients=patients).p for labels, a, b, patients in drawn]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085  # three standard errors
