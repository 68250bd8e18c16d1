"""Pictures of every kind of pixel: their range is kept, or the file is named."""

import warnings

import numpy as np
import pytest
import torch

for package in ("accelerate", "sklearn", "torchvision", "tqdm"):
    pytest.importorskip(package, reason="the trainers need `pip install kdkernels[trainers]`")

from data_files import pixels, write_tree
from PIL import Image

from python_trainers.common.data import load_dataset
from python_trainers.common.data.eight_bits import eight_bits
from python_trainers.common.errors import TrainerError

pytestmark = pytest.mark.trainers
GREY = pixels(1, 8, 8)[0]
COLOUR = pixels(1, 8, 8, 3)[0]
PICTURE = Image.fromarray(COLOUR)


def read(tmp_path, save, suffix: str) -> torch.Tensor:
    """The picture that ``save`` writes, as the data set has it: [3, 8, 8] uint8."""
    write_tree(tmp_path, count=1)
    path = tmp_path / "test" / "dog" / "0.png"
    path.unlink()
    save(path.with_suffix(suffix))
    return load_dataset("imagefolder", tmp_path).test.pixels[1]


def assert_grey(image: torch.Tensor, expected: np.ndarray):
    assert torch.equal(image, torch.from_numpy(expected).expand(3, 8, 8))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    wide = GREY.astype(np.uint16) * 257  # 65535 is white
    if suffix == ".pgm":  # Pillow writes none

        def save(path):
            path.write_bytes(b"P5 8 8 65535\n" + wide.astype(">u2").tobytes())
    else:

        def save(path):
            Image.fromarray(wide).save(path)

    assert_grey(read(tmp_path, save, suffix), GREY)


def test_sixteen_bits_of_the_other_byte_order(tmp_path):
    stored = (GREY.astype(np.uint16) * 257).astype(">u2")
    picture = Image.frombytes("I;16B", (8, 8), stored.tobytes())
    assert_grey(read(tmp_path, picture.save, ".tif"), GREY)


def test_sixteen_bits_are_rounded():
    values = np.array([[0, 128, 129, 65535 - 129, 65535 - 128, 65535]], dtype=np.uint16)
    assert np.asarray(eight_bits(Image.fromarray(values))).tolist() == [[0, 0, 1, 254, 255, 255]]


def test_floats_are_scaled(tmp_path):
    assert_grey(read(tmp_path, Image.fromarray(GREY.astype(np.float32) / 255).save, ".tiff"), GREY)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.linspace(0, 255, 64, dtype=np.float32).reshape(8, 8), "float pixels must be 0 to 1, got 0 to 255"),
        (np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8), "float pixels must be 0 to 1, got -1 to 1"),
        (np.full((8, 8), np.nan, np.float32), "float pixels must be 0 to 1, got nan to nan"),
        (GREY.astype(np.int32) * 1000, "integer pixels of mode I, whose range is unknown; save 8 or 16 bits"),
    ],
)
def test_unknown_range_is_refused_by_name(tmp_path, values, sentence):
    with pytest.raises(TrainerError, match=rf"image .*test/dog/0.tif cannot be read \({sentence}.*\); replace"):
        read(tmp_path, Image.fromarray(values).save, ".tif")


KINDS = {
    "1": (Image.fromarray(GREY).convert("1"), ".png", {}),
    "L": (Image.fromarray(GREY), ".png", {}),
    "LA": (Image.fromarray(np.stack([GREY, GREY[::-1]], 2), mode="LA"), ".png", {}),
    "P": (PICTURE.quantize(16), ".png", {}),
    "P, one colour transparent": (PICTURE.quantize(16), ".png", {"transparency": 3}),
    "P, transparency of each colour": (PICTURE.quantize(16), ".png", {"transparency": bytes(range(16))}),
    "RGB, one colour transparent": (PICTURE, ".png", {"transparency": (1, 2, 3)}),
    "RGBA": (Image.fromarray(np.dstack([COLOUR, GREY])), ".png", {}),
    "CMYK": (PICTURE.convert("CMYK"), ".tif", {}),
    "CMYK, JPEG": (PICTURE.convert("CMYK"), ".jpg", {}),
    "YCbCr": (PICTURE.convert("YCbCr"), ".jpg", {}),
    "of two frames": (PICTURE, ".tif", {"save_all": True, "append_images": [PICTURE.rotate(90)]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_as_pillow_has_them(tmp_path, kind):
    picture, suffix, options = KINDS[kind]
    file = tmp_path / f"picture{suffix}"
    picture.save(file, **options)
    with Image.open(file) as saved:
        expected = np.asarray(saved.convert("RGBA").convert("RGB")).transpose(2, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read(tmp_path / "tree", lambda path: path.write_bytes(file.read_bytes()), suffix)
    assert torch.equal(image, torch.from_numpy(expected.copy()))
    if suffix != ".jpg" and not kind.startswith(("P", "1", "L")):
        assert torch.equal(image, torch.from_numpy(COLOUR).permute(2, 0, 1))
