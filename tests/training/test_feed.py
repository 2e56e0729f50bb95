import threading

import numpy as np
import pytest
import torch

from wsurgery.errors import WsurgeryError
from wsurgery.training.feed import Feed

CPU = torch.device("cpu")
N, SIZE = 23, 5


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def mapped(images, tmp_path):
    images.tofile(tmp_path / "images.rgb")
    return np.memmap(tmp_path / "images.rgb", np.uint8, mode="r", shape=images.shape)


def chosen(number):
    return np.random.default_rng(number).integers(0, N, 4), np.full((2, 4), number, np.float32)


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("kind", ["memory", "file", "columns first"])
def test_a_batch_is_a_function_of_its_number(images, mapped, kind, ahead):
    given = {"memory": images, "file": mapped, "columns first": np.asfortranarray(images)}[kind]
    feed = Feed(given, chosen, 20, CPU, ahead=ahead)
    for number in (0, 1, 2, 7, 8, 3, 18, 19, 19, 0):  # on, ahead, back, to the end, and again
        indices, beside = chosen(number)
        batch = feed.take(number)
        np.testing.assert_array_equal(batch.images.numpy(), images[indices])
        np.testing.assert_array_equal(batch.beside.numpy(), beside)


def test_a_part_of_a_mapped_file_is_that_part(images, mapped):
    part = mapped[5:]
    feed = Feed(part, lambda number: (np.array([number]), np.zeros((0, 1), np.float32)), N - 5, CPU)
    for number in (0, N - 6):
        np.testing.assert_array_equal(feed.take(number).images.numpy(), images[5 + number][None])


def test_batches_are_made_before_they_are_asked_for(images):
    made, enough = [], threading.Event()

    def noting(number):
        made.append(number)
        if len(made) == 3:
            enough.set()
        return chosen(number)

    feed = Feed(images, noting, 3, CPU, ahead=3)
    feed.take(0)
    assert enough.wait(20)
    assert sorted(made) == [0, 1, 2]
    feed.take(1)
    feed.take(2)
    assert sorted(made) == [0, 1, 2]  # each once, and none beyond the last


def test_what_goes_wrong_in_a_thread_is_raised_where_the_batch_is_asked_for(images, mapped, tmp_path):
    def broken(number):
        if number == 2:
            raise OSError("the disk is gone")
        return chosen(number)

    feed = Feed(images, broken, 5, CPU, ahead=3)
    feed.take(0)
    feed.take(1)
    with pytest.raises(OSError, match="the disk is gone"):
        feed.take(2)

    shortened = Feed(mapped, lambda number: (np.array([N - 1]), np.zeros((0, 1), np.float32)), 1, CPU)
    with (tmp_path / "images.rgb").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(WsurgeryError, match=r"images\.rgb has become shorter"):
        shortened.take(0)
