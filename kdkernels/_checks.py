"""One helper per rule on the arguments of the public functions. They run once, before any kernel.

ValueError for values, shapes and devices, TypeError for dtypes and types; a message tells the name, the rule,
what was got, and the remedy where that is not plain. Good arguments cost a few comparisons. Values inside a
tensor are looked at only where no device has to be waited for: see `_readable`.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

_FLOATS = frozenset((torch.float32, torch.float16, torch.bfloat16, torch.float64))
_INTEGERS = frozenset((torch.int8, torch.int16, torch.int32, torch.uint8))
_NUMBERS = frozenset((float, int))
_MOST_PEERS = 32  # most_peers of csrc/peer_ensemble.h


def float_tensor(function: str, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATS:
        remedy = (
            "" if tensor.is_floating_point() or tensor.is_complex() else f"; convert it with {name}.float()"
        )
        raise TypeError(
            f"{function}: {name} must be float32, float16, bfloat16 or float64, got {_dtype(tensor)}{remedy}"
        )


def same_shape(function: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{function}: student {list(student.shape)} and teacher {list(teacher.shape)} "
            "must have equal shapes"
        )


def same_device(function: str, name: str, tensor: Tensor, other: Tensor, other_name: str = "student") -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{function}: {other_name} and {name} must be on one device, got {other.device} and {tensor.device}"
        )


def class_dimension(function: str, logits: Tensor, dim: int) -> int:
    """`dim` counted from the front."""
    rank = logits.dim()
    if rank == 0:
        raise ValueError(f"{function}: student must have at least 1 dimension, the classes, got a scalar")
    if type(dim) is not int:
        raise TypeError(f"{function}: dim must be an int, got {type(dim).__name__}")
    if not -rank <= dim < rank:
        raise ValueError(
            f"{function}: dim must be in {-rank}..{rank - 1} for logits {list(logits.shape)}, got {dim}"
        )
    if logits.shape[dim] == 0:
        raise ValueError(
            f"{function}: at least 1 class is needed, got logits {list(logits.shape)} with dim={dim}"
        )
    return dim % rank


def logits_alone(function: str, student: Any, dim: int) -> int:
    """A student without a teacher; returns `dim` counted from the front."""
    float_tensor(function, "student", student)
    return class_dimension(function, student, dim)


def pair(function: str, student: Any, teacher: Any, dim: int) -> int:
    """Student and teacher, row against row; returns `dim` counted from the front."""
    float_tensor(function, "student", student)
    float_tensor(function, "teacher", teacher)
    same_shape(function, student, teacher)
    same_device(function, "teacher", teacher, student)
    return class_dimension(function, student, dim)


def temperature(function: str, value: Any, logits: Tensor, dim: int) -> None:
    """A number, or one per row."""
    if isinstance(value, Tensor):
        float_tensor(function, "temperature", value)
        row_tensor(function, "temperature", value, logits, dim)
        if _readable(value) and not bool(((value > 0) & (value < inf)).all()):
            bad = value[~((value > 0) & (value < inf))][0].item()
            raise ValueError(f"{function}: temperature must be finite and > 0 in every row, got {bad}")
        return
    positive(function, "temperature", value)


def several_classes(function: str, logits: Tensor, dim: int) -> None:
    if logits.shape[dim] < 2:
        raise ValueError(
            f"{function}: at least 2 classes are needed, got logits {list(logits.shape)} with dim={dim}"
        )


def one_of(function: str, name: str, value: Any, names: dict[Any, int]) -> int:
    """The integer behind a name."""
    try:
        return names[value]
    except (KeyError, TypeError):
        allowed = ", ".join(repr(known) for known in names)
        raise ValueError(f"{function}: {name} must be one of {allowed}, got {value!r}") from None


def unit_interval(function: str, name: str, value: Any) -> None:
    number(function, name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{function}: {name} must be in [0, 1], got {value}")


def not_negative(function: str, name: str, value: Any) -> None:
    number(function, name, value)
    if not 0 <= value < inf:
        raise ValueError(f"{function}: {name} must be finite and >= 0, got {value}")


def positive(function: str, name: str, value: Any) -> None:
    number(function, name, value)
    if not 0 < value < inf:
        raise ValueError(f"{function}: {name} must be finite and > 0, got {value}")


def number(function: str, name: str, value: Any) -> None:
    # Subclasses and NumPy scalars are numbers too; the exact types come first because they are what is usual.
    if type(value) in _NUMBERS or (isinstance(value, (float, int)) and not isinstance(value, bool)):
        return
    remedy = f"; use {name}.item()" if isinstance(value, Tensor) else ""
    raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}{remedy}")


def row_tensor(function: str, name: str, tensor: Tensor, logits: Tensor, dim: int) -> None:
    """One value per row: the shape of the logits without their class dimension."""
    shape = logits.shape
    rows = shape[:dim] + shape[dim + 1 :]
    if tensor.shape != rows:
        raise ValueError(
            f"{function}: {name} must have one value per row, {list(rows)} for logits {list(shape)} "
            f"with dim={dim}, got {list(tensor.shape)}"
        )
    same_device(function, name, tensor, logits)


def row_mask(function: str, mask: Any, logits: Tensor, dim: int) -> None:
    _bool_mask(function, mask)
    row_tensor(function, "mask", mask, logits, dim)


def row_weight(function: str, weight: Any, logits: Tensor, dim: int) -> None:
    float_tensor(function, "row_weight", weight)
    row_tensor(function, "row_weight", weight, logits, dim)


def confidence(
    function: str, value: Any, logits: Tensor, target: Tensor, dim: int, ignore_index: int
) -> None:
    """Probabilities, in the rows whose label is not ignored."""
    float_tensor(function, "confidence", value)
    row_tensor(function, "confidence", value, logits, dim)
    if not _readable(value) or not _readable(target) or not value.numel():
        return
    lowest, highest = value.aminmax()
    if lowest.item() >= 0 and highest.item() <= 1:  # neither, where there is a NaN
        return
    bad = ~((value >= 0) & (value <= 1)) & (target != ignore_index)
    if bool(bad.any()):
        raise ValueError(f"{function}: confidence must be in [0, 1] in every row, got {value[bad][0].item()}")


def permutation(function: str, value: Any, logits: Tensor) -> None:
    """A class for each class, whether each occurs once: see `permutes_classes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: permutation must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype is not torch.int64:
        remedy = "; convert it with permutation.long()" if value.dtype in _INTEGERS else ""
        raise TypeError(f"{function}: permutation must be int64 classes, got {_dtype(value)}{remedy}")
    if value.shape != logits.shape:
        raise ValueError(
            f"{function}: permutation must have the shape of the logits, {list(logits.shape)}, "
            f"got {list(value.shape)}"
        )
    same_device(function, "permutation", value, logits)


def permutes_classes(function: str, permutation: Tensor, dim: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its permutations itself, refused."""
    if not _readable(permutation):
        return
    rows = permutation.movedim(dim, -1)
    classes = rows.shape[-1]
    bad = (rows.sort().values != torch.arange(classes)).any(-1)
    if bool(bad.any()):
        row = bad.flatten().nonzero()[0].item()
        raise ValueError(
            f"{function}: permutation must hold each class 0..{classes - 1} once in every row, "
            f"row {row} does not"
        ) from None


def host_generator(function: str, value: Any) -> None:
    if not isinstance(value, torch.Generator):
        raise TypeError(f"{function}: generator must be a torch.Generator, got {type(value).__name__}")
    if value.device.type != "cpu":
        raise ValueError(
            f"{function}: generator must be on the CPU, where drawing does not stall the device, "
            f"got one on {value.device}"
        )


def process_group(function: str, value: Any) -> None:
    if not isinstance(value, torch.distributed.ProcessGroup):
        raise TypeError(
            f"{function}: group must be a torch.distributed.ProcessGroup, got {type(value).__name__}"
        )


def labels(function: str, target: Any, logits: Tensor, dim: int, ignore_index: Any) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"{function}: target must be a torch.Tensor, got {type(target).__name__}")
    if target.dtype is not torch.int64:
        remedy = "; convert it with target.long()" if target.dtype in _INTEGERS else ""
        raise TypeError(f"{function}: target must be int64 class labels, got {_dtype(target)}{remedy}")
    row_tensor(function, "target", target, logits, dim)
    if type(ignore_index) is not int:
        raise TypeError(f"{function}: ignore_index must be an int, got {type(ignore_index).__name__}")


def label_range(function: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its labels itself, has refused."""
    if not _readable(target):
        return
    bad = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bool(bad.any()):
        raise ValueError(
            f"{function}: target contains {target[bad][0].item()}, valid labels are 0..{classes - 1} "
            f"(or ignore_index={ignore_index})"
        ) from None


def features(function: str, name: str, tensor: Any) -> None:
    float_tensor(function, name, tensor)
    if tensor.dim() != 2 or not tensor.shape[1]:
        raise ValueError(
            f"{function}: {name} must be [rows, width] with at least 1 column, got {list(tensor.shape)}"
        )


def queries_and_keys(function: str, query_name: str, query: Any, key_name: str, key: Any) -> None:
    """Features of one dtype and device, as wide as each other, and one key at least."""
    features(function, query_name, query)
    features(function, key_name, key)
    same_device(function, key_name, key, query, query_name)
    if query.dtype is not key.dtype:
        raise TypeError(
            f"{function}: {query_name} and {key_name} must have one dtype, "
            f"got {_dtype(query)} and {_dtype(key)}; convert one of them"
        )
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


def feature_temperature(function: str, value: Any, query: Tensor) -> None:
    """A number, or a tensor of one."""
    if not isinstance(value, Tensor):
        positive(function, "temperature", value)
        return
    float_tensor(function, "temperature", value)
    if value.dim():
        raise ValueError(
            f"{function}: temperature must be a number or a tensor without dimensions, got {list(value.shape)}"
        )
    same_device(function, "temperature", value, query, "query")
    if _readable(value.detach()):  # a Parameter too
        positive(function, "temperature", value.item())


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


def indices(function: str, name: str, value: Any, features: Tensor, features_name: str) -> None:
    """int64, one per row of features."""
    _int64(function, name, value)
    _per_feature_row(function, name, value, features, features_name)


def positive_range(function: str, value: Tensor, keys: int, mask: Tensor | None = None) -> None:
    """For the reference, and for what the compiled CPU op, which checks its positives itself, has refused."""
    if not _readable(value) or (mask is not None and not _readable(mask)):
        return
    bad = (value < 0) | (value >= keys)
    if mask is not None:
        bad &= mask
    if bool(bad.any()):
        raise ValueError(
            f"{function}: positive contains {value[bad][0].item()}, valid keys are 0..{keys - 1}"
        ) from None


def feature_mask(function: str, mask: Any, features: Tensor, features_name: str) -> None:
    _bool_mask(function, mask)
    _per_feature_row(function, "mask", mask, features, features_name)


def feature_weight(function: str, weight: Any, features: Tensor, features_name: str) -> None:
    float_tensor(function, "row_weight", weight)
    _per_feature_row(function, "row_weight", weight, features, features_name)


def logit_bias(function: str, bias: Any, query: Tensor, keys: int) -> None:
    float_tensor(function, "logit_bias", bias)
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


def ranks(function: str, rank: Any) -> None:
    _int64(function, "rank", rank)
    if rank.dim() != 1:
        raise ValueError(f"{function}: rank must have one dimension, got {list(rank.shape)}")


def at_least_one(function: str, name: str, value: Any) -> None:
    if type(value) is not int:
        raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{function}: {name} must be >= 1, got {value}")


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


def contrast_index(function: str, index: Any, student: Tensor, negatives: int) -> None:
    """What `bank_index` demands, and as many negatives as a module expects."""
    _int64(function, "contrast_index", index)
    if index.shape != (student.shape[0], negatives + 1):
        raise ValueError(
            f"{function}: contrast_index must be [B, negatives+1], {[student.shape[0], negatives + 1]}, "
            f"got {list(index.shape)}"
        )
    same_device(function, "contrast_index", index, student)


def bank_index(function: str, index: Any, embedding: Tensor) -> None:
    """Entries of the bank for each embedding, the first its positive."""
    _int64(function, "index", index)
    if index.dim() != 2 or index.shape[0] != embedding.shape[0] or index.shape[1] < 2:
        raise ValueError(
            f"{function}: index must be [B, K+1] with a positive and at least 1 negative for each of the "
            f"{embedding.shape[0]} embeddings, got {list(index.shape)}"
        )
    same_device(function, "index", index, embedding, "embedding")


def bank_rows(function: str, index: Any, features: Tensor, features_name: str, entries: int) -> None:
    """The entry of the bank that each row of features belongs to."""
    indices(function, "index", index, features, features_name)
    index_range(function, index, entries)


def index_range(function: str, index: Tensor, entries: int) -> None:
    """For the reference, and for what the compiled CPU op, which checks its indices itself, has refused."""
    if not _readable(index):
        return
    bad = (index < 0) | (index >= entries)
    if bool(bad.any()):
        raise ValueError(
            f"{function}: index contains {index[bad][0].item()}, valid entries are 0..{entries - 1}"
        ) from None


def normalizer(function: str, value: Any, embedding: Tensor) -> None:
    """None, a number, or a tensor of one; NaN in a tensor: not known yet."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        positive(function, "normalizer", value)
        return
    float_tensor(function, "normalizer", value)
    if value.dim():
        raise ValueError(
            f"{function}: normalizer must be a number or a tensor without dimensions, got {list(value.shape)}"
        )
    same_device(function, "normalizer", value, embedding, "embedding")
    if _readable(value) and not bool(value.isnan()):
        positive(function, "normalizer", value.item())


def peers(function: str, name: str, value: Any) -> Tensor:
    """[B, P, C] logits; a list of P tensors [B, C], all alike, is stacked."""
    if not isinstance(value, Tensor):
        value = _stacked_peers(function, name, value)
    float_tensor(function, name, value)
    shape = value.shape
    if len(shape) != 3 or not shape[1] or not shape[2]:
        raise ValueError(f"{function}: {name} must be [B, P, C] with at least 1 peer and 1 class, got {list(shape)}")
    if shape[1] > _MOST_PEERS:
        raise ValueError(f"{function}: at most {_MOST_PEERS} peers are possible, got {name} {list(shape)}")
    return value


def leader(function: str, value: Any, peer_logits: Tensor) -> None:
    float_tensor(function, "leader_logits", value)
    samples, _, classes = shape = peer_logits.shape
    if value.shape != (samples, classes):
        raise ValueError(
            f"{function}: leader_logits must be [B, C], {[samples, classes]} for peer_logits {list(shape)}, "
            f"got {list(value.shape)}"
        )
    same_device(function, "leader_logits", value, peer_logits, "peer_logits")


def peer_features(function: str, query: Any, key: Any, peer_logits: Tensor) -> None:
    """Of one dtype, each [B, P, d]."""
    float_tensor(function, "query", query)
    float_tensor(function, "key", key)
    shape = query.shape
    if len(shape) != 3 or shape[:2] != peer_logits.shape[:2] or not shape[2]:
        raise ValueError(
            f"{function}: query must be [B, P, d] with at least 1 column and the B and P of peer_logits "
            f"{list(peer_logits.shape)}, got {list(shape)}"
        )
    if key.shape != shape:
        raise ValueError(f"{function}: query {list(shape)} and key {list(key.shape)} must have equal shapes")
    if query.dtype is not key.dtype:
        raise TypeError(
            f"{function}: query and key must have one dtype, got {_dtype(query)} and {_dtype(key)}; "
            "convert one of them"
        )
    same_device(function, "query", query, peer_logits, "peer_logits")
    same_device(function, "key", key, peer_logits, "peer_logits")


def gate(function: str, value: Any, branches: Tensor) -> None:
    float_tensor(function, "gate", value)
    if value.shape != branches.shape[:2]:
        raise ValueError(
            f"{function}: gate must be [B, P], {list(branches.shape[:2])} for branch_logits "
            f"{list(branches.shape)}, got {list(value.shape)}"
        )
    same_device(function, "gate", value, branches, "branch_logits")


def sample_labels(function: str, target: Any, logits: Tensor, logits_name: str) -> None:
    """One per sample: the first dimension of the logits."""
    _int64(function, "target", target)
    if target.shape != logits.shape[:1]:
        raise ValueError(
            f"{function}: target must have one label per sample of {logits_name} {list(logits.shape)}, "
            f"got {list(target.shape)}"
        )
    same_device(function, "target", target, logits, logits_name)


def peer_terms(
    function: str, target: Any, logits: Tensor, logits_name: str, temperature: Any, kl_weight: Any, target_eps: Any
) -> None:
    """What every loss of peers is told beside its logits."""
    sample_labels(function, target, logits, logits_name)
    positive(function, "temperature", temperature)
    not_negative(function, "kl_weight", kl_weight)
    not_negative(function, "target_eps", target_eps)


def class_range(function: str, target: Tensor, classes: int) -> None:
    """Labels that no function may ignore."""
    if not _readable(target):
        return
    bad = (target < 0) | (target >= classes)
    if bool(bad.any()):
        raise ValueError(
            f"{function}: target contains {target[bad][0].item()}, valid labels are 0..{classes - 1}"
        ) from None


def _stacked_peers(function: str, name: str, value: Any) -> Tensor:
    if not isinstance(value, (list, tuple)):
        raise TypeError(
            f"{function}: {name} must be a torch.Tensor, or a list of one per peer, got {type(value).__name__}"
        )
    if not value:
        raise ValueError(f"{function}: {name} must have at least 1 peer, got an empty {type(value).__name__}")
    for at, peer in enumerate(value):
        own = f"{name}[{at}]"
        float_tensor(function, own, peer)
        if peer.dim() != 2:
            raise ValueError(f"{function}: {own} must be [B, C], got {list(peer.shape)}")
        if peer.shape != value[0].shape:
            raise ValueError(
                f"{function}: {name}[0] {list(value[0].shape)} and {own} {list(peer.shape)} "
                "must have equal shapes"
            )
        if peer.dtype is not value[0].dtype:
            raise TypeError(
                f"{function}: {name}[0] and {own} must have one dtype, "
                f"got {_dtype(value[0])} and {_dtype(peer)}; convert one of them"
            )
        same_device(function, own, peer, value[0], f"{name}[0]")
    return torch.stack(value, 1)


def _per_feature_row(function: str, name: str, tensor: Tensor, features: Tensor, features_name: str) -> None:
    if tensor.shape != features.shape[:1]:
        raise ValueError(
            f"{function}: {name} must have one value per row of {features_name} {list(features.shape)}, "
            f"got {list(tensor.shape)}"
        )
    same_device(function, name, tensor, features, features_name)


def _bool_mask(function: str, mask: Any) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{function}: mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype is not torch.bool:
        raise TypeError(f"{function}: mask must be bool, got {_dtype(mask)}; convert it with mask.bool()")


def _int64(function: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype is not torch.int64:
        remedy = f"; convert it with {name}.long()" if value.dtype in _INTEGERS else ""
        raise TypeError(f"{function}: {name} must be int64, got {_dtype(value)}{remedy}")


def _readable(tensor: Tensor) -> bool:
    """Whether values can be looked at: a plain tensor in host memory, not one being traced or transformed."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
