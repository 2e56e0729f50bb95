"""Keras and ONNX files: the same numbers, kernels as torch has them, timm's names where a table knows them."""

import json
import zipfile

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.foreign.state_dict import open_state_dict
from wsurgery.foreign.timm_names import to_timm

h5py = pytest.importorskip("h5py")
onnx = pytest.importorskip("onnx")


def read_all(path):
    with open_state_dict(path) as state:
        return {
            name: torch.frombuffer(bytearray(state.read(name)), dtype=torch.float32).reshape(tensor.shape)
            for name, tensor in state.tensors.items()
        }


def keras(path, arrays):
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file["model_weights/" + name] = value
        file["optimizer_weights/Adam/m:0"] = np.zeros(3, np.float32)
        file.attrs["keras_version"] = "2.15"
    return path


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_kernels_do_what_they_did_in_keras(tmp_path):
    conv, depthwise, dense = numbers(3, 5, 2, 4), numbers(3, 3, 2, 1), numbers(6, 7)
    found = read_all(
        keras(
            tmp_path / "x.h5",
            {
                "c/c/kernel:0": conv,
                "d/d/depthwise_kernel:0": depthwise,
                "f/f/kernel:0": dense,
                "f/f/bias:0": numbers(7),
            },
        )
    )
    assert list(found) == ["c/c/kernel:0", "d/d/depthwise_kernel:0", "f/f/bias:0", "f/f/kernel:0"]
    image = numbers(1, 8, 9, 2)
    x = torch.from_numpy(image).permute(0, 3, 1, 2)
    windows = np.lib.stride_tricks.sliding_window_view(image[0], (3, 5), axis=(0, 1))  # (y, x, in, kh, kw)
    expected = np.einsum("yxihw,hwio->oyx", windows, conv)
    np.testing.assert_allclose(functional.conv2d(x, found["c/c/kernel:0"])[0], expected, rtol=1e-4, atol=1e-5)
    windows = np.lib.stride_tricks.sliding_window_view(image[0], (3, 3), axis=(0, 1))
    expected = np.einsum("yxihw,hwi->iyx", windows, depthwise[..., 0])
    made = functional.conv2d(x, found["d/d/depthwise_kernel:0"], groups=2)[0]
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    row = numbers(2, 6)
    np.testing.assert_allclose(
        functional.linear(torch.from_numpy(row), found["f/f/kernel:0"]), row @ dense, rtol=1e-4, atol=1e-5
    )


def depthwise_of_keras(image, kernel):
    """What Keras computes: channel i times k of the outputs is channel i convolved with kernel[:, :, i, k]."""
    windows = np.lib.stride_tricks.sliding_window_view(image[0], kernel.shape[:2], axis=(0, 1))
    return np.einsum("yxihw,hwik->ikyx", windows, kernel).reshape(-1, *windows.shape[:2])


