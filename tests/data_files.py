"""Tiny data sets in the file formats of the real ones, for tests."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Random bytes [count, *shape]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, kind: type, monkeypatch) -> None:
    """20 training and 20 test images of 10 classes; ``kind``, of torchvision, is told their checksums."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "fine_labels" if kind.__name__ == "CIFAR100" else "labels"
    lists = {}
    for name in ("train_list", "test_list"):
        files, lists[name] = [file for file, _ in getattr(kind, name)], []
        data, labels = pixels(20, 3072, seed=len(files)), np.arange(20) % 10
        for file, part in zip(files, np.array_split(np.arange(20), len(files)), strict=True):
            content = {"data": data[part], key: labels[part].tolist()}
            (folder / file).write_bytes(pickle.dumps(content))
            lists[name].append([file, md5(folder / file)])
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: list("0123456789")}))
    monkeypatch.setattr(kind, "train_list", lists["train_list"])
    monkeypatch.setattr(kind, "test_list", lists["test_list"])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})


def write_mnist(root: Path, kind: type, monkeypatch) -> None:
    """20 training and 20 test images of 10 classes as IDX files."""
    folder = root / kind.__name__ / "raw"
    folder.mkdir(parents=True)
    for prefix, seed in (("train", 0), ("t10k", 1)):
        images, labels = pixels(20, 28, 28, seed=seed), np.arange(20, dtype=np.uint8) % 10
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
            (folder / name).write_bytes(header + array.tobytes())


def write_stl10(root: Path, kind: type, monkeypatch) -> None:
    """20 training and 20 test images of 10 classes, labels from 1, and no unlabelled image."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    labels = np.arange(20, dtype=np.uint8) % 10 + 1
    contents = {
        "train_X.bin": pixels(20, 3, 96, 96).tobytes(),
        "train_y.bin": labels.tobytes(),
        "unlabeled_X.bin": b"",
        "test_X.bin": pixels(20, 3, 96, 96, seed=1).tobytes(),
        "test_y.bin": labels.tobytes(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for part in ("train_list", "test_list"):
        listed = [[name, md5(folder / name)] for name, _ in getattr(kind, part)]
        monkeypatch.setattr(kind, part, listed)


def write_svhn(root: Path, kind: type, monkeypatch) -> None:
    """20 training and 20 test images of 10 classes; the digit 0 is labelled 10."""
    root.mkdir(exist_ok=True)
    listed = {}
    for seed, split in enumerate(("train", "test")):
        path = root / f"{split}_32x32.mat"
        images = pixels(20, 3, 32, 32, seed=seed).transpose(2, 3, 1, 0)
        scipy.io.savemat(path, {"X": images, "y": (np.arange(20) % 10 + 1)[:, None]})
        listed[split] = ["", path.name, md5(path)]
    monkeypatch.setattr(kind, "split_list", {**kind.split_list, **listed})


def write_tree(root: Path, splits=("train", "test"), *, classes=("cat", "dog"), count=4, size=(8, 8)) -> None:
    """PNG files ``root/SPLIT/CLASS/N.png``, ``size`` being width and height."""
    for seed, split in enumerate(splits):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            images = pixels(count, size[1], size[0], 3, seed=100 * seed + number)
            for index, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{index}.png")


def write_tiny_imagenet(root: Path) -> None:
    """Two classes of three training images, and two validation images of each in the set's own layout."""
    classes = ("n01443537", "n01629819")
    for seed, name in enumerate(classes):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        (folder.parent / f"{name}_boxes.txt").write_text("")
        for index, image in enumerate(pixels(3, 16, 16, 3, seed=seed)):
            Image.fromarray(image).save(folder / f"{name}_{index}.JPEG", quality=95)
    val = root / "val" / "images"
    val.mkdir(parents=True)
    lines = []
    for index in range(4):
        grey = Image.fromarray(pixels(1, 16, 16, seed=50 + index)[0])
        grey.save(val / f"val_{index}.JPEG")
        lines.append(f"val_{index}.JPEG\t{classes[(index + 1) % 2]}\t0\t0\t15\t15\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "test" / "images").mkdir(parents=True)


def write_npz(path: Path, **changed: np.ndarray | None) -> None:
    """Twelve and six grey 8x8 images of three classes; ``changed`` replaces arrays, None leaves one out."""
    arrays = {
        "x_train": pixels(12, 8, 8),
        "y_train": np.arange(12) % 3,
        "x_test": pixels(6, 8, 8, seed=1),
        "y_test": np.arange(6) % 3,
        **changed,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
