from fractions import Fraction

import numpy as np
import pytest

from wsurgery.data.dataset import Dataset, load_dataset
from wsurgery.errors import UsageError
from wsurgery.statistics.auc import auc_per_label, macro
from wsurgery.statistics.logistic import Regressions, Scale, log_odds
from wsurgery.training.baseline import PENALTIES, features_of, fit_baseline


def images(n, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def share(cell, side, size, pixel):
    """The part of a pixel, 0 to 1, that lies in a cell of a row of `side` cells, exactly."""
    low, high = Fraction(cell * size, side), Fraction((cell + 1) * size, side)
    return max(Fraction(0), min(high, Fraction(pixel + 1)) - max(low, Fraction(pixel)))


@pytest.mark.parametrize("size", [5, 16, 23, 32, 50])
def test_a_thumbnail_is_the_mean_over_each_cells_area(size):
    given, side = images(2, size), min(16, size)
    found = features_of(given, "thumbnail").reshape(2, side, side, 3)
    area = Fraction(size * size, side * side)
    parts = [[(p, s) for p in range(size) if (s := share(cell, side, size, p))] for cell in range(side)]
    for row, column in ((0, 0), (1, 3), (side // 2, side - 1), (side - 1, side - 1)):
        for channel in range(3):
            total = sum(
                a * b * int(given[1, y, x, channel]) for y, a in parts[row] for x, b in parts[column]
            )  # the definition, in fractions
            assert found[1, row, column, channel] == pytest.approx(float(total / area), rel=1e-5)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), given.mean(axis=(1, 2)), rtol=1e-5)


def test_small_images_are_their_own_pixels():
    given = images(3, 7)
    np.testing.assert_allclose(features_of(given, "thumbnail"), given.reshape(3, -1), rtol=1e-6)


@pytest.mark.parametrize("size", [3, 20])
def test_a_histogram_has_numpys_shares_of_each_channel(size):
    given = images(4, size)
    found = features_of(given, "histogram").reshape(4, 3, 16)
    for i in range(4):
        for channel in range(3):
            counts, _ = np.histogram(given[i, :, :, channel], bins=16, range=(0, 256))
            np.testing.assert_allclose(found[i, channel], counts / size**2, rtol=1e-6)


@pytest.mark.parametrize("name", ["thumbnail", "histogram"])
def test_images_are_taken_a_few_at_a_time_from_a_file(name, tmp_path, monkeypatch):
    given = images(11, 20)
    given.tofile(tmp_path / "x.rgb")
    mapped = np.memmap(tmp_path / "x.rgb", np.uint8, mode="r", shape=given.shape)
    whole = features_of(given, name)
    assert whole.dtype == np.float32
    monkeypatch.setattr("wsurgery.training.baseline._BYTES", 3 * given[0].nbytes)
    np.testing.assert_allclose(features_of(mapped, name), whole, rtol=1e-6)


def dataset(pixels, labels):
    names = tuple(f"{i}" for i in range(len(pixels)))
    return Dataset(pixels, np.asarray(labels, np.float32), ("a", "b")[: len(labels[0])], names, names, "digest")


def test_of_the_penalties_the_one_with_the_highest_auc_on_the_validation_images_is_taken(fundus):
    train, valid, test = (load_dataset(fundus, split=split) for split in ("train", "valid", "test"))
    found = fit_baseline("thumbnail", train.label_names, train, valid, test)
    features = features_of(train.images, "thumbnail")
    scale, features_valid, features_test = (
        Scale.of(features), features_of(valid.images, "thumbnail"), features_of(test.images, "thumbnail")
    )  # fmt: skip
    for some in (features, features_valid, features_test):
        scale.apply(some)
    aucs, scores = {}, {}
    for penalty in PENALTIES:
        weights = Regressions(features, train.labels).solve(penalty)
        aucs[penalty] = macro(auc_per_label(valid.labels, log_odds(features_valid, weights), valid.label_names))
        scores[penalty] = log_odds(features_test, weights)
    assert len(set(aucs.values())) > 1
    assert found.chosen
    assert aucs[found.penalty] == max(aucs.values())
    np.testing.assert_allclose(found.scores, scores[found.penalty], rtol=1e-3, atol=1e-3)


def test_without_validation_images_of_both_classes_the_penalty_is_1(fundus):
    train, valid, test = (load_dataset(fundus, split=split) for split in ("train", "valid", "test"))
    one_class = Dataset(
        valid.images, np.zeros_like(valid.labels), valid.label_names, valid.patients, valid.paths, valid.digest
    )
    alone = fit_baseline("histogram", train.label_names, train, None, test)
    assert (alone.penalty, alone.chosen, alone.images) == (1.0, False, 60)
    other = fit_baseline("histogram", train.label_names, train, one_class, test)
    assert (other.penalty, other.chosen) == (1.0, False)
    np.testing.assert_array_equal(other.scores, alone.scores)


def test_images_that_colours_tell_apart_are_told_apart():
    """Of two labels, one is brightness, one nothing: a histogram must find the first on new images."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, (80, 2))
    pixels = (images(80, 8, seed=4) // 2 + 100 * labels[:, :1, None, None]).astype(np.uint8)
    train, test = dataset(pixels[:40], labels[:40]), dataset(pixels[40:], labels[40:])
    found = fit_baseline("histogram", ("a", "b"), train, None, test)
    aucs = auc_per_label(test.labels, found.scores, found.labels)
    assert aucs["a"] == 1
    assert aucs["b"] < 0.8
    assert fit_baseline("histogram", ("a",), train, test, test).penalty == PENALTIES[0], "the largest of equals"


def test_one_class_in_training_is_refused_by_the_labels_name(fundus):
    train, test = (load_dataset(fundus, split=split) for split in ("train", "test"))
    pixels, labels = np.array(train.images), np.array(train.labels)
    labels[:, 2] = np.where(labels[:, 2] == 1, np.nan, labels[:, 2])
    lacking = Dataset(pixels, labels, train.label_names, train.patients, train.paths, train.digest)
    with pytest.raises(UsageError, match=f"both classes of {train.label_names[2]}"):
        fit_baseline("histogram", train.label_names, lacking, None, test)
    rest = [name for name in train.label_names if name != train.label_names[2]]
    assert fit_baseline("histogram", rest, lacking, None, test).scores.shape == (len(test.images), 4)
