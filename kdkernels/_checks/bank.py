"""Rules on a bank of features and on indices into it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .common import float_tensor, integer_range, integer_tensor, positive, readable, same_device
from .similarity import features, indices


def features_of_width(function: str, name: str, tensor: Any, width: int) -> None:
    features(function, name, tensor)
    if tensor.shape[1] != width:
        raise ValueError(
            f"{function}: {name} must be [B, {name}_dim], here [B, {width}], got {list(tensor.shape)}"
        )


def memory_bank(function: str, bank: Any, embedding: Tensor) -> None:
    features(function, "bank", bank)
    same_device(function, "bank", bank, embedding, "embedding")
    if bank.shape[1] != embedding.shape[1]:
        raise ValueError(
            f"{function}: embedding {list(embedding.shape)} and bank {list(bank.shape)} must have equal widths"
        )
    if not bank.shape[0]:
        raise ValueError(f"{function}: at least 1 entry is needed, got bank {list(bank.shape)}")


def bank_index(function: str, index: Any, embedding: Tensor) -> Tensor:
    """Entries of the bank for each embedding, the first its positive; as int64."""
    index = integer_tensor(function, "index", index)
    if index.dim() != 2 or index.shape[0] != embedding.shape[0] or index.shape[1] < 2:
        raise ValueError(
            f"{function}: index must be [B, K+1] with a positive and at least 1 negative for each of the "
            f"{embedding.shape[0]} embeddings, got {list(index.shape)}"
        )
    same_device(function, "index", index, embedding, "embedding")
    return index


def contrast_index(function: str, index: Any, student: Tensor, negatives: int) -> Tensor:
    """What `bank_index` demands, and as many negatives as a module expects."""
    index = integer_tensor(function, "contrast_index", index)
    if index.shape != (student.shape[0], negatives + 1):
        raise ValueError(
            f"{function}: contrast_index must be [B, negatives+1], {[student.shape[0], negatives + 1]}, "
            f"got {list(index.shape)}"
        )
    same_device(function, "contrast_index", index, student)
    return index


def bank_rows(function: str, index: Any, features: Tensor, features_name: str, entries: int) -> Tensor:
    """The entry of the bank that each row of features belongs to, as int64."""
    index = indices(function, "index", index, features, features_name)
    index_range(function, index, entries)
    return index


def index_range(function: str, index: Tensor, entries: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its indices itself, has refused."""
    integer_range(function, "index", index, entries, "entries")


def normalizer(function: str, value: Any, embedding: Tensor) -> float | Tensor | None:
    """None, a number, or a tensor of one, which comes back without dimensions; NaN in a tensor: not known yet."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return positive(function, "normalizer", value)
    float_tensor(function, "normalizer", value)
    if value.dim() > 1 or value.numel() != 1:
        raise ValueError(
            f"{function}: normalizer must be a number or a tensor of shape [] or [1], got {list(value.shape)}"
        )
    same_device(function, "normalizer", value, embedding, "embedding")
    value = value.reshape(())
    if readable(value) and not bool(value.isnan()):
        positive(function, "normalizer", value.item())
    return value
