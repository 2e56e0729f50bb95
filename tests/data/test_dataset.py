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


@pytest.fixture
def mixed(tmp_path):
    """Images of which no two have a size, each of a patient of its own, and two tables of them, one without splits."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        side, split = (20 + i, "train") if i % 4 else (8 + i, "valid")
        Image.fromarray(rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
        rows.append((f"{i:02}.png", f"p{i}", split, str(i % 2)))
    text = ["path,patient,split,ill", *map(",".join, rows)]
    (tmp_path / "splits.csv").write_text("\n".join(text) + "\n")
    text = ["path,patient,ill", *(f"{path},{patient},{ill}" for path, patient, _, ill in rows)]
    (tmp_path / "folds.csv").write_text("\n".join(text) + "\n")
    return tmp_path


def test_subsets_and_folds_of_a_table_have_images_of_one_size(mixed):
    spec = str(mixed / "splits.csv")
    subsets = [load_dataset(spec, split="train", subset=n) for n in (1, 2, 4, 8, 16, 30)]
    assert {dataset.images.shape[1] for dataset in subsets} == {21}
    assert len({dataset.paths[0] for dataset in subsets}) > 1
    folds = [load_dataset(f"{mixed / 'folds.csv'}?fold={k}/5", split="train") for k in range(1, 6)]
    assert {dataset.images.shape[1] for dataset in folds} == {8}
    assert {dataset.paths[0] for dataset in folds} > {"00.png"}  # which two of them do not train on


def test_a_subset_whose_images_are_there_needs_no_others(mixed):
    spec = str(mixed / "splits.csv")
    part = load_dataset(spec, split="train", subset=8, image_size=16)
    for path in set(load_dataset(spec, split="train", image_size=16).paths) - set(part.paths):
        (mixed / path).unlink()
    assert load_dataset(spec, split="train", subset=8).paths == part.paths
