"""Modules of the losses against memory banks."""

from __future__ import annotations

from math import nan, sqrt

import torch
from torch import Tensor, distributed, nn

from .. import _checks, functional
from .._gather import gather
from .._shared.features import unit_rows
from .._shared.modes import savable
from .._shared.rows import arithmetic
from ..functional.memory_bank import update_entries
from .loss import Loss, Scheduled

__all__ = ["MemoryBankNCE", "CRDLoss"]


class MemoryBankNCE(Loss):
    """`kdkernels.memory_bank_nce` with its options held.

    >>> import torch
    >>> MemoryBankNCE(temperature=1.0)(torch.tensor([[0.6, 0.8]]), torch.eye(2), torch.tensor([[0, 1]]))
    tensor(1.4888)
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.07,
        eps: float = 1e-7,
        reduction: str = "batchmean",
        return_parts: bool = False,
        group: distributed.ProcessGroup | None = None,
    ):
        super().__init__(
            temperature=temperature, eps=eps, reduction=reduction, return_parts=return_parts, group=group
        )

    def forward(
        self,
        embedding: Tensor,  # [B, d]
        bank: Tensor,  # [n, d]
        index: Tensor,  # [B, K+1], integers
        *,
        normalizer: float | Tensor | None = None,
        denominator: float | Tensor | None = None,  # > 0; a tensor has no dimensions
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return functional.memory_bank_nce(
            embedding, bank, index, normalizer=normalizer, denominator=denominator, **self.options()
        )


class CRDLoss(Scheduled):
    """Contrastive representation distillation: heads, memory banks and loss.

    Both networks' features go through a linear head each and are normalised to `e_s`, `e_t`; with the banks
    `M_s`, `M_t` of the embeddings that the training images had last::

        memory_bank_nce(e_s, M_t, contrast_index) + memory_bank_nce(e_t, M_s, contrast_index)

    In training mode each forward then moves rows `index` of both banks towards the new embeddings,
    `l2(momentum * M[index] + (1 - momentum) * e)`; of a repeated index the last row wins. The normalizers Z
    are found by the first forward and kept. Banks and normalizers are buffers: they belong to the
    `state_dict`, and a run that resumes without them starts over.

    Both heads are trained: give `parameters()` of this module to the optimizer beside the student's. Gradients flow to the
    features of both networks where these require them: compute a frozen teacher's under `torch.no_grad()`.

    Where `torch.distributed` runs with several processes, a training forward gathers the embeddings and
    indices of all of them, in the order of their ranks and of the same number each, so that all banks stay
    equal; and Z is their mean. In evaluation nothing is communicated, and Z, if it is not known, is found but
    not kept. Wrap the module in `DistributedDataParallel(..., broadcast_buffers=False)`: the banks need no
    broadcast.

    Arguments:
        student_dim, teacher_dim: widths of the features.
        n_data: n, number of training images; their indices are 0..n-1.
        embed_dim: d, width of the embeddings.
        negatives: K per image. 16,384 is the code's.
        temperature: T, > 0. 0.07 is the code's, 0.1 the paper's on CIFAR-100.
        momentum: of the banks, in [0, 1].
        eps: see `kdkernels.memory_bank_nce`.

    Source:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
        https://arxiv.org/abs/1910.10699, and its code.

    >>> import torch
    >>> crd = CRDLoss(student_dim=8, teacher_dim=16, n_data=100, negatives=20)
    >>> loss = crd(torch.randn(4, 8), torch.randn(4, 16), torch.arange(4))
    >>> loss.shape, crd.student_bank.shape
    (torch.Size([]), torch.Size([100, 128]))
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        n_data: int,
        *,
        embed_dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        eps: float = 1e-7,
    ):
        super().__init__()
        student_dim = _checks.at_least_one("CRDLoss", "student_dim", student_dim)
        teacher_dim = _checks.at_least_one("CRDLoss", "teacher_dim", teacher_dim)
        embed_dim = _checks.at_least_one("CRDLoss", "embed_dim", embed_dim)
        self.n_data = _checks.at_least_one("CRDLoss", "n_data", n_data)
        self.negatives = _checks.at_least_one("CRDLoss", "negatives", negatives)
        self.temperature = _checks.positive("CRDLoss", "temperature", temperature)
        self.momentum = _checks.unit_interval("CRDLoss", "momentum", momentum)
        self.eps = _checks.not_negative("CRDLoss", "eps", eps)
        self.student_head = nn.Linear(student_dim, embed_dim)
        self.teacher_head = nn.Linear(teacher_dim, embed_dim)
        # Of expected length 1: from a bank of zeros the first embeddings would learn nothing.
        bound = sqrt(3 / embed_dim)
        self.register_buffer("student_bank", torch.empty(self.n_data, embed_dim).uniform_(-bound, bound))
        self.register_buffer("teacher_bank", torch.empty(self.n_data, embed_dim).uniform_(-bound, bound))
        # Z of that network's embeddings against the other's bank; NaN until the first forward, which the device
        # finds out for itself.
        self.register_buffer("student_normalizer", torch.tensor(nan))
        self.register_buffer("teacher_normalizer", torch.tensor(nan))

    def forward(
        self,
        student: Tensor,  # [B, student_dim] features
        teacher: Tensor,  # [B, teacher_dim] features
        index: Tensor,  # [B], integers in [0, n_data): which training images
        contrast_index: Tensor | None = None,  # [B, negatives+1], integers, column 0 the positive; None: drawn
        *,
        return_parts: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss, and with `return_parts` also `{"student", "teacher"}`, its two directions, detached.

        Without `contrast_index` the positive is the image itself and the negatives are drawn from all images
        alike by torch's generator, so that a negative may be of the same class, or the image itself.
        """
        index, contrast_index = self._checked(student, teacher, index, contrast_index)
        return_parts = _checks.flag("CRDLoss", "return_parts", return_parts)
        if contrast_index is None:
            shape = (index.shape[0], self.negatives + 1)
            contrast_index = torch.randint(self.n_data, shape, device=index.device)
            contrast_index[:, 0] = index

        communicates = self.training and _several_processes()
        options = dict(
            temperature=self.temperature,
            eps=self.eps,
            return_parts=True,
            group=distributed.group.WORLD if communicates else None,
        )
        e_s, e_t = _unit(self.student_head(student)), _unit(self.teacher_head(savable(teacher)))
        by_student, student_parts = functional.memory_bank_nce(
            e_s, self.teacher_bank, contrast_index, normalizer=self.student_normalizer, **options
        )
        by_teacher, teacher_parts = functional.memory_bank_nce(
            e_t, self.student_bank, contrast_index, normalizer=self.teacher_normalizer, **options
        )
        # A torch.func transform lets no buffer be written: a training forward fails there, an evaluation keeps nothing.
        if communicates or not (_several_processes() or torch._C._are_functorch_transforms_active()):
            self.student_normalizer.copy_(student_parts["normalizer"])
            self.teacher_normalizer.copy_(teacher_parts["normalizer"])
        if self.training:
            self._update_banks(e_s.detach(), e_t.detach(), index, communicates)
        loss = by_student + by_teacher
        return (loss, {"student": by_student.detach(), "teacher": by_teacher.detach()}) if return_parts else loss

    def extra_repr(self) -> str:
        names = ("n_data", "negatives", "temperature", "momentum", "eps")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _update_banks(self, e_s: Tensor, e_t: Tensor, index: Tensor, communicates: bool) -> None:
        if communicates:
            world = distributed.group.WORLD
            e_s = gather("CRDLoss", "student", e_s, world)
            e_t = gather("CRDLoss", "teacher", e_t, world)
            index = gather("CRDLoss", "index", index, world)
        update_entries(self.student_bank, index, e_s, momentum=self.momentum)
        update_entries(self.teacher_bank, index, e_t, momentum=self.momentum)

    def _checked(
        self, student: Tensor, teacher: Tensor, index: Tensor, contrast_index: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The indices as int64."""
        function = "CRDLoss"
        _checks.features_of_width(function, "student", student, self.student_head.in_features)
        _checks.features_of_width(function, "teacher", teacher, self.teacher_head.in_features)
        _checks.as_many_rows(function, "student", student, "teacher", teacher)
        index = _checks.bank_rows(function, index, student, "student", self.n_data)
        if contrast_index is not None:
            contrast_index = _checks.contrast_index(function, contrast_index, student, self.negatives)
        return index, contrast_index


def _unit(features: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least: half precision cannot hold the squares. A row of zeros stays one."""
    return unit_rows(features, arithmetic(features))


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
