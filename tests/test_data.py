"""Reading data sets: every format, and the sentence for each thing that can be wrong with one."""

import io
import re
import sys

import numpy as np
import pytest
import torch

for package in ("accelerate", "sklearn", "torchvision", "tqdm"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from data_files import (
    pixels,
    write_cifar,
    write_mnist,
    write_npz,
    write_stl10,
    write_svhn,
    write_tiny_imagenet,
    write_tree,
)
from PIL import Image
from torchvision import datasets

from python_trainers.common.data import Augmentation, folders, load_dataset
from python_trainers.common.data.image_files import ImageFiles, central_box, random_box
from python_trainers.common.errors import TrainerError

pytestmark = pytest.mark.trainers

WRITERS = {
    "cifar10": (write_cifar, datasets.CIFAR10, (3, 32, 32), Augmentation(padding=4, flip=True)),
    "cifar100": (write_cifar, datasets.CIFAR100, (3, 32, 32), Augmentation(padding=4, flip=True)),
    "mnist": (write_mnist, datasets.MNIST, (1, 28, 28), Augmentation(padding=2)),
    "fashionmnist": (write_mnist, datasets.FashionMNIST, (1, 28, 28), Augmentation(padding=4, flip=True)),
    "stl10": (write_stl10, datasets.STL10, (3, 96, 96), Augmentation(padding=12, flip=True)),
    "svhn": (write_svhn, datasets.SVHN, (3, 32, 32), Augmentation(padding=4)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_torchvision_sets(name, tmp_path, monkeypatch):
    write, kind, shape, augmentation = WRITERS[name]
    write(tmp_path, kind, monkeypatch)
    dataset = load_dataset(name, tmp_path)
    assert (dataset.name, dataset.classes, dataset.image_shape) == (name, 10, shape)
    assert dataset.augmentation == augmentation
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        chosen = {"split": split} if name in ("stl10", "svhn") else {"train": split == "train"}
        raw = kind(tmp_path, **chosen)
        assert len(images) == len(raw) == 20
        for index in (0, 7, 19):
            image, label = raw[index]
            expected = torch.from_numpy(np.array(image)).reshape(*shape[1:], shape[0]).permute(2, 0, 1)
            assert torch.equal(images.pixels[index], expected)
            assert images.labels[index] == label


def test_published_and_computed_standards(tmp_path, monkeypatch):
    write_cifar(tmp_path, datasets.CIFAR100, monkeypatch)
    write_svhn(tmp_path, datasets.SVHN, monkeypatch)
    white = load_dataset("cifar100", tmp_path).train.standardise(torch.full((1, 3, 1, 1), 255).byte())
    expected = [(1 - 0.5071) / 0.2675, (1 - 0.4867) / 0.2565, (1 - 0.4408) / 0.2761]
    assert white.flatten().tolist() == pytest.approx(expected)
    svhn = load_dataset("svhn", tmp_path)
    ready = svhn.train.standardise(svhn.train.pixels).double()
    assert ready.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-6)
    assert ready.std((0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-6)
    assert svhn.test.standard is svhn.train.standard


@pytest.mark.parametrize("name", WRITERS)
def test_absent_file_is_named_and_nothing_is_fetched(name, tmp_path, monkeypatch):
    write, kind, *_ = WRITERS[name]
    write(tmp_path, kind, monkeypatch)
    monkeypatch.setattr(kind, "download", lambda self: pytest.fail("fetched without --download"))
    lost = next(path for path in sorted(tmp_path.rglob("*")) if path.name.startswith(("test", "t10k")))
    lost.unlink()
    sentence = f"--dataset {name} needs .*{lost.name}, which is missing .*, or add --download"
    with pytest.raises(TrainerError, match=sentence):
        load_dataset(name, tmp_path)


def test_damaged_file_is_named(tmp_path, monkeypatch):
    write_cifar(tmp_path, datasets.CIFAR10, monkeypatch)
    damaged = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(TrainerError, match="data_batch_3 is damaged or not the original file of cifar10"):
        load_dataset("cifar10", tmp_path)


def test_file_without_checksum_that_is_cut_short(tmp_path, monkeypatch):
    write_mnist(tmp_path, datasets.MNIST, monkeypatch)
    damaged = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(TrainerError, match="--dataset mnist in .* cannot be read"):
        load_dataset("mnist", tmp_path)


def test_download_fetches_into_a_new_folder(tmp_path, monkeypatch):
    root = tmp_path / "data" / "new"

    def download(self):
        if not (root / self.base_folder).exists():
            root.mkdir(parents=True)
            write_cifar(root, datasets.CIFAR10, monkeypatch)

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    assert len(load_dataset("cifar10", root, download=True).train) == 20


def test_download_that_fails(tmp_path, monkeypatch):
    def download(self):
        raise RuntimeError("tried a mirror:\nno route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    with pytest.raises(TrainerError, match=f"--download of cifar10 to {tmp_path} failed .tried .*: no route"):
        load_dataset("cifar10", tmp_path, download=True)


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_image_folder(tmp_path, test_folder):
    write_tree(tmp_path, ("train", test_folder), size=(10, 8))
    (tmp_path / "train" / "cat" / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"no image")
    dataset = load_dataset("imagefolder", tmp_path)
    assert (dataset.classes, dataset.image_shape, dataset.cpu_threads) == (2, (3, 8, 10), None)
    assert dataset.train.labels.tolist() == [0] * 4 + [1] * 4
    expected = np.array(Image.open(tmp_path / test_folder / "dog" / "2.png")).transpose(2, 0, 1)
    assert torch.equal(dataset.test.pixels[6], torch.from_numpy(expected))


def test_tiny_imagenet(tmp_path):
    write_tiny_imagenet(tmp_path)
    dataset = load_dataset("imagefolder", tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (6, 4, 2)
    # class 0 has the odd images of the annotations
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "val" / "images" / "val_3.JPEG")))
    assert torch.equal(dataset.test.pixels[1], expected.expand(3, 16, 16))


def test_photographs_become_224_pixels_wide_and_stay_files(tmp_path):
    write_tree(tmp_path, count=1, size=(300, 200))
    dataset = load_dataset("imagefolder", tmp_path)
    assert isinstance(dataset.train.pixels, ImageFiles)
    assert dataset.image_shape == (3, 224, 224)
    assert dataset.augmentation == Augmentation(resized_crop=True, flip=True)
    # the central 224/256 of the shorter side
    assert central_box(300, 200, 1.0, 224 / 256) == (62.5, 12.5, 237.5, 187.5)
    image = dataset.test.pixels.read(1)
    picture = Image.open(tmp_path / "test" / "dog" / "0.png")
    expected = picture.resize((224, 224), Image.Resampling.BILINEAR, (62.5, 12.5, 237.5, 187.5))
    assert torch.equal(image, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


def test_random_boxes_lie_inside_and_have_the_area_and_aspect():
    for draw in torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)).tolist():
        left, upper, right, lower = random_box(400, 400, *draw)
        assert 0 <= left < right <= 400 and 0 <= upper < lower <= 400
        width, height = right - left, lower - upper
        if max(width, height) < 400:
            assert 0.08 * 160000 <= width * height * (1 + 1e-9) and 0.7499 < width / height < 1.3334
    assert random_box(400, 400, 1.0, 0.5, 0.3, 0.3) == (0, 0, 400, 400)


def test_the_same_data_have_the_same_name(tmp_path, monkeypatch):
    for folder in ("one", "two", "other"):
        write_tree(tmp_path / folder, count=3 if folder == "other" else 2)
    name = load_dataset("imagefolder", tmp_path / "one").name
    assert name == load_dataset("imagefolder", tmp_path / "two").name
    assert name != load_dataset("imagefolder", tmp_path / "other").name
    Image.fromarray(pixels(1, 8, 8, 3, seed=9)[0]).save(tmp_path / "two" / "test" / "dog" / "0.png")
    assert name != load_dataset("imagefolder", tmp_path / "two").name


def empty_class(root):
    write_tree(root)
    (root / "train" / "mouse").mkdir()


def corrupt_image(root):
    write_tree(root)
    path = root / "test" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:-40])


