"""dkpp_loss with permutations drawn anew, forward + backward, against the expression it replaces: ranks of random numbers,
with the largest class put back in its place. Shapes as in bench_label_loss.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .bench_label_loss import CPU_SHAPES as CPU_SHAPES
from .bench_label_loss import CUDA_SHAPES as CUDA_SHAPES
from .bench_label_loss import QUICK_SHAPES as QUICK_SHAPES


def eager_dkpp(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    kept = teacher.argmax(-1, keepdim=True)
    permutation = torch.rand_like(teacher).argsort(-1)
    # The largest class changes places with whatever class has come where it belongs.
    stray = (permutation == kept).int().argmax(-1, keepdim=True)
    permutation = permutation.scatter(-1, stray, permutation.gather(-1, kept)).scatter(-1, kept, kept)
    return F.cross_entropy(student, F.softmax(teacher, dim=-1).gather(-1, permutation))


def ours_dkpp(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return kd.dkpp_loss(student, teacher)


# What is called, what it replaces, and how many tensors of the size of the logits have to be moved.
LOSSES = {"dkpp_loss": (ours_dkpp, eager_dkpp, 3)}
