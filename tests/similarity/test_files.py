import os

import numpy as np
import pytest
import scipy.linalg

from tests.conftest import peak_memory
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.similarity import protocol
from wsurgery.similarity.files import ActivationFile, compare_files

N = 3000


@pytest.fixture
def save(tmp_path):
    def save(name, array):
        np.save(tmp_path / name, array)
        return tmp_path / name

    return save


def related(noise=2.0):
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((N, 10))
    x, y = (shared @ rng.standard_normal((10, c)) + noise * rng.standard_normal((N, c)) + 1 for c in (20, 15))
    return x.astype(np.float32), y.astype(np.float32)


def oracle(x, y):
    u, v = (scipy.linalg.orth(a.astype(np.float64) - a.mean(0, dtype=np.float64)) for a in (x, y))
    return scipy.linalg.svdvals(u.T @ v).sum() / min(u.shape[1], v.shape[1])


def test_value_floor_and_ceiling_are_those_of_the_data(save):
    x, y = related()
    a, b = save("a.npy", x), save("b.npy", y)
    (found,) = compare_files(a, b, channels="all")
    assert found.value == pytest.approx(oracle(x, y), abs=1e-9)
    assert found.floor == pytest.approx(oracle(x, np.roll(y, -N // 2, axis=0)), abs=1e-9)
    assert found.ceiling == pytest.approx(1, abs=1e-9)
    assert (found.p, found.images, found.c_a, found.c_b, found.rank_a, found.rank_b) == (N, None, 20, 15, 20, 15)


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "fortran"])
def test_any_floating_type_and_order(save, kind):
    x, y = related()
    x = np.asfortranarray(x) if kind == "fortran" else x.astype(kind)
    (found,) = compare_files(save("a.npy", x), save("b.npy", y), channels="all")
    assert found.value == pytest.approx(oracle(x, y), abs=1e-9)


def test_several_metrics_share_the_draws(save):
    a, b = (save(name, rows) for name, rows in zip(("a.npy", "b.npy"), related(), strict=True))
    both = compare_files(a, b, d=6, repeats=4, metrics=["unbiased_cka", "mean_cca"])
    (alone,) = compare_files(a, b, d=6, repeats=4)
    assert [result.metric for result in both] == ["unbiased_cka", "mean_cca"]
    assert both[1].repeats == pytest.approx(alone.repeats, abs=1e-12)
    assert abs(both[0].floor) < 0.01 < both[0].value < both[0].ceiling


def test_a_limit_on_memory_takes_more_passes_and_changes_nothing(save, monkeypatch):
    a, b = (save(name, rows) for name, rows in zip(("a.npy", "b.npy"), related(), strict=True))
    options = {"d": 6, "repeats": 5, "metrics": ["mean_cca", "unbiased_cka"]}
    once = compare_files(a, b, **options)
    monkeypatch.setattr(protocol, "_MOST_BYTES", 16 * 18**2)  # the matrices of one draw
    assert protocol.repeats_at_once([((20, 15), (6, 6))], 5) == 1
    for result, expected in zip(compare_files(a, b, **options), once, strict=True):
        assert result.repeats == pytest.approx(expected.repeats, abs=1e-12)
        assert result.ceiling == pytest.approx(expected.ceiling, abs=1e-12)


@pytest.mark.parametrize(("noise", "falls_back"), [(20.0, False), (0.3, True)])
def test_fast_holds_six_digits_or_falls_back(save, noise, falls_back):
    x, y = related(noise)
    (found,) = compare_files(save("a.npy", x), save("b.npy", y), channels="all", fast=True)
    exact = oracle(x, y)
    assert found.value == pytest.approx(exact, abs=1e-6)
    assert any("multiplied in float64" in note for note in found.notes) == falls_back
    assert (abs(found.value - exact) < 1e-10) == falls_back


def test_nothing_that_varies_is_none_with_its_reason(save):
    x, y = related()
    broken = x.copy()
    broken[7, 3] = np.nan
    for a, reason in ((np.ones_like(x), "no channel of A varies"), (broken, "not finite")):
        (found,) = compare_files(save("a.npy", a), save("b.npy", y), channels="all", fast=True)
        assert (found.value, found.floor, found.normalised) == (None, None, None)
        assert any(reason in note for note in found.notes)


def test_files_that_cannot_be_compared_are_named(save, tmp_path):
    x, y = related()
    a = save("a.npy", x)
    (tmp_path / "text.npy").write_text("rows")
    (tmp_path / "short.npy").write_bytes(a.read_bytes()[:5000])
    (tmp_path / "empty.npy").write_bytes(b"")
    for b, words in (
        (tmp_path / "text.npy", "text.npy is no .npy file"),
        (tmp_path / "short.npy", "short.npy is empty, or ends early"),
        (tmp_path / "empty.npy", "empty.npy is no .npy file"),
        (save("objects.npy", np.array([[{}]])), "objects.npy has an array of object"),
        (save("bytes.npy", np.ones((N, 2), np.uint8)), "bytes.npy holds uint8: save float16"),
        (save("images.npy", y.reshape(N, 5, 3)), r"images.npy has the shape \(3000, 5, 3\): reshape it to rows"),
        (save("fewer.npy", y[1:]), "a.npy has 3000 rows and .*fewer.npy has 2999"),
    ):
        with pytest.raises(WsurgeryError, match=words):
            compare_files(a, b)
    with pytest.raises(UsageError, match=r"20 channels and .* 15: --channels same"):
        compare_files(a, save("b.npy", y), channels="same")
    with pytest.raises(UsageError, match=r"35 rows for 20 \+ 15 channels, which forces every correlation to 1"):
        compare_files(save("a.npy", x[:35]), save("b.npy", y[:35]), channels="all")
    (few,) = compare_files(save("a.npy", x[:150]), save("b.npy", y[:150]), channels="all")
    assert "only 150 rows for 20 channels" in few.notes[0]


def test_fewer_rows_than_channels_are_enough_without_correlations(save):
    x, y = (side[:8].astype(np.float64) for side in related())
    a, b = save("a.npy", x), save("b.npy", y)
    x, y = x - x.mean(0), y - y.mean(0)
    norm = np.linalg.norm
    cka, procrustes, unbiased = compare_files(
        a, b, channels="all", metrics=["linear_cka", "procrustes", "unbiased_cka"]
    )
    assert cka.value == pytest.approx(norm(x.T @ y) ** 2 / norm(x.T @ x) / norm(y.T @ y), abs=1e-9)
    assert procrustes.value == pytest.approx(norm(x.T @ y, "nuc") / norm(x) / norm(y), abs=1e-9)
    assert (cka.ceiling, cka.rank_a) == (pytest.approx(1), 7)
    assert 0 < cka.se < 1
    assert unbiased.value < cka.value
    with pytest.raises(UsageError, match=r"forces every correlation to 1.*--metric linear_cka.*\(svcca do\)"):
        compare_files(a, b, channels="all", metrics=["linear_cka", "svcca"])
    few = [save(f"{name}-few.npy", side[:3]) for name, side in (("a", x), ("b", y))]
    with pytest.raises(UsageError, match="unbiased_cka need more than 3"):
        compare_files(*few, channels="all", metrics=["unbiased_cka"])
    (found,) = compare_files(*few, channels="all", metrics=["linear_cka"])
    x, y = (side[:3] - side[:3].mean(0) for side in (x, y))
    assert found.value == pytest.approx(norm(x.T @ y) ** 2 / norm(x.T @ x) / norm(y.T @ y), abs=1e-9)


def test_a_file_that_became_shorter_is_said(save):
    x, _ = related()
    for name, rows in (("c.npy", x), ("fortran.npy", np.asfortranarray(x))):
        path = save(name, rows)
        file = ActivationFile(path)
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(WsurgeryError, match=f"{name} is damaged"):
            file.read(N - 10, N)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    # 50,000 × 512 in float32 are 100 MB a file; the whole command, its imports with it, takes less.
    rng = np.random.default_rng(0)
    for name in ("a.npy", "b.npy"):
        rows = np.lib.format.open_memmap(tmp_path / name, mode="w+", dtype=np.float32, shape=(50_000, 512))
        rows[:] = rng.standard_normal((1000, 25_600), dtype=np.float32).reshape(rows.shape)
        del rows
    files = tmp_path / "a.npy", tmp_path / "b.npy"
    assert peak_memory("cca", "--activations", *files, "--json", "-o", tmp_path / "c.json") < 150 << 10
