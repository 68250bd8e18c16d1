"""Long passes over data before training: a bar in a terminal, two lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def shown(items: Iterable[Item], verb: str, what: str, total: int, images_per_item: int = 1) -> Iterator[Item]:
    """``items``, while stderr tells that ``total`` images of ``what`` are being read, decoded, ...

    ``verb`` is without its ending: "decod", "read". Of several processes on a machine one speaks.
    """
    silent = os.environ.get("LOCAL_RANK", "0") != "0"
    speaks = not silent and not sys.stderr.isatty()
    began = time.monotonic()
    if speaks:
        print(f"{verb}ing {total} images of {what}", file=sys.stderr, flush=True)
    with tqdm(desc=f"{verb}ing {what}", total=total, unit="image", disable=silent or speaks) as bar:
        for item in items:
            yield item
            bar.update(min(images_per_item, total - bar.n))
    if speaks:
        past = {"decod": "decoded", "read": "read"}[verb]
        print(f"{past} {total} images of {what} in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
