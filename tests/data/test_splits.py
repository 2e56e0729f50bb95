from collections import Counter

import numpy as np
import pytest

from wsurgery.data.sources import open_data
from wsurgery.data.splits import split_patients
from wsurgery.errors import UsageError

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


@pytest.mark.parametrize(("patients", "folds"), [(200, 8), (103, 7), (5, 5), (3, 3), (15, 10), (7, 4)])
def test_folds_have_each_patient_in_test_once(patients, folds, tmp_path):
    rows = "".join(f"{i}.png,p{i % patients},{i % 2}\n" for i in range(3 * patients))
    (tmp_path / "t.csv").write_text("image,who,ill\n" + rows)
    for i in range(3 * patients):
        (tmp_path / f"{i}.png").touch()

    def split(fold: int, name: str, more: str = "") -> set[str]:
        found = open_data(f"{tmp_path}/t.csv?path=image&patient=who&labels=ill&fold={fold}/{folds}{more}")
        people = [set(found.where(each).patients) for each in set(found.splits)]
        assert sum(map(len, people)) == len(set(found.patients)) == patients  # no patient is in two splits
        return set(found.where(name).patients)

    tested = [split(fold, "test") for fold in range(1, folds + 1)]
    assert Counter(patient for fold in tested for patient in fold) == {f"p{i}": 1 for i in range(patients)}
    assert max(map(len, tested)) - min(map(len, tested)) <= 1
    assert [split(fold, "valid") for fold in range(1, folds + 1)] == [*tested[1:], tested[0]]
    if patients > 100:
        assert split(2, "test", "&valid=0.3") == tested[1]
        assert split(1, "test", "&seed=7") != tested[0]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("fold=0/5", "fold=0/5 is not K/N"),
        ("fold=6/5", "fold=6/5 is not K/N"),
        ("fold=1/1", "is not K/N"),
        ("fold=2", "fold=2 is not K/N"),
        ("fold=a/b", "is not K/N"),
        ("fold=1/5&test=0.2", "fold=1/5 says how much is test: leave test= out"),
        ("fold=1/5&valid=0.9", "a fold of 5 and a valid part of 0.9 leave no patient to train on"),
        ("fold=1/2", "a fold of 2 and a valid part of 0.5 leave no patient to train on"),
        ("fold=1/9", "8 patients do not make 9 folds"),
        ("fold=1/4&split=part", "the data has a valid split of its own: leave fold= out"),
    ],
)
def test_a_fold_that_cannot_be_says_why(query, words, tmp_path):
    rows = "".join(
        f"{i}.png,p{i},{i % 2}{'' if 'part' not in query else ',train' if i else ',valid'}\n" for i in range(8)
    )
    (tmp_path / "t.csv").write_text(f"image,who,ill{',part' if 'part' in query else ''}\n{rows}")
    for i in range(8):
        (tmp_path / f"{i}.png").touch()
    with pytest.raises(UsageError, match=words):
        open_data(f"{tmp_path}/t.csv?path=image&patient=who&labels=ill&{query}")


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.4}, {"a": 1.5, "b": -0.5}])
def test_fractions_must_be_a_partition(fractions):
    with pytest.raises(ValueError, match="sum to 1"):
        split_patients(["p"], fractions, seed=0)
