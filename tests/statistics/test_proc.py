"""AUCs, intervals and the paired test against R's pROC (Robin et al. 2011), where it is: Debian's r-cran-proc."""

import shutil
import subprocess

import numpy as np
import pytest

from wsurgery.statistics.delong import delong, paired_delong

PROC = r"""
suppressMessages(library(pROC))
seen <- read.csv(file("stdin"), colClasses = c("numeric", "numeric", "numeric", "character"))
curve <- function(rows, scores) {
  roc(seen$label[rows], seen[rows, scores], levels = c(0, 1), direction = "<", quiet = TRUE)
}
whole <- rep(TRUE, nrow(seen))
a <- curve(whole, "a")
b <- curve(whole, "b")
test <- roc.test(a, b, method = "delong", paired = TRUE)
left <- sapply(unique(seen$patient), function(patient) {
  rest <- seen$patient != patient
  c(auc(curve(rest, "a")), auc(curve(rest, "b")))
})
error <- function(values) sqrt((length(values) - 1) / length(values) * sum((values - mean(values))^2))
cat(sprintf("%.17g\n", c(
  auc(a), sqrt(var(a, method = "delong")), ci.auc(a, method = "delong", conf.level = 0.9)[c(1, 3)], auc(b),
  test$statistic, test$p.value, error(left[1, ]), error(left[1, ] - left[2, ])
)))
"""


@pytest.fixture(scope="module")
def proc():
    """Give a table to pROC: the numbers that the script above prints."""
    rscript = shutil.which("Rscript")
    if rscript is None or subprocess.run([rscript, "-e", "library(pROC)"], capture_output=True, check=False).returncode:
        pytest.skip("needs Rscript and pROC")

    def run(labels, a, b, patients):
        rows = (
            f"{label:.17g},{x:.17g},{y:.17g},{patient}\n"
            for label, x, y, patient in zip(labels, a, b, patients, strict=True)
        )
        table = "label,a,b,patient\n" + "".join(rows)
        done = subprocess.run([rscript, "-e", PROC], input=table, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return [float(line) for line in done.stdout.split()]

    return run


def scored(seed, images, kind):
    """240 images: labels, the scores of two networks and patients, whose images are alike."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(240 // images), images)
    severity = rng.normal(0, 1, 240 // images)[owner]
    labels = (severity + rng.normal(0, 0.7, 240) > 0.4).astype(float)
    a, b = (severity + rng.normal(0, 0.7, 240 // images)[owner] + rng.normal(0, 0.7, 240) for _ in "ab")
    if kind == "tied":
        a, b = np.round(2 * a), np.round(3 * b)
    if kind != "saturated":
        return labels, a, b, owner
    return labels, *(1 / (1 + np.exp(-20 - 12 * scores)) for scores in (a, b)), owner


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("kind", ["distinct", "tied", "saturated"])
def test_proc_finds_the_same(proc, kind, images):
    labels, a, b, patients = scored(0, images, kind)
    assert len(np.unique(a)) < 240 or kind == "distinct"
    auc, se, low, high, auc_b, z, p, jackknife, jackknife_of_difference = proc(labels, a, b, patients)
    columns = labels[:, None], a[:, None], b[:, None]
    alone, paired = delong(*columns[:2], level=0.9), paired_delong(*columns)
    assert (alone.auc, paired.b) == pytest.approx((auc, auc_b), rel=1e-12)
    assert (alone.se, *alone.ci) == pytest.approx((se, low, high), rel=1e-9)
    assert (paired.z, paired.p) == pytest.approx((z, p), rel=1e-7)
    # It has no clusters; leaving out one patient after the other comes close to them.
    assert delong(*columns[:2], patients=patients).se == pytest.approx(jackknife, rel=0.02)
    assert paired_delong(*columns, patients=patients).se == pytest.approx(jackknife_of_difference, rel=0.02)
