import numpy as np
import pytest
from PIL import Image

from wsurgery.data.dataset import load_dataset
from wsurgery.data.sources import open_data
from wsurgery.errors import UsageError

SPEC = "synthetic:fundus?n=40&size=16"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path))


def test_rows_belong_together():
    manifest = open_data(SPEC)
    dataset = load_dataset(SPEC, split="test")
    assert dataset.images.shape == (14, 16, 16, 3)
    assert dataset.labels.shape == (14, 5)
    for i, path in enumerate(dataset.paths):
        row = manifest.paths.index(path)
        with Image.open(manifest.root / path) as image:
            np.testing.assert_array_equal(dataset.images[i], np.asarray(image))
        np.testing.assert_array_equal(dataset.labels[i], manifest.labels[row])
        assert (dataset.patients[i], "test") == (manifest.patients[row], manifest.splits[row])


def test_splits_share_no_patient_and_make_up_the_whole():
    parts = [load_dataset(SPEC, split=split) for split in ("train", "valid", "test")]
    assert sorted(path for part in parts for path in part.paths) == sorted(load_dataset(SPEC, split=None).paths)
    assert sum(len(set(part.patients)) for part in parts) == 20


def test_image_size_and_subset():
    dataset = load_dataset(SPEC, split="train", image_size=8, subset=7)
    assert dataset.images.shape == (8, 8, 8, 3)
    assert set(dataset.paths) < set(load_dataset(SPEC, split="train").paths)


def test_the_digest_is_of_the_rows_used():
    digests = {load_dataset(SPEC, split="train", subset=n).digest for n in (6, 8)}
    assert len(digests) == 2
    assert load_dataset(SPEC, split="train", subset=5).digest in digests  # the second eye comes along


def test_an_empty_split_lists_the_others():
    with pytest.raises(UsageError, match="'dev': there are test, train, valid"):
        load_dataset(SPEC, split="dev")
