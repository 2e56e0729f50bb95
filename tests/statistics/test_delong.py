"""Intervals and the paired test against their definitions over all pairs of images, a jackknife, and resampling."""

import numpy as np
import pytest
from scipy.stats import norm

from wsurgery.statistics.auc import area, macro
from wsurgery.statistics.bootstrap import bootstrap_aucs
from wsurgery.statistics.delong import delong, paired_delong


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


@pytest.mark.parametrize("levels", [4, 30, 10**6])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_delongs(levels, level):
    labels, a, b, _ = two_networks(np.random.default_rng(8), 150, 1, levels, unknown=0.2)
    (auc, _), covariance = by_definition(labels[:, 0], a[:, 0], b[:, 0])
    found = delong(labels, a, level=level)
    half = norm.ppf((1 + level) / 2) * np.sqrt(covariance[0, 0])
    assert found.auc == pytest.approx(auc, rel=1e-12)
    assert found.se == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-10)
    assert found.ci == pytest.approx((auc - half, auc + half), rel=1e-10)


def test_the_interval_stays_in_0_to_1_and_needs_two_of_each():
    scores = np.arange(5.0)[:, None]

    def ci(*labels, patients=None):
        return delong(np.array(labels, np.float32)[:, None], scores, patients=patients).ci

    assert ci(0, 0, 0, 1, 1) is None  # AUC 1: what was drawn does not say how far it varies
    assert ci(1, 1, 0, 0, 0) is None
    assert delong(np.array([[0], [0], [1], [1]], np.float32), scores[:4]) == (1, 0, None)
    low, high = ci(0, 0, 1, 0, 1)
    assert 0 < low < high == 1
    assert ci(0, 0, 0, 0, 1) is None
    assert ci(0, np.nan, 1, 1, 1) is None
    assert ci(0, 1, 0, 1, 1, patients=list("aabbb")) is not None
    assert ci(0, 0, 0, 1, 1, patients=list("aabbb")) is None  # two positives, of one patient


def test_a_mean_with_a_label_that_does_not_vary_has_no_interval():
    """Of a rare label that a network happens to rank perfectly its interval would be that of the other label, halved."""
    labels, a, b, _ = two_networks(np.random.default_rng(5), 60, 2, 10**6)
    labels[:, 1] = np.nan
    labels[:20, 1] = np.arange(20) < 4
    sure, surer = a.copy(), b.copy()
    sure[:20, 1], surer[:20, 1] = labels[:20, 1] * 9, labels[:20, 1] * 9 + np.arange(20) / 100
    assert delong(labels, a).ci is not None
    assert delong(labels, sure).ci is None
    assert paired_delong(labels, sure, surer)[4:] == (None, None, None)
    assert paired_delong(labels, sure, b).ci is not None
    assert paired_delong(labels, sure, sure)[2:] == (0, 0, (0, 0), 0, 1)


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
    """Covariance of AUCs with several images a patient, from the m·n kernels (Obuchowski 1997, equations 4 and 5).

    `scores`, (n, networks); returns (networks, networks).
    """
    positive, negative = labels == 1, labels == 0
    owners = np.array(patients)
    names = np.unique(owners[positive | negative])
    m, n = positive.sum(), negative.sum()
    tens, ones = [], []
    for column in scores.T:
        x, y = column[positive], column[negative]
        kernel = (y[None, :] < x[:, None]) + 0.5 * (y[None, :] == x[:, None])
        auc = kernel.mean()
        tens.append([(kernel.mean(1)[owners[positive] == name] - auc).sum() for name in names])
        ones.append([(kernel.mean(0)[owners[negative] == name] - auc).sum() for name in names])
    tens, ones = np.array(tens), np.array(ones)
    i10, i01, i = len(set(owners[positive])), len(set(owners[negative])), len(names)
    s10, s01 = i10 / ((i10 - 1) * m) * tens @ tens.T, i01 / ((i01 - 1) * n) * ones @ ones.T
    s11 = i / (i - 1) * tens @ ones.T
    return s10 / m + s01 / n + (s11 + s11.T) / (m * n)


@pytest.mark.parametrize("levels", [3, 20, 10**6])
@pytest.mark.parametrize("images", [1, 3, 12])
def test_several_images_a_patient_are_obuchowskis_clusters(levels, images):
    labels, a, b, patients = two_networks(np.random.default_rng(3), 240, 1, levels, images=images, unknown=0.1)
    covariance = obuchowski(labels[:, 0], np.column_stack([a, b]), patients)
    assert delong(labels, a, patients=patients).se == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-10)
    assert delong(labels, b, patients=patients).se == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-10)
    variance = np.array([1, -1]) @ covariance @ np.array([1, -1])
    found = paired_delong(labels, a, b, patients=patients)
    assert found.se == pytest.approx(np.sqrt(variance), rel=1e-8)
    assert found.z == pytest.approx(found.difference / np.sqrt(variance), rel=1e-8)


