"""The errors of a value: from the images, by a jackknife, and from the draws of channels."""

import csv
import io

import numpy as np
import pytest
import scipy.linalg

from wsurgery.similarity import protocol
from wsurgery.similarity.files import compare_files
from wsurgery.similarity.protocol import groups_at_once, usable_groups
from wsurgery.similarity.results import as_csv


def oracle(x, y):
    u, v = (scipy.linalg.orth(rows - rows.mean(0)) for rows in (x, y))
    return scipy.linalg.svdvals(u.T @ v).mean()


def correlated(rng, n, c, rho):
    x = rng.standard_normal((n, c))
    return x, rho * x + (1 - rho**2) ** 0.5 * rng.standard_normal((n, c))


@pytest.fixture
def compared(tmp_path):
    def compared(x, y, **options):
        np.save(tmp_path / "a.npy", x)
        np.save(tmp_path / "b.npy", y)
        (found,) = compare_files(tmp_path / "a.npy", tmp_path / "b.npy", **options)
        return found

    return compared


@pytest.mark.parametrize("groups", [2, 7, 16])
def test_the_jackknife_is_that_of_the_data_itself(compared, groups):
    x, y = correlated(np.random.default_rng(0), 500, 5, 0.5)
    found = compared(x, y, channels="all", groups=groups)
    group = np.arange(500) * groups // 500
    without = np.array([oracle(x[group != g], y[group != g]) for g in range(groups)])
    assert found.groups == groups
    assert found.se_images == pytest.approx(((groups - 1) * without.var()) ** 0.5, rel=1e-6)
    assert found.bias_corrected == pytest.approx(groups * found.value - (groups - 1) * without.mean(), abs=1e-9)
    assert (found.se, found.se_channels) == (found.se_images, None)


def test_the_error_is_the_spread_of_new_data_and_the_bias_goes(compared):
    rng, rho = np.random.default_rng(1), 0.5
    found = [compared(*correlated(rng, 60, 4, rho), channels="all") for _ in range(200)]
    values, corrected = (np.array([getattr(x, field) for x in found]) for field in ("value", "bias_corrected"))
    assert np.mean([x.se_images**2 for x in found]) == pytest.approx(values.var(ddof=1), rel=0.3)
    assert values.mean() - rho > 0.01
    assert abs(corrected.mean() - rho) < (values.mean() - rho) / 3


def test_the_parts_of_the_error_are_told_apart(compared):
    rng = np.random.default_rng(2)
    shared = rng.standard_normal((4000, 12))
    x, y = (shared + noise * rng.standard_normal((4000, 12)) for noise in (np.linspace(0.1, 3, 12), 1))
    few, many = compared(x[:400], y[:400], d=3, repeats=20), compared(x, y, d=3, repeats=20)
    for found in (few, many):
        assert found.se_channels == pytest.approx(np.std(found.repeats, ddof=1) / 20**0.5)
        assert found.se == pytest.approx(np.hypot(found.se_images, found.se_channels))
    assert many.se_images < few.se_images / 2  # ten times the rows
    assert many.se_channels == pytest.approx(few.se_channels, rel=0.3)


def test_several_passes_over_the_same_rows_are_one_jackknife(compared, monkeypatch):
    x, y = correlated(np.random.default_rng(3), 400, 9, 0.5)
    once = compared(x, y, d=4, repeats=4, groups=3)
    monkeypatch.setattr(protocol, "repeats_at_once", lambda layers, repeats: 3)
    monkeypatch.setattr("wsurgery.similarity.files.repeats_at_once", lambda layers, repeats: 3)
    twice = compared(x, y, d=4, repeats=4, groups=3)
    assert twice.se_images == pytest.approx(once.se_images, rel=1e-9)
    assert twice.bias_corrected == pytest.approx(once.bias_corrected, abs=1e-12)


def test_groups_are_as_many_as_can_be_left_out():
    assert usable_groups(16, units=100, rows=10, channels=128) == 16
    assert usable_groups(16, units=5, rows=100, channels=128) == 5
    assert usable_groups(16, units=2, rows=128, channels=128) == 1  # one image's rows would force every correlation
    assert usable_groups(16, units=1, rows=1000, channels=128) == 1
    assert groups_at_once([((2048, 2048), (64, 64))], 10, 16) == 16
    assert groups_at_once([((2048, 2048), (2048, 2048))], 1, 16) < 16


def test_one_group_is_no_jackknife(compared):
    found = compared(*correlated(np.random.default_rng(4), 300, 6, 0.5), d=3, groups=1)
    assert (found.se_images, found.bias_corrected, found.se) == (None, None, found.se_channels)


def test_csv_has_a_line_a_result(compared):
    found = compared(*correlated(np.random.default_rng(5), 300, 6, 0.5), channels="all")
    (line,) = csv.DictReader(io.StringIO(as_csv([found])))
    assert (line["layer"], float(line["value"]), line["se_channels"]) == ("activations", found.value, "")
