"""Rules on features [rows, width], and on what comes with their similarities."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .common import bool_mask, float_tensor, integer_tensor, readable, same_device


def features(function: str, name: str, tensor: Any) -> None:
    float_tensor(function, name, tensor)
    if tensor.dim() != 2 or not tensor.shape[1]:
        raise ValueError(
            f"{function}: {name} must be [rows, width] with at least 1 column, got {list(tensor.shape)}"
        )


def queries_and_keys(function: str, query_name: str, query: Any, key_name: str, key: Any) -> None:
    """Features of one device, as wide as each other, and one key at least."""
    features(function, query_name, query)
    features(function, key_name, key)
    same_device(function, key_name, key, query, query_name)
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            f"{function}: {query_name} {list(query.shape)} and {key_name} {list(key.shape)} "
            "must have equal widths"
        )
    if not key.shape[0]:
        raise ValueError(f"{function}: at least 1 key is needed, got {key_name} {list(key.shape)}")


def as_many_rows(function: str, student_name: str, student: Tensor, teacher_name: str, teacher: Tensor) -> None:
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"{function}: {student_name} {list(student.shape)} and {teacher_name} {list(teacher.shape)} "
            "must have as many rows as each other"
        )
    same_device(function, teacher_name, teacher, student, student_name)


def diagonal(function: str, query: Tensor, key: Tensor, square: bool) -> None:
    """Whether key j may stand for the positive of query j."""
    queries, keys = query.shape[0], key.shape[0]
    if queries > keys:
        raise ValueError(
            f"{function}: without positive, key j is that of query j and at least as many keys as queries are "
            f"needed, got {queries} queries and {keys} keys; give positive"
        )
    if square and queries != keys:
        raise ValueError(
            f"{function}: symmetric without positive needs as many keys as queries, "
            f"got {queries} queries and {keys} keys; give positive"
        )


def indices(function: str, name: str, value: Any, features: Tensor, features_name: str) -> Tensor:
    """One per row of features, as int64."""
    value = integer_tensor(function, name, value)
    _per_feature_row(function, name, value, features, features_name)
    return value


def positive_range(function: str, value: Tensor, keys: int, mask: Tensor | None = None) -> None:
    """For the reference, and for what the compiled CPU op, which checks its positives itself, has refused."""
    if not readable(value) or (mask is not None and not readable(mask)):
        return
    bad = (value < 0) | (value >= keys)
    if mask is not None:
        bad &= mask
    if bool(bad.any()):
        raise ValueError(
            f"{function}: positive contains {value[bad][0].item()}, valid keys are 0..{keys - 1}"
        ) from None


def feature_mask(function: str, mask: Any, features: Tensor, features_name: str) -> None:
    bool_mask(function, mask)
    _per_feature_row(function, "mask", mask, features, features_name)


def feature_weight(function: str, weight: Any, features: Tensor, features_name: str) -> None:
    float_tensor(function, "row_weight", weight)
    _per_feature_row(function, "row_weight", weight, features, features_name)


def logit_bias(function: str, bias: Any, query: Tensor, keys: int) -> None:
    float_tensor(
        function, "logit_bias", bias, "use torch.where(logit_bias, 0.0, -torch.inf), which removes the keys of False"
    )
    full = (query.shape[0], keys)
    fits = bias.dim() <= 2 and all(size in (1, wanted) for size, wanted in zip(bias.shape[::-1], full[::-1]))
    if not fits:
        raise ValueError(
            f"{function}: logit_bias must be broadcastable to [queries, keys], {list(full)}, "
            f"got {list(bias.shape)}"
        )
    same_device(function, "logit_bias", bias, query, "query")


def bias_of_one_direction(function: str, symmetric: bool, group: Any) -> None:
    if symmetric and group is not None:
        raise ValueError(
            f"{function}: logit_bias with symmetric and group is not supported, the other processes' biases "
            "being unknown; leave out one of the three"
        )


def ranks(function: str, rank: Any) -> Tensor:
    """As int64."""
    rank = integer_tensor(function, "rank", rank)
    if rank.dim() != 1:
        raise ValueError(f"{function}: rank must have one dimension, got {list(rank.shape)}")
    return rank


def _per_feature_row(function: str, name: str, tensor: Tensor, features: Tensor, features_name: str) -> None:
    if tensor.shape != features.shape[:1]:
        raise ValueError(
            f"{function}: {name} must have one value per row of {features_name} {list(features.shape)}, "
            f"got {list(tensor.shape)}"
        )
    same_device(function, name, tensor, features, features_name)
