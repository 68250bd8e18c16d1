"""dkpp_loss with permutations drawn anew against the expression it replaces: ranks of random numbers, with the largest class
put back in its place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss
from .row_losses import COMMON, SHAPES, Rows, of_teacher


def eager_dkpp(batch: Rows) -> Tensor:
    kept = batch.teacher.argmax(-1, keepdim=True)
    permutation = torch.rand_like(batch.teacher).argsort(-1)
    # The largest class changes places with whatever class has come where it belongs.
    stray = (permutation == kept).int().argmax(-1, keepdim=True)
    permutation = permutation.scatter(-1, stray, permutation.gather(-1, kept)).scatter(-1, kept, kept)
    return F.cross_entropy(batch.student, F.softmax(batch.teacher, dim=-1).gather(-1, permutation))


LOSSES = (
    Loss(
        "dkpp_loss",
        ours=lambda batch: kd.dkpp_loss(batch.student, batch.teacher),
        eager=eager_dkpp,
        work=of_teacher,
        shapes=SHAPES,
        comparable=False,
        **COMMON,
    ),
)