def corrupt_first_image(root):
    write_tree(root)
    (root / "train" / "cat" / "0.png").write_bytes(b"")


def other_test_classes(root):
    write_tree(root, ("train",), classes=("cat", "dog"))
    write_tree(root, ("test",), classes=("cat", "fox"))


def broken_annotations(root):
    write_tiny_imagenet(root)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG n01443537\n")


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda root: (root / "images").mkdir(), "has no folder train, it holds images; .* train/CLASS/"),
        (lambda root: (root / "train").mkdir(), "train must hold a folder per class, it holds nothing"),
        (lambda root: write_tree(root, ("train",)), "has no folder val, it holds train; "),
        (lambda root: write_tree(root, classes=["cat"]), "has images of one class only"),
        (empty_class, "train/mouse holds no image .*; fill or delete it"),
        (other_test_classes, "the same classes, got dog in the training split alone, fox in the test"),
        (corrupt_image, "image .*test/dog/3.png cannot be read .*; replace or delete"),
        (corrupt_first_image, "image .*train/cat/0.png cannot be read .*; replace or delete"),
        (broken_annotations, "val_annotations.txt, line 1, must be .* got 'val_0.JPEG n01443537'"),
    ],
)
def test_folder_of_the_wrong_form(write, sentence, tmp_path):
    write(tmp_path)
    with pytest.raises(TrainerError, match=sentence):
        load_dataset("imagefolder", tmp_path)