def test_scores_that_saturate_are_told_apart_and_ties_count_half():
    """Logits of a network that is sure: in float64 their probabilities are 1 and tie."""
    labels, a, b, patients = two_networks(np.random.default_rng(9), 240, 1, levels=10**9, images=3)
    a, b = 36 + 3 * (a - a.min()) / np.ptp(a), 36 + 3 * (b - b.min()) / np.ptp(b)
    sure = 1 / (1 + np.exp(-a))
    assert len(np.unique(sure)) < len(np.unique(a))
    for x, y in ((a, b), (sure, 1 / (1 + np.exp(-b)))):
        covariance = obuchowski(labels[:, 0], np.column_stack([x, y]), patients)
        found = paired_delong(labels, x, y, patients=patients)
        assert found.se == pytest.approx(np.sqrt(np.array([1, -1]) @ covariance @ np.array([1, -1])), rel=1e-8)
    assert delong(labels, a).auc != delong(labels, sure).auc


@pytest.mark.parametrize("k", [1, 3])
def test_the_error_is_that_of_a_jackknife_over_patients(k):
    labels, a, _, patients = two_networks(np.random.default_rng(10), 600, k, levels=30, images=4, unknown=0.2)
    owners = np.array(patients)
    left = []
    for name in np.unique(owners):
        rest = owners != name
        columns = [(labels[rest, i], a[rest, i]) for i in range(k)]
        left.append(np.mean([area(scores[own == 1], scores[own == 0]) for own, scores in columns]))
    count = len(left)
    jackknife = np.sqrt((count - 1) / count * ((np.array(left) - np.mean(left)) ** 2).sum())
    found = delong(labels, a, patients=patients)
    assert found.se == pytest.approx(jackknife, rel=0.02)
    assert delong(labels, a).se < 0.9 * found.se
    drawn = bootstrap_aucs(labels, a, patients, resamples=3000, seed=0).mean(axis=1)
    assert found.se == pytest.approx(drawn.std(), rel=0.05)


def test_the_paired_test_and_the_interval_are_of_the_same_auc():
    labels, a, b, patients = two_networks(np.random.default_rng(11), 300, 4, levels=40, images=2, unknown=0.3)
    found = paired_delong(labels, a, b, patients=patients)
    assert (found.a, found.b) == (delong(labels, a).auc, delong(labels, b, patients=patients).auc)
    each = [area(a[labels[:, i] == 1, i], a[labels[:, i] == 0, i]) for i in range(4)]
    assert found.a == macro(dict(enumerate(each)))


def test_a_patient_with_one_image_is_an_image_and_copies_add_nothing():
    labels, a, b, patients = two_networks(np.random.default_rng(4), 120, 2, levels=9, unknown=0.2)
    shuffled = [patients[i] for i in np.random.default_rng(0).permutation(120)]
    alone = paired_delong(labels, a, b)
    assert paired_delong(labels, a, b, patients=patients) == paired_delong(labels, a, b, patients=shuffled) == alone
    assert delong(labels, a, patients=shuffled) == delong(labels, a)
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
    assert (found.difference, found.se, found.ci, found.z, found.p) == (1, 0, None, None, None)
    other = paired_delong(labels, right, right**2)  # two that are both right
    assert (other.difference, other.se, other.ci, other.p) == (0, 0, None, None)
    assert paired_delong(labels, right, right).ci == (0, 0)  # one network twice
    found = paired_delong(labels[:3], right[:3], -right[:3])  # one positive has no variance
    assert (found.difference, found.se, found.ci, found.p) == (1, None, None, None)
    found = paired_delong(labels, right, -right, patients=["a", "b", "c", "c"])
    assert (found.se, found.p) == (None, None)


def test_one_true_null_in_twenty_is_rejected():
    rng = np.random.default_rng(6)
    drawn = (two_networks(rng, 240, 2, images=2, unknown=0.2) for _ in range(400))
    p = [paired_delong(labels, a, b, patients=patients).p for labels, a, b, patients in drawn]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085  # three standard errors


def test_nineteen_intervals_in_twenty_hold_the_true_auc_of_40_patients_with_50_images_each():
    """Images of one patient are alike, and those taken as independent make an interval that is much too short."""
    rng, patients, images = np.random.default_rng(7), 40, 50
    owner = np.repeat(np.arange(patients), images)
    labels = np.repeat(rng.permutation(patients) % 2, images).astype(float)[:, None]
    truth = norm.cdf(1.5 / np.sqrt(2 * 2))  # between patients and within them: variance 1 each
    clustered, images_alone = [], []
    for _ in range(400):
        scores = 1.5 * labels[:, 0] + rng.normal(0, 1, patients)[owner] + rng.normal(0, 1, len(owner))
        for found, given in ((clustered, owner), (images_alone, None)):
            low, high = delong(labels, scores[:, None], patients=given).ci
            found.append(low <= truth <= high)
    assert 0.91 < np.mean(clustered) < 0.98
    assert np.mean(images_alone) < 0.5
