"""Packages that somebody would take instead of this one, each with the losses that it answers.

They are the extras `bench` and `bench-gpu` of pyproject.toml. Nothing of a package is imported before one of its losses is
measured, and what is absent, or needs a GPU where there is none, is skipped by name with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import torch
import torch.nn.functional as F
from torch import Tensor

from . import bench_similarity, bench_softened_kl
from .bench_linear_head import Heads
from .bench_similarity import Features
from .problem import Function
from .row_losses import Rows

LARGEST_MASK = 2**30  # bytes that a package may spend on a boolean mask before we call that a refusal


@dataclass(frozen=True)
class Package:
    distribution: str  # as pip calls it
    losses: dict[str, Callable[[], Function]]  # name of ours -> imports the package and returns its function
    needs_gpu: bool = True

    def version(self) -> str | None:
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


def liger_kl() -> Function:
    """From log-probabilities and probabilities: both softmaxes remain PyTorch's."""
    from liger_kernel.transformers import LigerKLDIVLoss

    kl, t = LigerKLDIVLoss(reduction="batchmean"), bench_softened_kl.T

    def function(batch: Rows) -> Tensor:
        return kl(F.log_softmax(batch.student / t, dim=-1), F.softmax(batch.teacher / t, dim=-1)) * t * t

    return function


def liger_cross_entropy(smoothing: float) -> Function:
    from liger_kernel.transformers import LigerCrossEntropyLoss

    loss = LigerCrossEntropyLoss(label_smoothing=smoothing)
    return lambda batch: loss(batch.student, batch.target)


def liger_linear_cross_entropy() -> Function:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda batch: loss(batch.weight, batch.features, batch.target)


def quack_cross_entropy() -> Function:
    from quack.cross_entropy import cross_entropy

    return lambda batch: cross_entropy(batch.student, batch.target, reduction="mean")


def fla_linear_kl() -> Function:
    from fla.modules import FusedKLDivLoss

    loss = FusedKLDivLoss()

    def function(batch: Heads) -> Tensor:
        return loss(batch.features, batch.teacher_features, batch.weight, batch.teacher_weight)

    return function


def cut_linear_cross_entropy() -> Function:
    from cut_cross_entropy import linear_cross_entropy

    return lambda batch: linear_cross_entropy(batch.features, batch.weight, batch.target)


def inf_info_nce() -> Function:
    """Heads of 64 features are its tiles, not another loss."""
    from inf_cl import cal_flash_loss

    def function(batch: Features) -> Tensor:
        query, key = (F.normalize(x, dim=1, eps=1e-8) for x in (batch.query, batch.key))
        return cal_flash_loss(query, key, batch.positive, scale=1 / bench_similarity.T, head_dim=64).mean()

    return function


def metric_learning_info_nce() -> Function:
    """A mask of every positive pair against every negative one: of the third power of the batch."""
    from pytorch_metric_learning.losses import NTXentLoss

    loss = NTXentLoss(temperature=bench_similarity.T)

    def function(batch: Features) -> Tensor:
        queries, keys = len(batch.query), len(batch.key)
        if queries * queries * (keys - 1) > LARGEST_MASK:
            raise MemoryError(f"its mask of positive by negative pairs would take {queries**2 * (keys - 1) / 1e9:.0f} GB")
        labels = torch.arange(keys, device=batch.key.device)
        return loss(batch.query, batch.positive, ref_emb=batch.key, ref_labels=labels)

    return function


def metric_learning_supervised() -> Function:
    from pytorch_metric_learning.losses import SupConLoss

    loss = SupConLoss(temperature=bench_similarity.T)
    return lambda batch: loss(*bench_similarity.both_views(batch))


PACKAGES = (
    Package(
        "liger-kernel",
        {
            "softened_kl": liger_kl,
            "label_smoothing_loss": lambda: liger_cross_entropy(0.1),
            "label_smoothing_loss, none": lambda: liger_cross_entropy(0.0),
            "cross entropy of a linear head": liger_linear_cross_entropy,
        },
    ),
    Package("flash-linear-attention", {"softened_kl of a linear head": fla_linear_kl}),
    Package("cut-cross-entropy", {"cross entropy of a linear head": cut_linear_cross_entropy}),
    Package("quack-kernels", {"label_smoothing_loss, none": quack_cross_entropy}),
    Package("inf-cl", {"info_nce": inf_info_nce}),
    Package(
        "pytorch-metric-learning",
        {"info_nce": metric_learning_info_nce, "supervised_contrastive": metric_learning_supervised},
        needs_gpu=False,
    ),
)


def answering(loss: str, device: str) -> tuple[dict[str, Function], dict[str, str]]:
    """Of this loss on this device: the packages' functions, and why others have none."""
    functions, absent = {}, {}
    for package in PACKAGES:
        if loss not in package.losses:
            continue
        if package.version() is None:
            absent[package.distribution] = "not installed"
        elif package.needs_gpu and device != "cuda":
            absent[package.distribution] = "needs a GPU"
        else:
            try:
                functions[package.distribution] = package.losses[loss]()
            except ImportError as error:
                absent[package.distribution] = f"cannot be imported: {error}"
    return functions, absent