@pytest.mark.parametrize("shape", [(12, 8, 8), (12, 1, 8, 8), (12, 8, 8, 1), (12, 3, 8, 8), (12, 8, 8, 3)])
def test_npz(tmp_path, shape):
    path = tmp_path / "data.npz"
    x = pixels(shape[0], *shape[1:])
    write_npz(path, x_train=x, x_test=x[:6])
    dataset = load_dataset("npz", path)
    channels = 3 if 3 in shape else 1
    assert (dataset.classes, dataset.image_shape) == (3, (channels, 8, 8))
    assert dataset.train.labels.dtype == torch.int64 and dataset.train.pixels.is_contiguous()
    assert dataset.augmentation == Augmentation(padding=1, flip=channels == 3)
    if shape[-1] == 3:
        x = x.transpose(0, 3, 1, 2)
    assert torch.equal(dataset.train.pixels, torch.from_numpy(x.reshape(12, channels, 8, 8)))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"y_test": None}, "has no y_test; it must hold .* y_test, it holds x_train, y_train, x_test$"),
        ({"x_train": np.zeros((12, 8, 8))}, "x_train must be uint8, values 0 to 255, got float64"),
        ({"x_train": pixels(12, 64)}, r"x_train must be .N, 1 or 3, height, width., .* got .12, 64."),
        ({"x_train": pixels(12, 5, 8, 8)}, r"x_train must be .* got .12, 5, 8, 8."),
        ({"x_test": pixels(6, 9, 9)}, r"must have one shape .*, got .1, 8, 8. and .1, 9, 9."),
        ({"y_train": np.zeros(12)}, r"y_train must be 12 integers, .* got float64 .12."),
        ({"y_train": np.arange(9) % 3}, r"y_train must be 12 integers, .* got int64 .9."),
        ({"y_train": np.arange(12) % 3 - 1}, "training labels must be 0, 1, 2, ..., got -1"),
        ({"y_test": np.arange(6)}, "the same classes, got 3, 4, 5 in the test split alone"),
        ({"y_train": np.arange(12) % 4}, "the same classes, got 3 in the training split alone"),
        (
            {"y_train": np.arange(12) % 2 * 7, "y_test": np.arange(6) % 2 * 7},
            "the labels of 2 classes must be 0 to 1, got labels up to 7",
        ),
        ({"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)}, "has images of one class only"),
        ({"x_test": pixels(0, 8, 8), "y_test": np.zeros(0, int)}, "has no test images"),
        ({"x_train": np.array([None] * 12)}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_npz_of_the_wrong_form(changed, sentence, tmp_path):
    write_npz(tmp_path / "data.npz", **changed)
    with pytest.raises(TrainerError, match=sentence):
        load_dataset("npz", tmp_path / "data.npz")


def test_file_that_is_no_npz(tmp_path):
    for content in (b"", b"text", b"PK\x03\x04 cut short"):
        (tmp_path / "data.npz").write_bytes(content)
        with pytest.raises(TrainerError, match="data.npz cannot be read as an .npz file"):
            load_dataset("npz", tmp_path / "data.npz")
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(TrainerError, match="data.npy cannot be read as an .npz file"):
        load_dataset("npz", tmp_path / "data.npy")


@pytest.mark.parametrize(
    ("name", "place", "sentence"),
    [
        ("imagenet", None, "unknown --dataset 'imagenet'; there is: digits, cifar10, .*, imagefolder, npz"),
        ("cifar10", None, "--dataset cifar10 needs --data-root, the folder .* receives it with --download"),
        ("imagefolder", None, "--dataset imagefolder needs --data-root, the folder with train/CLASS/"),
        ("npz", None, "--dataset npz needs --data-root, the .npz file"),
        ("npz", ".", "needs --data-root to be the .npz file, .* is a folder with file"),
        ("npz", "absent.npz", "needs --data-root to be the .npz file, .*absent.npz does not exist"),
        ("mnist", "absent/deeper", "--data-root .*absent/deeper is not a folder; .* holds file"),
        ("mnist", "file", "--data-root .*file is not a folder; .* holds file"),
    ],
)
def test_wrong_place(name, place, sentence, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainerError, match=sentence):
        load_dataset(name, place and tmp_path / place)


def test_download_of_what_cannot_be_fetched():
    with pytest.raises(TrainerError, match="--download fetches cifar10, .*; --dataset digits cannot"):
        load_dataset("digits", None, download=True)


def test_large_trees_stay_files(tmp_path, monkeypatch):
    write_tree(tmp_path)
    monkeypatch.setattr(folders, "RESIDENT_BYTES", 16 * 3 * 8 * 8)
    assert isinstance(load_dataset("imagefolder", tmp_path).train.pixels, torch.Tensor)
    monkeypatch.setattr(folders, "RESIDENT_BYTES", 16 * 3 * 8 * 8 - 1)
    assert isinstance(load_dataset("imagefolder", tmp_path).train.pixels, ImageFiles)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_decoding_is_told(tmp_path, monkeypatch, capsys):
    write_tree(tmp_path)
    load_dataset("imagefolder", tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0::2] == [f"decoding 8 images of {tmp_path}"] * 2
    assert all(re.fullmatch(rf"decoded 8 images of {tmp_path} in \d+\.\d s", line) for line in lines[1::2])

    monkeypatch.setattr(sys, "stderr", Terminal())
    load_dataset("imagefolder", tmp_path)
    assert f"decoding {tmp_path}: 100%" in sys.stderr.getvalue() and "decoded" not in sys.stderr.getvalue()

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("LOCAL_RANK", "1")  # of several processes
    load_dataset("imagefolder", tmp_path)
    assert sys.stderr.getvalue() == ""
