"""Losses of logits whose rows are spread over the processes of a mesh: torch.distributed.tensor.DTensor.

A row's loss needs nothing of other rows but how many of them count. Each process calls the function with its own rows,
scales what it returns by their share of all counted rows, and the sum over the processes is the loss of all of them, on
each of them. A gradient is spread like its tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._backend import is_sharded
from ._shared.rows import arithmetic


def row_loss(function: Callable[..., Any], arguments: dict[str, Any], counted: str) -> Any:
    """`function`, all of whose terms are means over the same rows: those that `counted` names: "mask", "target", or "mask and target"."""
    shards = _Shards(function.__name__, arguments)
    local = shards.local(arguments)
    share = 1
    if local["reduction"] not in ("none", "sum") and local.get("denominator") is None:
        rows = shards.counted(local, counted)
        share = rows / shards.total(rows)
    result = function(**local)
    if local["reduction"] == "none":
        return shards.each(result, shards.rows)
    return shards.each(result, lambda part: shards.sum((part * share).to(part.dtype)))


def row_loss_with_labels(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """`function`, whose KL is a mean over the rows of the mask, and whose cross entropy is one over the labelled rows.

    Each process computes sums. Both are divided by the number of labelled rows; the weights of the KL correct for it.
    """
    shards = _Shards(function.__name__, arguments)
    local = shards.local(arguments)
    reduction = local["reduction"]
    if reduction == "none":
        return shards.each(function(**local), shards.rows)
    labelled = 1
    if reduction in ("mean", "batchmean", "elementmean") and local.get("denominator") is None:
        student, weight = local["student"], local["row_weight"]
        dtype = arithmetic(student, local["teacher"])
        labelled, unmasked = (shards.total(shards.counted(local, name)) for name in ("target", "mask"))
        if reduction == "elementmean":
            unmasked = unmasked * (local.get("shared_classes") or student.shape[shards.dim])
        if weight is None:
            weight = torch.ones_like(student.select(shards.dim, 0), dtype=dtype)
        ratio = labelled / unmasked
        ratio = ratio.to(dtype) if isinstance(ratio, Tensor) else ratio
        local.update(reduction="sum", row_weight=weight.to(dtype) * ratio)

    def whole(part: Tensor) -> Tensor:
        return shards.rows(part) if part.dim() else shards.sum((part / labelled).to(part.dtype))

    return shards.each(function(**local), whole)


def row_numbers(function: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
    """`function`, which returns a number per row."""
    shards = _Shards(function.__name__, arguments)
    return shards.rows(function(**shards.local(arguments)))


class _Shards:
    """How the first tensor of a call is spread; all others follow it."""

    def __init__(self, function: str, arguments: dict[str, Any]):
        from torch.distributed.tensor import Replicate, Shard

        self.function = function
        self.name, logits = next(iter(arguments.items()))
        self.mesh, self.shape = logits.device_mesh, logits.shape
        self.dim = _checks.class_dimension(function, logits, arguments["dim"])
        self.row_shape = self.shape[: self.dim] + self.shape[self.dim + 1 :]
        self.shares_classes = arguments.get("shared_classes") is not None
        self.logit_placements = [each if type(each) is Shard else Replicate() for each in logits.placements]
        for each in self.logit_placements:
            if each.is_shard(self.dim):
                raise ValueError(
                    f"{function}: {self.name} must not be sharded along its classes, got {logits.placements} with "
                    f"dim={self.dim}; there is no vocab_group yet, gather them with "
                    f"{self.name}.redistribute(placements=[Replicate()])"
                )
        self.row_placements = [
            Shard(each.dim - (each.dim > self.dim)) if each.is_shard() else each for each in self.logit_placements
        ]
        self.everywhere = [Replicate()] * self.mesh.ndim
        self.spread = [at for at, each in enumerate(self.row_placements) if each.is_shard()]

    def local(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of this process."""
        local = {name: self._part(name, value) for name, value in arguments.items()}
        if "permutation" in local and local["permutation"] is None:
            raise ValueError(
                f"{self.function}: permutation must be given with a DTensor; each process would draw another one"
            )
        if "group" in local and local["group"] is None and self.spread:
            local["group"] = self._group()
        return local

    def counted(self, local: dict[str, Any], name: str) -> Tensor | int:
        """Number of rows of this process that count."""
        student, counted = local["student"], None
        if "mask" in name and local["mask"] is not None:
            _checks.row_mask(self.function, local["mask"], student, self.dim)
            counted = local["mask"]
        probabilities = isinstance(local.get("target"), Tensor) and local["target"].is_floating_point()
        if ("target" in name or local.get("mask_ignored")) and not probabilities:
            target = _checks.labels(self.function, local["target"], student, self.dim)
            labelled = target != _checks.integer(self.function, "ignore_index", local["ignore_index"])
            counted = labelled if counted is None else counted & labelled
        return student.numel() // self.shape[self.dim] if counted is None else counted.sum(dtype=torch.float64)

    def total(self, number: Tensor | int) -> Tensor | int:
        """Its sum over the processes, 1 at least."""
        if isinstance(number, int):
            return max(self.row_shape.numel(), 1)
        return self.sum(number).to_local().clamp(min=1)

    def each(self, result: Any, whole: Callable[[Tensor], Tensor]) -> Any:
        """Of a loss, or of a loss and its parts."""
        if isinstance(result, Tensor):
            return whole(result)
        loss, parts = result
        return whole(loss), {name: whole(part) for name, part in parts.items()}

    def rows(self, own: Tensor) -> Tensor:
        """A number per row of this process -> of all."""
        from torch.distributed.tensor import DTensor

        shape = self.row_shape
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(own, self.mesh, self.row_placements, run_check=False, shape=shape, stride=stride)

    def sum(self, own: Tensor) -> Tensor:
        """A number of this process -> its sum over those that have rows of their own."""
        from torch.distributed.tensor import DTensor, Partial

        parts = [Partial() if each.is_shard() else each for each in self.row_placements]
        spread = DTensor.from_local(own, self.mesh, parts, run_check=False)
        return spread.redistribute(placements=self.everywhere)

    def _part(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        one = ("temperature" in name or name == "denominator") and value.dim() <= 1 and value.numel() == 1  # for all rows
        if not is_sharded(value):
            if one:
                return value
            raise TypeError(f"{self.function}: {name} must be a DTensor as {self.name} is; see distribute_tensor")
        if one:
            return value.redistribute(self.mesh, self.everywhere).to_local()
        self._refuse_other_shapes(name, value)
        placements = self.logit_placements if value.dim() == len(self.shape) else self.row_placements
        return value.redistribute(self.mesh, placements).to_local()

    def _refuse_other_shapes(self, name: str, value: Tensor) -> None:
        """Here, on all processes alike: the parts may fit on some of them, which would wait for the others."""
        one_class = self.shape[: self.dim] + (1,) + self.shape[self.dim + 1 :]  # of labels
        shape = value.shape
        if name in ("teacher", "permutation") and self.shares_classes and value.dim() == len(self.shape):
            shape = shape[: self.dim] + self.shape[self.dim : self.dim + 1] + shape[self.dim + 1 :]
        if shape not in (self.shape, one_class, self.row_shape):
            raise ValueError(
                f"{self.function}: {name} must have the shape of {self.name}, {list(self.shape)}, or one value per row, "
                f"{list(self.row_shape)}, got {list(value.shape)}"
            )

    def _group(self) -> torch.distributed.ProcessGroup:
        """The processes over which the rows are spread."""
        if len(self.spread) == 1:
            return self.mesh.get_group(self.spread[0])
        raise ValueError(
            f"{self.function}: group must be given where rows are sharded along several dimensions of a mesh: all "
            "processes that hold some of them"
        )