def test_keras_3_numbers_the_arrays_of_a_layer_that_is_named_by_its_class(tmp_path):
    """As Keras 3.15 writes `.weights.h5`; a layer of a class that says nothing stays as it is."""
    depthwise, pointwise, conv = numbers(3, 3, 2, 3), numbers(1, 1, 6, 5), numbers(3, 5, 2, 4)
    dense, table = numbers(6, 7), numbers(9, 4)
    arrays = {
        "layers/conv2d/vars/0": conv,
        "layers/conv2d/vars/1": numbers(4),
        "layers/dense_3/vars/0": dense,
        "layers/depthwise_conv2d_1/vars/0": depthwise,
        "layers/depthwise_conv2d_1/vars/1": numbers(6),
        "layers/embedding/vars/0": table,
        "layers/functional/layers/separable_conv2d/vars/0": depthwise,
        "layers/functional/layers/separable_conv2d/vars/1": pointwise,
        "layers/mine/dense/vars/0": numbers(2, 3, 4),  # EinsumDense, maybe
        "layers/mine/vars/0": numbers(3, 3, 2, 3),
    }  # fmt: skip
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        for name, value in arrays.items():
            file[name] = value
        file["optimizer/vars/0"] = np.zeros(3, np.float32)
    found = read_all(tmp_path / "x.weights.h5")
    assert list(found) == list(arrays)
    image = numbers(1, 8, 9, 2)
    x = torch.from_numpy(image).permute(0, 3, 1, 2)
    expected = depthwise_of_keras(image, depthwise)
    for name in ("layers/depthwise_conv2d_1/vars/0", "layers/functional/layers/separable_conv2d/vars/0"):
        made = functional.conv2d(x, found[name], groups=2)
        np.testing.assert_allclose(made[0], expected, rtol=1e-4, atol=1e-5)
    pointed = functional.conv2d(made, found["layers/functional/layers/separable_conv2d/vars/1"])[0]
    np.testing.assert_allclose(pointed, np.einsum("iyx,io->oyx", expected, pointwise[0, 0]), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["layers/conv2d/vars/0"], conv.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(found["layers/dense_3/vars/0"], dense.T)
    for name in ("layers/embedding/vars/0", "layers/mine/dense/vars/0", "layers/mine/vars/0"):
        np.testing.assert_array_equal(found[name], arrays[name], strict=True)


def test_a_keras_archive_names_the_file_in_it_that_is_read(tmp_path):
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = numbers(2, 3)
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    with pytest.raises(
        WsurgeryError, match=r"x\.keras is a \.keras archive: unzip it, and convert the model\.weights\.h5"
    ):
        read_all(tmp_path / "x.keras")
    assert list(read_all(tmp_path / "model.weights.h5")) == ["layers/dense/vars/0"]


def test_the_model_in_an_h5_of_keras_3_says_which_kernels_are_depthwise(tmp_path):
    """It calls them `kernel`, as those of any convolution; the layer's class stands in `model_config`."""
    kernel = numbers(3, 3, 2, 3)
    layers = [
        {"class_name": kind, "config": {"name": name}} for kind, name in (("Conv2D", "a"), ("DepthwiseConv2D", "b"))
    ]
    with h5py.File(keras(tmp_path / "x.h5", {"a/net/a/kernel": kernel, "b/net/b/kernel": kernel}), "a") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": layers}})
    found = read_all(tmp_path / "x.h5")
    np.testing.assert_array_equal(found["a/net/a/kernel"], kernel.transpose(3, 2, 0, 1))
    image = numbers(1, 8, 9, 2)
    made = functional.conv2d(torch.from_numpy(image).permute(0, 3, 1, 2), found["b/net/b/kernel"], groups=2)[0]
    np.testing.assert_allclose(made, depthwise_of_keras(image, kernel), rtol=1e-4, atol=1e-5)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file.attrs["model_config"] = "{"
    with pytest.raises(WsurgeryError, match=r"x\.h5 is damaged"):
        read_all(tmp_path / "x.h5")


def test_a_keras_densenet_has_timm_s_names(tmp_path):
    with torch.device("meta"):
        own = {name: tuple(x.shape) for name, x in timm.create_model("densenet121", num_classes=3).state_dict().items()}
    own = {name: shape for name, shape in own.items() if "num_batches" not in name}
    shapes = {}
    for name, shape in own.items():
        module, part = name.rsplit(".", 1)
        words = module.replace("features.", "").replace("denseblock", "").replace("denselayer", "").split(".")
        if len(words) == 3:
            unit = {"norm1": "0_bn", "conv1": "1_conv", "norm2": "1_bn", "conv2": "2_conv"}[words[2]]
            layer = f"conv{int(words[0]) + 1}_block{words[1]}_{unit}"
        elif len(words) == 2:
            layer = f"pool{int(words[0][-1]) + 1}_{'bn' if words[1] == 'norm' else 'conv'}"
        else:
            layer = {"conv0": "conv1/conv", "norm0": "conv1/bn", "norm5": "bn", "classifier": "predictions"}[words[0]]
        leaf = {"running_mean": "moving_mean", "running_var": "moving_variance"}.get(part)
        norm = "norm" in words[-1]
        leaf = leaf or {"weight": "gamma" if norm else "kernel", "bias": "beta" if norm else "bias"}[part]
        shapes[f"{layer}/{layer}/{leaf}:0"] = shape
    found = to_timm(shapes)
    assert (found.shapes, found.architecture) == (own, ("densenet121", {}))


def test_arrays_that_are_elsewhere_or_far_larger_than_the_file_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("kernel:0", (1 << 17, 1 << 17), "f4", chunks=(1024, 1024))
    with pytest.raises(WsurgeryError, match="not in the file itself"):
        read_all(tmp_path / "x.h5")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_dataset("kernel:0", (4, 4), "f4", external=[("/etc/passwd", 0, 64)])
    with pytest.raises(WsurgeryError, match="not in the file itself"):
        read_all(tmp_path / "y.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "y.h5").read_bytes()[:300])
    with pytest.raises(WsurgeryError, match=r"cut\.h5 is damaged"):
        read_all(tmp_path / "cut.h5")


def test_complex_arrays_are_kept_or_named(tmp_path):
    value = (numbers(3) + 1j * numbers(3)).astype(np.complex64)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = value
    with open_state_dict(tmp_path / "x.h5") as state:
        assert bytes(state.read("a")) == value.tobytes()
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["a"], file["b"] = numbers(3), value.astype(np.complex128)
    with pytest.raises(WsurgeryError, match=r"y\.h5 has an array b that cannot be written"):
        read_all(tmp_path / "y.h5")


def test_onnx_initialisers_are_read(tmp_path):
    weights = {"conv1.weight": numbers(4, 3, 3, 3), "fc.weight": numbers(2, 4)}
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(x, n) for n, x in weights.items()])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    for name, value in read_all(tmp_path / "x.onnx").items():
        np.testing.assert_array_equal(value, weights[name], strict=True)
    with pytest.raises(UsageError, match="leave out --key"), open_state_dict(tmp_path / "x.onnx", key="a"):
        pass
    onnx.save(onnx.load(tmp_path / "x.onnx"), tmp_path / "y.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(WsurgeryError, match=r"keeps conv1\.weight in another file"):
        read_all(tmp_path / "y.onnx")
    sparse = onnx.helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(np.ones(2, np.float32), "thin"),
        onnx.numpy_helper.from_array(np.array([1, 5])),
        [9],
    )
    graph = onnx.helper.make_graph([], "g", [], [], graph.initializer, sparse_initializer=[sparse])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "sparse.onnx")
    with pytest.raises(WsurgeryError, match=r"sparse\.onnx keeps thin sparse: save"):
        read_all(tmp_path / "sparse.onnx")
    (tmp_path / "z.onnx").write_bytes(b"nothing")
    with pytest.raises(WsurgeryError, match=r"z\.onnx"):
        read_all(tmp_path / "z.onnx")
