"""One small honest file of every kind that wsurgery writes or reads, and the commands that read it."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from mutations import mutators

Mutator = Callable[[bytes, Random], bytes]
_CPU = "--device cpu --threads 1"
_TRAIN = f"--steps 2 --eval-every 1 --batch-size 4 --image-size 32 {_CPU}"
_LONG = f"train init.safetensors --data images/manifest.csv -o runs/c/0 {_TRAIN}".replace("--steps 2", "--steps 40")
_CCA = f"--data images/manifest.csv --image-size 32 -p 40 -d 4 --repeats 2 {_CPU}"

_SURGERY = [
    "show {}", "show {} --stats --json", "show {} --csv", "log {}", "digest {}", "diff {} init.safetensors --json",
    "log {} --graph -o out/x.svg", "view {} --against init.safetensors -o out/x.html",
    "meanvar {} -o out/x", "shuffle {} -o out/x", "reset-bn {} -o out/x", "scale {} --by 2 --only *conv* -o out/x",
    "cast {} --to bf16 -o out/x", "rename a b {} -o out/x", "drop {} --blocks head -o out/x",
    "new-head {} --num-classes 3 -o out/x",
    "adapt {} --in-chans 4 -o out/x", "gabor {} -o out/x", "freeze-spec {} --upto block1 -o out/x", "average {} {} -o out/x",
    "transfuse {} --upto block1 --rest meanvar -o out/x", "transfuse init.safetensors --upto block1 --into {} -o out/x",
    "scale {} --by 2 -o out/shards/ --shard-size 20kB", "replay {} --timeout 5",
    "histogram {} -o out/x.png", "filters {} -o out/x.png",
    f"eval {{}} --data images/manifest.csv --image-size 32 --bootstrap 20 {_CPU}", f"cca {{}} init.safetensors {_CCA}",
    f"train {{}} --data images/manifest.csv -o out/run {_TRAIN}",
]  # fmt: skip
_DATA = [
    "data show {}", "data cache {} --image-size 32", "data cache {} --image-size 32 --skip-bad",
    f"train init.safetensors --data {{}} -o out/run {_TRAIN}",
    f"eval init.safetensors --data {{}} --image-size 32 --bootstrap 20 --predictions out/p.csv {_CPU}",
    f"cca init.safetensors made.safetensors {_CCA}".replace("images/manifest.csv", "{}"),
]  # fmt: skip
_RUNS = [
    "curves runs/a/0 runs/b/0 -o out/c.png", "report . --arms a,b --cca none -o out/r.html --json",
    "report . --arms a,b -o out/r.md",
    "compare runs/a runs/b --threshold 0.5 --bootstrap 20 --json", f"cca runs/a/0/last.safetensors --with-init {_CCA}",
    f"train init.safetensors --data images/manifest.csv --seed 97 -o runs/a/0 {_TRAIN}",
    f"compare runs/a runs/b --threshold 0.5 --bootstrap 20 --data images/manifest.csv {_CPU}",
]  # fmt: skip


class Kind(NamedTuple):
    """Files that are damaged in one way, and what reads them; `{}` in a command is the first file."""

    files: list[str]
    mutate: Mutator
    commands: list[str]


KINDS = {
    "checkpoint": Kind(["made.safetensors"], mutators.of_safetensors, _SURGERY),
    "shards' index": Kind(
        ["shards/model.safetensors.index.json"], mutators.of_json, ["show shards", "meanvar shards -o out/x"]
    ),
    "shard": Kind(
        ["shards/model-00001-of-00002.safetensors"],
        mutators.of_safetensors,
        ["show shards --stats", "meanvar shards -o out/x"],
    ),
    "block map": Kind(
        ["blocks.json"],
        mutators.of_json,
        ["show init.safetensors --block-map {}", "scale init.safetensors --by 2 --blocks a --block-map {} -o out/x"],
    ),
    "manifest": Kind(["images/manifest.csv"], mutators.of_table, _DATA),
    "Parquet": Kind(["images/manifest.parquet"], mutators.of_bytes, _DATA[:3]),
    "image": Kind(
        ["images/0.png", "images/1.jpg", "images/2.tif", "images/3.gif", "images/4.dcm", "images/5.png"],
        mutators.of_bytes,
        [line.format("images/manifest.csv") for line in _DATA[1:4]],
    ),
    "image archive": Kind(
        ["med.npz"],
        mutators.of_bytes,
        [
            "data make medmnist:med.npz -o out/m.csv",
            "data cache medmnist:med.npz --image-size 32",
            "data cache medmnist:med.npz --image-size 32 --skip-bad",
        ],
    ),
    "image cache": Kind(["cache"], mutators.of_bytes, [line.format("images/manifest.csv") for line in _DATA[1:5]]),
    "table of grades": Kind(
        ["aptos/train.csv"], mutators.of_table, ["data make aptos:aptos -o out/m.csv", "data show aptos:aptos"]
    ),
    "run: config.json": Kind(["runs/a/0/config.json"], mutators.of_json, _RUNS),
    "run: metrics.json": Kind(["runs/a/0/metrics.json"], mutators.of_json, _RUNS),
    "run: log.jsonl": Kind(["runs/a/0/log.jsonl"], mutators.of_json_lines, _RUNS),
    "run: eval.json": Kind(["runs/a/0/eval.json"], mutators.of_json, _RUNS),
    "run: predictions": Kind(["runs/a/0/predictions.csv"], mutators.of_table, _RUNS),
    "run: resume.pt": Kind(["runs/c/0/resume.pt"], mutators.of_bytes, [_LONG]),
    "run: weights": Kind(
        ["runs/a/0/init.safetensors", "runs/a/0/last.safetensors", "runs/a/0/best.safetensors"],
        mutators.of_safetensors,
        _RUNS,
    ),
    "cca results": Kind(
        ["cca/a-b.json"],
        mutators.of_json,
        ["report . --arms none -o out/r.html --json", "report . --arms none -o out/r.md"],
    ),
    "activations": Kind(
        ["a.npy"],
        mutators.of_bytes,
        ["cca --activations {} b.npy --channels all -d 4 --repeats 2", "cca --activations b.npy {} -d 2 --repeats 2"],
    ),
    "Markdown": Kind(
        ["RESULTS.md"],
        mutators.of_bytes,
        ["report {} -o out/r.html", "report . --arms a,b --cca none --paper {} -o out/r.html"],
    ),
    "pickle": Kind(["w.pth", "legacy.pth"], mutators.of_bytes, ["convert {} -o out/x"]),
    "pickle of arrays": Kind(["arrays.pkl"], mutators.of_bytes, ["convert {} -o out/x", "convert {} --key a -o out/x"]),
    "Keras": Kind(["w.h5"], mutators.of_bytes, ["convert {} -o out/x", "convert {} --keep-names -o out/x"]),
    "ONNX": Kind(["w.onnx"], mutators.of_bytes, ["convert {} -o out/x", "convert {} --keep-names -o out/x"]),
    "DICOM": Kind(["images/4.dcm"], mutators.of_bytes, [line.format("images/manifest.csv") for line in _DATA[1:4]]),
    "npz": Kind(["w.npz"], mutators.of_bytes, ["convert {} -o out/x"]),
    "HAM10000's table": Kind(
        ["ham/HAM10000_metadata.csv"],
        mutators.of_table,
        ["data make ham10000:ham -o out/m.csv", "data show ham10000:ham?positive=mel"],
    ),
    "ODIR's table": Kind(
        ["odir/full_df.csv"], mutators.of_table, ["data make odir:odir -o out/m.csv", "data show odir:odir"]
    ),
    "Hugging Face config": Kind(["hf/config.json"], mutators.of_json, ["convert hf -o out/x", "show hf"]),
}


def make(root: Path, wsurgery: Callable[..., None]) -> None:
    """Make the files in the current folder, `root`; `wsurgery` runs a line, and ends it once the file `until` is there."""
    import h5py
    import onnx
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet
    import torch
    from PIL import Image

    rng = np.random.default_rng(0)
    wsurgery("init cbr_tiny --width 0.05 --num-classes 2 -o init.safetensors")
    wsurgery("meanvar init.safetensors --seed 1 -o source.safetensors")
    wsurgery("transfuse source.safetensors --upto block1 --into init.safetensors -o half.safetensors")
    wsurgery("scale half.safetensors --by 2 -o made.safetensors")
    wsurgery("scale init.safetensors --by 2 -o shards/ --shard-size 40kB")
    assert len(list(root.glob("shards/*.safetensors"))) == 2, list(root.glob("shards/*"))
    (root / "blocks.json").write_text(json.dumps({"a": ["block[12].*"], "b": ["block[!12].*", "fc*"]}))
    (root / "images").mkdir()
    names = ["0.png", "1.jpg", "2.tif", "3.gif", "4.dcm", *(f"{i}.png" for i in range(5, 24))]
    lines = ["path,patient,split,sick,old"]
    for i, name in enumerate(names):
        deep = rng.integers(4096, size=(40, 40), dtype=np.uint16)
        if name == "4.dcm":
            _write_dicom(deep, root / "images" / name)
        elif name == "5.png":
            Image.fromarray(deep).save(root / "images" / name)
        else:
            Image.fromarray(rng.integers(256, size=(40, 40, 3), dtype=np.uint8)).save(root / "images" / name)
        split = ("train", "valid", "test")[i % 3]
        lines.append(f"{name},p{i},{split},{i // 3 % 2},{i // 6 % 2}")
    (root / "images" / "manifest.csv").write_text("\n".join(lines) + "\n")
    pyarrow.parquet.write_table(pa.csv.read_csv("images/manifest.csv"), "images/manifest.parquet")
    arrays = {
        f"{split}_{what}": rng.integers(values, size=(6, *shape), dtype=np.uint8)
        for split in ("train", "val", "test")
        for what, values, shape in (("images", 256, (28, 28)), ("labels", 2, (1,)))
    }  # fmt: skip
    np.savez_compressed("med.npz", **arrays)
    (root / "aptos" / "train_images").mkdir(parents=True)
    for i in range(6):
        Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(root / f"aptos/train_images/{i}.png")
    (root / "aptos" / "train.csv").write_text("id_code,diagnosis\n" + "".join(f"{i},{i % 5}\n" for i in range(6)))
    wsurgery("data cache images/manifest.csv --image-size 32")
    for arm in "ab":
        run = f"runs/{arm}/0"
        wsurgery(f"train init.safetensors --data images/manifest.csv --seed {ord(arm)} -o {run} {_TRAIN}")
        wsurgery(
            f"eval {run}/best.safetensors --data images/manifest.csv --image-size 32 --bootstrap 20 --beside eval.json "
            f"--predictions {run}/predictions.csv {_CPU}"
        )
    wsurgery(_LONG, until=root / "runs" / "c" / "0" / "resume.pt")
    (root / "cca").mkdir()
    wsurgery(f"cca runs/a/0/last.safetensors runs/b/0/last.safetensors -o cca/a-b.json {_CCA}")
    np.save("a.npy", rng.normal(size=(50, 6)))
    np.save("b.npy", rng.normal(size=(50, 6)))
    (root / "RESULTS.md").write_text("# Results\n\n| a | b |\n|---|---|\n| 1 | ![x](c.png) |\n")
    wsurgery("curves runs/a/0 -o c.png")
    state = {"conv.weight": torch.randn(4, 3, 3, 3), "fc.weight": torch.randn(2, 4), "steps": torch.tensor(3)}
    torch.save({"state_dict": state, "epoch": 3, "lr": 0.1}, "w.pth")
    torch.save(state, "legacy.pth", _use_new_zipfile_serialization=False)
    arrays = {name: value.numpy() for name, value in state.items()}
    np.savez("w.npz", **arrays)
    Path("arrays.pkl").write_bytes(pickle.dumps({"a": arrays, "b": {"mean": np.float64(0.5)}}))
    with h5py.File("w.h5", "w") as file:
        group = file.create_group("conv/conv")
        group.create_dataset("kernel:0", data=rng.normal(size=(3, 3, 3, 4)).astype(np.float32))
        group.create_dataset("bias:0", data=np.zeros(4, np.float32), compression="gzip")
    initial = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], initial)), "w.onnx")
    _make_sets(rng)
    (root / "hf").mkdir()
    shutil.copy("init.safetensors", "hf/model.safetensors")
    (root / "hf" / "config.json").write_text(
        json.dumps(
            {"architectures": ["ResNetForImageClassification"], "model_type": "resnet", "depths": [1], "num_labels": 2}
        )
    )


def _make_sets(rng: np.random.Generator) -> None:
    """Make a few images of two public sets, and their tables."""
    from PIL import Image

    for folder in ("ham/images", "odir/Training Images"):
        Path(folder).mkdir(parents=True)
    lesions, eyes = (
        ["lesion_id,image_id,dx,dx_type,age,sex,localization"],
        ["ID,Patient Age,Patient Sex,Fundus,Diagnostic Keywords,filename"],
    )
    for i in range(8):
        picture = Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8))
        picture.save(f"ham/images/ISIC_{i}.jpg")
        picture.save(f"odir/Training Images/{i}_left.jpg")
        lesions.append(f"HAM_{i // 2},ISIC_{i},{('mel', 'nv')[i % 2]},histo,60.0,male,back")
        eyes.append(
            f"{i},60,Male,{i}_left.jpg,{('normal fundus', 'mild nonproliferative retinopathy')[i % 2]},{i}_left.jpg"
        )
    Path("ham/HAM10000_metadata.csv").write_text("\n".join(lesions) + "\n")
    Path("odir/full_df.csv").write_text("\n".join(eyes) + "\n")


def _write_dicom(pixels: np.ndarray, file: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID, found.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    found.Rows, found.Columns = pixels.shape
    found.SamplesPerPixel, found.PhotometricInterpretation, found.PixelRepresentation = 1, "MONOCHROME1", 0
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 12, 11
    found.RescaleSlope, found.RescaleIntercept, found.WindowCenter, found.WindowWidth = 2, -1024, 2000, 3000
    found.PixelData = pixels.tobytes()
    found.compress(RLELossless, generate_instance_uid=False)
    found.save_as(file, enforce_file_format=True)
