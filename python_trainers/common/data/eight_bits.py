"""Pictures of any kind with 8 bits a channel."""

import numpy as np
from PIL import Image

SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose pixels Pillow may give as mode I, always in 0 to 65535


def eight_bits(image: Image.Image) -> Image.Image:
    """``image`` in a mode that ``convert`` takes to bytes without loss of range.

    16 bits a channel are scaled by 255 / 65535, floats in [0, 1] by 255. Raises ValueError where the range of
    the pixels cannot be known.
    """
    if image.mode.startswith("I;16") or image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode.startswith("I"):
        raise ValueError(f"integer pixels of mode {image.mode}, whose range is unknown; save 8 or 16 bits")
    if image.mode == "F":
        values = np.asarray(image)
        least, most = values.min(), values.max()
        if not (least >= 0 and most <= 1):
            raise ValueError(f"float pixels must be 0 to 1, got {least:g} to {most:g}")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # Pillow's own advice; the colours stay, what is transparent too
    return image
