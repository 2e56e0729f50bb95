import numpy as np
import pytest
import timm
import torch
from torch import nn

from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.similarity.activations import Layout, cells_at, layer_modules, probe, sample, shared_grid


def network(name, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name, **kwargs).eval()


NETWORKS = {
    "resnet18": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "vit_tiny_patch16_224": (48, {"img_size": 48, "depth": 3}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "window_size": 2, "depths": (1, 1), "num_heads": (3, 6)}),
}


def rows_of(layout, output):
    """All patches, (b, h·w, c), by the definition of each order."""
    if layout.order == "nchw":
        return output.flatten(2).transpose(1, 2)
    if layout.order == "nhwc":
        return output.flatten(1, 2)
    return output[:, layout.prefix :] if layout.order == "tokens" else output[:, None]


def take(name, size, kwargs, cells_each, images=3):
    model = network(name, **kwargs)
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(1))
    modules = layer_modules(model, None)
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        layouts = probe(model, x[:1], modules)
        cells = {layer: cells_each(rng, layout, images) for layer, layout in layouts.items()}
        return model, x, modules, layouts, cells, sample(model, x, modules, layouts, cells)


def all_cells(rng, layout, images):
    return np.tile(np.arange(layout.height * layout.width), (images, 1))


def some_cells(rng, layout, images):
    return rng.integers(0, layout.height * layout.width, (images, 5))


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_what_timm_calls_intermediates(name):
    model, x, _, layouts, _, rows = take(name, *NETWORKS[name], all_cells)
    with torch.inference_mode():
        features = model.forward_intermediates(x, norm=False, intermediates_only=True)
    ours = [row.transpose(1, 2).reshape(len(x), -1, layouts[n].height, layouts[n].width) for n, row in rows.items()]
    assert all(any(feature.shape == o.shape and torch.equal(feature, o) for o in ours) for feature in features)


def test_a_block_whose_last_tensors_are_no_layer_is_what_its_last_layer_puts_out():
    model = network("vit_small_patch16_rope_mixed_224", img_size=48, depth=2, embed_dim=48, num_heads=2)
    modules = layer_modules(model, None)
    layouts = probe(model, torch.zeros(1, 3, 48, 48), modules)
    assert modules["stem"].startswith("patch_embed")
    assert (layouts["stem"].height, layouts["stem"].width) == (3, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_sample_is_an_index_into_the_full_activation(name):
    model, x, modules, layouts, cells, rows = take(name, *NETWORKS[name], some_cells)
    for layer, path in modules.items():
        whole = []
        handle = model.get_submodule(path).register_forward_hook(
            lambda m, i, out, whole=whole: whole.append(out.clone())
        )
        with torch.inference_mode():
            model(x)
        handle.remove()
        patches = rows_of(layouts[layer], whole[0])
        expected = torch.stack([patches[i, cells[layer][i]] for i in range(len(x))])
        assert torch.equal(rows[layer], expected), layer


def test_fewer_images_than_the_batch():
    _, _, _, _, _, all_rows = take("resnet18", 64, {}, all_cells)
    model, x, modules, layouts, cells, _ = take("resnet18", 64, {}, all_cells)
    with torch.inference_mode():
        rows = sample(model, x, modules, layouts, {"block1": cells["block1"][:2]})
    assert list(rows) == ["block1"]
    assert torch.equal(rows["block1"], all_rows["block1"][:2])


def test_conv1_of_a_resnet_is_after_the_activation_and_before_the_pool():
    model, x, _, _, _, rows = take("resnet18", 64, {}, all_cells)
    with torch.inference_mode():
        expected = model.act1(model.bn1(model.conv1(x)))
    assert torch.equal(rows["conv1"], expected.flatten(2).transpose(1, 2))


def test_a_dense_block_is_all_of_it_not_its_last_layer():
    assert layer_modules(network("densenet121"), None)["block4"] == "features.denseblock4"


def test_names_of_layers():
    model = network("resnet18")
    assert list(layer_modules(model, None)) == ["conv1", "block1", "block2", "block3", "block4"]
    given = layer_modules(model, ["block2", "layer2", "layer1.0.conv2", "head"])
    assert given == {"block2": "layer2", "layer2": "layer2", "layer1.0.conv2": "layer1.0.conv2", "head": "fc"}
    with pytest.raises(UsageError, match=r"no layer 'block9': this network has conv1, block1.*layer"):
        layer_modules(model, ["block9"])


def test_prefix_tokens_are_no_patches():
    _, _, _, layouts, _, _ = take("vit_tiny_patch16_224", *NETWORKS["vit_tiny_patch16_224"], all_cells)
    assert layouts["stem"] == Layout("tokens", 3, 3, 192, 0)
    assert layouts["block1"] == Layout("tokens", 3, 3, 192, 1)


def test_layers_that_are_no_grid_or_are_not_run_are_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, (3, 5))
            self.spare = nn.Linear(2, 2)

        def forward(self, x):
            return self.conv1(x)

    model, image = Odd(), torch.zeros(1, 3, 16, 16)
    with pytest.raises(WsurgeryError, match=r"conv1 puts out \(1, 4, 14, 12\).*--layers"):
        probe(model, image, {"conv1": "conv1"})
    with pytest.raises(WsurgeryError, match="spare is not run"):
        probe(model, image, {"spare": "spare"})
    assert not model.conv1._forward_hooks


def test_cells_hold_the_same_place_in_the_image():
    coarse, fine = Layout("nchw", 4, 4, 1), Layout("nhwc", 8, 8, 1)
    grid = shared_grid(coarse, fine)
    assert grid == (4, 4)
    positions = np.arange(16)
    assert (cells_at(positions, grid, coarse) == positions).all()
    cells = cells_at(positions, grid, fine)
    assert len(set(cells.tolist())) == 16
    for position, cell in zip(positions.tolist(), cells.tolist(), strict=True):
        assert (cell // 8 // 2, cell % 8 // 2) == divmod(position, 4)


def test_cells_are_distinct_on_grids_that_do_not_divide():
    a, b = Layout("nchw", 7, 5, 1), Layout("nchw", 5, 9, 1)
    grid = shared_grid(a, b)
    for layout in (a, b):
        cells = cells_at(np.arange(grid[0] * grid[1]), grid, layout)
        assert len(set(cells.tolist())) == 25
        assert cells.max() < layout.height * layout.width


def test_blocks_that_a_network_says_itself_are_its_layers():
    model = network("resnet18", num_classes=2)
    model.block_globs = {"lower": ["conv1.*", "bn1.*", "layer1.*"], "upper": ["layer[2-4].*"], "head": ["fc.*"]}
    assert layer_modules(model, None) == {"lower": "layer1", "upper": "layer4"}


class Deep(nn.Module):
    """Features of two depths, in a list or a tuple, as encoders return them, and a part that does not run."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.near, self.far, self.aside = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        near = self.near(x)
        return self.kind([near, self.far(near)])


@pytest.mark.parametrize(("kind", "channels"), [(list, 6), (tuple, 4)])
def test_of_a_list_the_last_is_the_output_and_of_a_tuple_the_first(kind, channels):
    model = nn.Sequential(Deep(kind))
    found = probe(model, torch.zeros(1, 3, 16, 16), {"0": "0"})
    assert found["0"].channels == channels


def test_a_block_whose_last_module_does_not_run_names_it():
    model = nn.Sequential(Deep(list))
    with pytest.raises(WsurgeryError, match=r"^0\.aside, the last of block1, is not run"):
        probe(model, torch.zeros(1, 3, 16, 16), {"block1": "0.aside"})
