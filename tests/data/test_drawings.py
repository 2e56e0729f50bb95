import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from wsurgery.data.fundus import draw_fundus
from wsurgery.data.grades import GRADES
from wsurgery.data.synthetic import Synthetic
from wsurgery.data.textures import CLASSES, SHAPES, TEXTURES, draw_texture
from wsurgery.errors import UsageError


def make(folder, name, threads=1, **options):
    folder.mkdir()
    source = Synthetic.parse(name, {key: str(value) for key, value in options.items()})
    return source.make(folder, threads=threads)


def bytes_of(manifest):
    return [(manifest.root / path).read_bytes() for path in manifest.paths]


@pytest.mark.parametrize("name", ["fundus", "textures"])
def test_two_processes_draw_what_one_does(tmp_path, name):
    one, two = (make(tmp_path / str(threads), name, threads, n=80, size=16) for threads in (1, 2))
    assert bytes_of(one) == bytes_of(two)
    assert one.digest == two.digest


@pytest.mark.parametrize("name", ["fundus", "textures"])
def test_an_image_does_not_depend_on_how_many_there_are(tmp_path, name):
    few, many = (make(tmp_path / str(n), name, n=n, size=24) for n in (10, 20))
    assert bytes_of(few) == bytes_of(many)[:10]
    np.testing.assert_array_equal(few.labels, many.labels[:10])
    assert few.patients == many.patients[:10]


@pytest.mark.parametrize("name", ["fundus", "textures"])
def test_images_and_seeds_differ(tmp_path, name):
    a, b = (bytes_of(make(tmp_path / str(seed), name, n=10, size=16, seed=seed)) for seed in (0, 1))
    assert len(set(a + b)) == 20


def test_the_manifest_is_one_hot_with_two_eyes_a_patient(tmp_path):
    manifest = make(tmp_path / "a", "fundus", n=40, size=16)
    assert manifest.label_names == GRADES
    np.testing.assert_array_equal(manifest.labels.sum(axis=1), 1)
    assert manifest.patients[::2] == manifest.patients[1::2]
    assert len(set(manifest.patients)) == 20
    assert {split: manifest.splits.count(split) for split in ("train", "valid", "test")} == {
        "train": 20,
        "valid": 6,
        "test": 14,
    }
    with Image.open(tmp_path / "a" / manifest.paths[0]) as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")


def test_grades_follow_the_prior_and_the_patient():
    grades = np.array([draw_fundus(i, size=16, seed=0, contrast=0.42)[1] for i in range(600)])
    none, _, moderate, _, proliferative = np.bincount(grades, minlength=5) / len(grades)
    assert none > moderate > proliferative > 0  # of patients .50, .20, .08
    assert abs(none - 0.45) < 0.08
    agreement = np.mean(grades[::2] == grades[1::2])
    assert 0.55 < agreement < 0.95  # between .32, that of strangers, and 1: eyes and raters differ now and then


def test_contrast_changes_lesions_only():
    """At contrast 0 nothing tells the grade, and where the image differs at all, it differs more at more contrast."""
    plain, weak, strong = (draw_fundus(6, size=64, seed=0, contrast=c)[0].astype(int) for c in (0, 0.42, 0.84))
    weak_change, strong_change = abs(weak - plain).sum(), abs(strong - plain).sum()
    assert 0 < weak_change < strong_change
    assert np.mean(abs(weak - plain) > 8) < 0.3


def test_texture_names_are_shape_and_texture():
    assert CLASSES[0] == "disc_stripes"
    assert [name.split("_") for name in CLASSES] == [[shape, texture] for shape in SHAPES for texture in TEXTURES]


def test_all_texture_classes_are_drawn_about_as_often():
    labels = [draw_texture(i, size=16, seed=0)[1] for i in range(800)]
    counts = np.bincount(labels, minlength=16)
    assert counts.min() > 25  # 50 expected, standard deviation 7
    assert counts.max() < 80


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retina", {}, "no synthetic:retina: there are synthetic:fundus, synthetic:textures"),
        ("textures", {"contrast": "1"}, "no key 'contrast': there are n, size, seed$"),
        ("fundus", {"N": "1"}, "no key 'N': there are n, size, seed, contrast"),
        ("fundus", {"n": "many"}, "n=many is not a whole number of at least 1"),
        ("fundus", {"n": "0"}, "n=0 is not a whole number of at least 1"),
        ("fundus", {"size": "8"}, "size=8 is not a whole number of at least 16"),
        ("fundus", {"contrast": "nan"}, "contrast=nan is not a number of at least 0"),
        ("fundus", {"contrast": "inf"}, "contrast=inf is not a number of at least 0"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(UsageError, match=message):
        Synthetic.parse(name, options)


def test_a_script_that_has_images_drawn_runs_once(tmp_path):
    (tmp_path / "script.py").write_text(
        "print('begun', flush=True)\n"
        "from pathlib import Path\n"
        "from wsurgery.data.synthetic import CHUNK, Synthetic\n"
        "made = Synthetic.parse('textures', {'n': str(2 * CHUNK), 'size': '16'}).make(Path(), threads=2)\n"
        "print(len(made.paths), __name__)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "begun\n128 __main__\n"
