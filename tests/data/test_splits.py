from collections import Counter

import numpy as np
import pytest

from wsurgery.data.splits import split_patients

FRACTIONS = {"train": 0.5, "valid": 0.15, "test": 0.35}


def test_each_patient_is_in_one_split_of_the_size_asked_for():
    patients = [f"p{i // 2}" for i in range(2000)]
    splits = split_patients(patients, FRACTIONS, seed=0)
    pairs = set(zip(patients, splits, strict=True))
    assert len(pairs) == 1000
    assert Counter(split for _, split in pairs) == {"train": 500, "valid": 150, "test": 350}


def test_the_order_and_number_of_rows_do_not_matter():
    patients = [f"p{i}" for i in range(200)]
    expected = dict(zip(patients, split_patients(patients, FRACTIONS, seed=3), strict=True))
    rows = np.random.default_rng(0).integers(0, 200, 1000).tolist() + list(range(200))
    shuffled = [patients[row] for row in rows]
    assert split_patients(shuffled, FRACTIONS, seed=3) == [expected[patient] for patient in shuffled]


def test_seeds_are_independent():
    patients = [f"p{i}" for i in range(1000)]
    halves = {"a": 0.5, "b": 0.5}
    agree = np.mean(
        np.array(split_patients(patients, halves, seed=0)) == np.array(split_patients(patients, halves, seed=1))
    )
    assert abs(agree - 0.5) < 4 * 0.5 / np.sqrt(1000)


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.4}, {"a": 1.5, "b": -0.5}])
def test_fractions_must_be_a_partition(fractions):
    with pytest.raises(ValueError, match="sum to 1"):
        split_patients(["p"], fractions, seed=0)
