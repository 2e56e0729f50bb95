import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from wsurgery.errors import UsageError
from wsurgery.similarity import compare as compare_module
from wsurgery.similarity import protocol
from wsurgery.similarity.activations import Layout
from wsurgery.similarity.compare import compare
from wsurgery.similarity.metric_names import METRICS
from wsurgery.similarity.sampling import LayerSample, plan_layer

SIZE = 12
MEAN, STD = [0.2, 0.4, 0.6], [0.5, 0.3, 0.2]


class Small(nn.Module):
    """Layers `conv1` (at full size), `block1` (after a stride) and a head."""

    def __init__(self, seed, wide=6, wider=9, stride=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, wide, 3, padding=1)
            self.act1 = nn.ReLU(inplace=True)
            self.block1 = nn.Sequential(nn.Conv2d(wide, wider, 3, stride=stride, padding=1), nn.Tanh())
            self.head = nn.Linear(wider, 2)
        self.pretrained_cfg = {"mean": MEAN, "std": STD}

    def forward(self, x):
        return self.head(self.block1(self.act1(self.conv1(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (70, SIZE, SIZE, 3), dtype=np.uint8)  # more than one batch


def activations(model, images):
    """Layer → (n, h·w, c), float64, computed without any of what is tested."""
    x = torch.from_numpy((images / 255 - MEAN) / STD).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        conv1 = torch.relu(model.conv1(x))
        return {n: o.flatten(2).mT.double().numpy() for n, o in (("conv1", conv1), ("block1", model.block1(conv1)))}


def oracle(x, y):
    """Mean CCA of (n, k, c_x) and (n, k, c_y) with every patch as a row."""
    u, v = (scipy.linalg.orth(rows - rows.mean(0)) for rows in (a.reshape(-1, a.shape[-1]) for a in (x, y)))
    return scipy.linalg.svdvals(u.T @ v).clip(0, 1).sum() / min(u.shape[1], v.shape[1])


@pytest.mark.parametrize("rows", ["spatial", "whole"])
def test_all_rows_and_channels_agree_with_the_data_itself(images, rows):
    a, b = Small(1), Small(2)
    found = compare(a, b, images, channels="all", rows=rows, p=10**6, repeats=1)
    in_a, in_b = activations(a, images), activations(b, images)
    assert [layer.layer for layer in found] == ["conv1", "block1"]
    for layer in found:
        assert layer.value == pytest.approx(oracle(in_a[layer.layer], in_b[layer.layer]), abs=1e-6)
        assert layer.ceiling == pytest.approx(1, abs=1e-9)
        assert (layer.images, layer.p) == (70, in_a[layer.layer].shape[0] * in_a[layer.layer].shape[1])
        assert layer.normalised == pytest.approx((layer.value - layer.floor) / (layer.ceiling - layer.floor))
    assert [(layer.c_a, layer.c_b, layer.dead_a) for layer in found] == [(6, 6, 0), (9, 9, 0)]


@pytest.mark.parametrize("batch", [5, 64])
@pytest.mark.parametrize(("patients", "shift"), [
    (None, 1),
    (["a"] * 35 + ["b"] * 35, 34),  # of the next images 68 in 70 are of one patient, 34 on 2
    (["a"] * 7 * 9 + ["b"] * 7, 7),  # never so few as one in 20: the fewest
    (["a"] * 70, 1),
    ([*"ab"] * 35, 1),
    ([patient for patient in "abcde" for _ in range(14)], 1),  # 65 in 70
])  # fmt: skip
def test_the_floor_is_of_the_images_rolled_by_one_or_to_other_patients(images, patients, shift, batch, monkeypatch):
    monkeypatch.setattr(compare_module, "_WIDEST_BATCH", batch)
    a, b = Small(1), Small(2)
    in_a, in_b = activations(a, images), activations(b, images)
    for layer in compare(a, b, images, channels="all", p=10**6, patients=patients):
        expected = oracle(in_a[layer.layer], np.roll(in_b[layer.layer], -shift, axis=0))
        assert layer.floor == pytest.approx(expected, abs=1e-6)


def test_patients_are_those_of_the_images_that_were_drawn(images):
    options = {"d": 3, "repeats": 2, "layers": ["block1"]}
    patients = ["a"] * 35 + ["b"] * 35
    drawn = np.sort(protocol.generator(0, "", 0, "pool").permutation(70)[:50])
    (found,) = compare(Small(1), Small(2), images, n_images=50, patients=patients, **options)
    (own,) = compare(Small(1), Small(2), images[drawn], patients=[patients[i] for i in drawn], **options)
    (without,) = compare(Small(1), Small(2), images, n_images=50, **options)
    assert (found.value, found.floor) == (own.value, own.floor) == (without.value, own.floor)
    assert without.floor != found.floor


def test_networks_of_different_widths_and_grids_meet_at_the_same_places(images):
    a, b = Small(1), Small(2, wide=4, wider=5, stride=4)
    found = compare(a, b, images, channels="all", p=10**6, layers=["block1"])[0]
    x, y = activations(a, images)["block1"], activations(b, images)["block1"]
    # 6×6 against 3×3: the centre of cell i of three lies in cell 2i + 1 of six.
    x = x.reshape(len(images), 6, 6, -1)[:, 1::2, 1::2].reshape(len(images), 9, -1)
    assert found.value == pytest.approx(oracle(x, y), abs=1e-6)
    assert (found.c_a, found.c_b, found.d, found.p) == (9, 5, 5, 9 * 70)


@pytest.mark.parametrize("rows", ["spatial", "whole"])
def test_only_the_images_are_rolled_not_the_positions(images, rows):
    alike = np.repeat(images[:1], 70, axis=0)
    for layer in compare(Small(1), Small(2), alike, p=700, d=4, rows=rows):
        assert layer.floor == pytest.approx(layer.value, abs=1e-9)
        assert layer.value < 0.99


@pytest.mark.parametrize("rows", ["spatial", "whole"])
@pytest.mark.parametrize("channels", ["same", "all"])
def test_a_network_against_itself_scores_one(images, channels, rows):
    for layer in compare(Small(1), Small(1), images, channels=channels, rows=rows, p=2000, d=4, repeats=3):
        assert layer.repeats == pytest.approx([1.0] * len(layer.repeats), abs=1e-6)
        assert layer.floor < 0.5


def test_a_network_against_itself_scores_its_own_ceiling(images):
    for layer in compare(Small(1), Small(1), images, p=2000, d=3, repeats=5):
        assert layer.value == pytest.approx(layer.ceiling, abs=1e-12)
        assert layer.value < 0.999
        assert layer.normalised == pytest.approx(1, abs=1e-9)
        assert layer.se_channels == pytest.approx(np.std(layer.repeats, ddof=1) / 5**0.5)
        assert layer.se == pytest.approx(np.hypot(layer.se_channels, layer.se_images))


def test_the_value_of_a_repeat_is_that_of_its_channels(images):
    a, b = Small(1), Small(2)
    values = compare(a, b, images, p=10**6, d=1, repeats=8, layers=["block1"])[0].repeats
    x, y = (activations(model, images)["block1"].reshape(-1, 9) for model in (a, b))
    possible = np.abs(np.corrcoef(x.T, y.T)[:9, 9:]).ravel()
    assert all(np.abs(possible - value).min() < 1e-6 for value in values)
    assert len({round(value, 9) for value in values}) > 3


def test_a_layers_result_does_not_depend_on_the_other_layers(images):
    a, b = Small(1), Small(2)
    for rows in ("spatial", "whole"):
        options = {"p": 1500, "d": 3, "repeats": 3, "rows": rows, "seed": 5}
        both, alone = compare(a, b, images, **options), compare(a, b, images, layers=["block1"], **options)
        assert both[1].repeats == pytest.approx(alone[0].repeats, abs=1e-12)


def test_draws_follow_the_seed(images):
    options = {"p": 1500, "d": 3, "repeats": 3, "n_images": 20, "layers": ["conv1"]}
    first, again, other = (compare(Small(1), Small(2), images, seed=seed, **options)[0] for seed in (0, 0, 1))
    assert first == again
    assert first.repeats != other.repeats
    assert first.images == 20


def test_whole_rows_are_of_as_few_images_as_give_p(images):
    conv1, block1 = compare(Small(1), Small(2), images, rows="whole", p=500, d=4, repeats=2)
    assert (conv1.images, conv1.p) == (4, 4 * 144)
    assert (block1.images, block1.p) == (14, 14 * 36)
    assert any("only 4 images" in note for note in conv1.notes)


def test_few_images_are_noted_with_what_gives_more(images):
    def few(images=images, **options):
        (layer,) = compare(Small(1), Small(2), images, d=3, layers=["conv1"], repeats=2, **options)
        return [note.partition("use ")[2] for note in layer.notes if "images, so the spread is large" in note]

    of_p, of_images = "a larger -p, or --rows spatial", "more images (--images, where the data have more)"
    assert few(rows="whole", p=500) == [of_p]
    assert few(rows="whole", p=5000) == few(rows="spatial", p=500) == []
    for rows in ("whole", "spatial"):
        for too_few in ({"n_images": 6}, {"images": images[:6]}):
            assert few(rows=rows, p=5000, **too_few) == [of_images]
        assert few(rows=rows, p=5000, n_images=12) == []


def test_the_order_of_images_and_random_state_do_not_matter(images):
    a, b = Small(1), Small(2)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    value = compare(a, b, images, channels="all", p=10**6)[0].value
    assert compare(a, b, images[::-1], channels="all", p=10**6)[0].value == pytest.approx(value, abs=1e-9)
    assert torch.equal(before, torch.random.get_rng_state())


def test_dead_channels_are_counted_and_leave_the_value_alone(images):
    a, b, dead = Small(1), Small(2), Small(1)
    with torch.no_grad():
        dead.conv1.weight[[0, 3]] = 0
    found = compare(dead, b, images, channels="all", p=10**6, layers=["conv1"])[0]
    x, y = activations(a, images)["conv1"], activations(b, images)["conv1"]
    assert (found.dead_a, found.dead_b, found.rank_a, found.rank_b) == (2, 0, 4, 6)
    assert found.value == pytest.approx(oracle(x[..., [1, 2, 4, 5]], y), abs=1e-6)


def test_no_live_channel_is_none_with_its_reason(images):
    dead, broken = Small(1), Small(1)
    with torch.no_grad():
        dead.conv1.weight.zero_()
        broken.conv1.weight[0] = torch.inf
    for a, b, reason in ((Small(2), dead, "no channel of B varies"), (broken, Small(2), "not finite")):
        found = compare(a, b, images, p=2000, d=4, layers=["conv1"])[0]
        assert (found.value, found.se, found.normalised) == (None, None, None)
        assert any(reason in note for note in found.notes)


def test_one_image_has_no_floor(images):
    found = compare(Small(1), Small(2), images[:1], d=4, layers=["conv1"])[0]
    assert (found.floor, found.normalised) == (None, None)
    assert 0 < found.value < 1


def test_too_few_rows_are_refused_and_few_are_noted(images):
    a, b = Small(1), Small(2)
    with pytest.raises(UsageError, match=r"conv1 gives 12 rows \(2 images × 6\) for 6 \+ 6 channels"):
        compare(a, b, images, p=12, n_images=2, channels="all")
    noted = compare(a, b, images, p=40, n_images=20, d=6, layers=["conv1"])[0]
    assert any("only 40 rows for 6 channels" in note for note in noted.notes)
    assert compare(a, b, images, p=1000, d=6, layers=["conv1"])[0].notes == []


def test_what_cannot_be_compared_is_said(images):
    with pytest.raises(UsageError, match="block1 has 9 channels in A and 7 in B"):
        compare(Small(1), Small(2, wider=7), images, channels="same")
    with pytest.raises(UsageError, match="channels are independent, same, all, not some"):
        compare(Small(1), Small(2), images, channels="some")
    with pytest.raises(UsageError, match="at least 1"):
        compare(Small(1), Small(2), images[:0])


def test_the_jackknife_leaves_out_whole_images(images):
    a, b = Small(1), Small(2)
    found = compare(a, b, images, channels="all", p=10**6, layers=["block1"], groups=4)[0]
    x, y = activations(a, images)["block1"], activations(b, images)["block1"]
    group = np.arange(70) * 4 // 70
    without = np.array([oracle(x[group != g], y[group != g]) for g in range(4)])
    assert (found.groups, found.se_channels) == (4, None)
    assert found.se_images == pytest.approx((3 * without.var()) ** 0.5, rel=1e-4)


def test_where_repeats_have_images_of_their_own_their_spread_holds_both_errors(images):
    found = compare(Small(1), Small(2), images, rows="whole", p=720, d=4, repeats=12, layers=["block1"])[0]
    assert (found.images, found.groups) == (20, 16)
    spread = np.std(found.repeats, ddof=1) / 12**0.5
    assert found.se == pytest.approx(max(spread, found.se_images))
    assert found.se_channels < spread


def test_the_jackknife_of_some_draws_estimates_that_of_all(images, monkeypatch):
    options = {"p": 1500, "d": 3, "repeats": 40, "layers": ["block1"]}
    every = compare(Small(1), Small(2), images, **options)[0]
    monkeypatch.setattr(protocol, "draws_to_jackknife", lambda groups, channels: 10)
    some = compare(Small(1), Small(2), images, **options)[0]
    assert some.repeats == every.repeats
    assert some.se_images != every.se_images
    assert some.se_images == pytest.approx(every.se_images, rel=0.35)
    assert some.bias_corrected == pytest.approx(every.bias_corrected, abs=every.se_images)


@pytest.mark.parametrize(("channels", "draws"), [(3, 10), (64, 10), (512, 2), (2048, 2)])
def test_fewer_draws_are_jackknifed_where_there_are_many_channels(channels, draws):
    assert min(10, protocol.draws_to_jackknife(16, channels)) == draws


def test_the_matrix_has_the_plain_comparison_on_its_diagonal(images):
    options = {"p": 1500, "d": 3, "repeats": 3, "metrics": ["mean_cca", "linear_cka"]}
    found = compare(Small(1), Small(2), images, matrix=True, **options)
    assert [(x.layer_a, x.layer_b) for x in found[::2]] == [
        (a, b) for a in ("conv1", "block1") for b in ("conv1", "block1")
    ]
    plain = compare(Small(1), Small(2), images, **options)
    for x, expected in zip([x for x in found if x.layer_a == x.layer_b], plain, strict=True):
        assert (x.layer, x.metric) == (expected.layer, expected.metric)
        assert x.repeats == pytest.approx(expected.repeats, abs=1e-12)
        assert (x.floor, x.ceiling) == pytest.approx((expected.floor, expected.ceiling), abs=1e-12)


def test_layers_of_a_matrix_meet_at_the_same_places(images):
    a, b = Small(1), Small(2)
    found = compare(a, b, images, matrix=True, channels="all", p=10**6)
    x, y = activations(a, images)["conv1"], activations(b, images)["block1"]
    x = x.reshape(len(images), 12, 12, -1)[:, 1::2, 1::2].reshape(len(images), 36, -1)
    assert (found[1].layer, found[1].c_a, found[1].c_b, found[1].d) == ("conv1 × block1", 6, 9, 6)
    assert found[1].value == pytest.approx(oracle(x, y), abs=1e-6)


def test_all_layers_are_all_blocks(images):
    layers = [x.layer for x in compare(Small(1), Small(2), images, layers="all", d=2)]
    assert layers == ["conv1", "block1", "head"]


def test_rows_are_gathered_without_waiting_for_the_device():
    """A tensor without values, on torch's device `meta`, cannot be looked at: what asks for a value fails there."""
    layout = Layout("nchw", 4, 4, 20)
    plan = plan_layer(
        "x", "x", layout, layout, p=128, d=6, pool=16, channels="independent", rows="spatial", metrics=METRICS
    )
    layer = LayerSample(plan, range(3), channels="independent", seed=0, metrics=METRICS, groups=4, shift=1)
    for start in (0, 8):
        layer.update(start, torch.empty(8, plan.k, 20, device="meta"), torch.empty(8, 2 * plan.k, 20, device="meta"))
    moments = (*layer.draws._groups, layer.draws._rolled)
    assert {each._products.device.type for each in moments} == {"meta"}
    assert sum(group.rows for group in layer.draws._groups) == 128
    assert layer.draws._rolled.rows == 15 * plan.k  # the last image of A waits for the first of B
