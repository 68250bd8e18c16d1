"""Trees of image files: a folder per class."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from python_trainers.common.data.augmentation import Augmentation, standard_augmentation
from python_trainers.common.data.checks import contents, require_same_classes
from python_trainers.common.data.image_files import ImageFiles, unreadable
from python_trainers.common.data.images import Dataset, Images, Standard, content_name
from python_trainers.common.errors import require

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
RESIDENT_BYTES = 2 * 1024**3  # decoded size up to which a tree is kept in memory; a larger one stays files
SMALL_SIDE = 96  # pixels; above, images are photographs, of which each epoch shows other parts
PHOTO_SIDE, PHOTO_ZOOM = 224, 224 / 256  # of ImageNet's usual test: shorter side to 256, the central 224x224
PHOTO_AUGMENTATION = Augmentation(resized_crop=True, flip=True)
# Published figures of ImageNet's training images, for trees too large to compute them.
IMAGENET = Standard.published(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def image_folder(root: Path) -> Dataset:
    """The tree under ``root``: train/CLASS/..., and the same for test or val, or Tiny ImageNet's own val.

    Small images that all have one size keep it; else images become 224x224. Decoded bytes decide whether they
    stay in memory; photographs never do, since every epoch cuts another part out of the whole picture.
    """
    train, test = _classes_of(root / "train", root), _test_classes(root)
    require_same_classes(train, test, root)
    require(len(train) >= 2, f"{root} has images of one class only; a classifier needs at least 2")
    classes = sorted(train)
    side = _common_side(root, [train[name][0] for name in classes])
    height, width = side or (PHOTO_SIDE, PHOTO_SIDE)
    files, labels = {}, {}
    for split, found in (("train", train), ("test", test)):
        paths = np.array([path for name in classes for path in found[name]])
        files[split] = ImageFiles(root, paths, height, width, zoom=1.0 if side else PHOTO_ZOOM)
        labels[split] = torch.repeat_interleave(
            torch.arange(len(classes)), torch.tensor([len(found[name]) for name in classes])
        )
    resident = side is not None and sum(np.prod(part.shape) for part in files.values()) <= RESIDENT_BYTES
    pixels = {split: part.decode_all() if resident else part for split, part in files.items()}
    standard = Standard.of(pixels["train"]) if resident else IMAGENET
    train, test = (Images(pixels[split], labels[split], standard) for split in ("train", "test"))
    return Dataset(
        name=f"imagefolder {content_name(train, test)}",
        train=train,
        test=test,
        classes=len(classes),
        augmentation=standard_augmentation((3, *side)) if side else PHOTO_AUGMENTATION,
    )


def _classes_of(folder: Path, root: Path) -> dict[str, list[str]]:
    """Class name -> its image files at any depth below ``folder``/CLASS, sorted, relative to ``root``."""
    require(
        folder.is_dir(),
        f"{root} has no folder {folder.name}, it holds {contents(root)}; --dataset imagefolder expects "
        "train/CLASS/*.jpg and test/CLASS/*.jpg (or val/CLASS/*.jpg) there",
    )
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    require(bool(entries), f"{folder} must hold a folder per class, it holds {contents(folder)}")
    found = {entry.name: _images_in(entry, root) for entry in entries}
    for name, paths in found.items():
        require(
            bool(paths), f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))}); fill or delete it"
        )
    return found


def _images_in(folder: Path, root: Path) -> list[str]:
    """Image files at any depth below ``folder``; what starts with a dot is some system's own."""
    return sorted(
        str(path.relative_to(root))
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _test_classes(root: Path) -> dict[str, list[str]]:
    """The test images by class, in whichever way the tree holds them."""
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():
        return _tiny_imagenet_val(annotations, root)
    return _classes_of(root / "test" if (root / "test").is_dir() else root / "val", root)


def _tiny_imagenet_val(annotations: Path, root: Path) -> dict[str, list[str]]:
    """Tiny ImageNet's validation images: one folder, and a line ``NAME CLASS BOX`` for each."""
    found: dict[str, list[str]] = {}
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        name, _, rest = line.partition("\t")
        require(
            bool(name and rest),
            f"{annotations}, line {number}, must be the name of an image, its class and its box, separated "
            f"by tabs, got {line[:60]!r}",
        )
        found.setdefault(rest.partition("\t")[0], []).append(str(Path("val", "images", name)))
    return found


def _common_side(root: Path, paths: list[str]) -> tuple[int, int] | None:
    """Height and width that all of ``paths`` have, if they are small."""
    sizes = set()
    for path in paths:
        try:
            with Image.open(root / path) as image:
                sizes.add((image.height, image.width))
        except OSError as error:
            raise unreadable(root / path, error) from error
    if len(sizes) > 1 or max(max(size) for size in sizes) > SMALL_SIDE:
        return None
    return sizes.pop()
