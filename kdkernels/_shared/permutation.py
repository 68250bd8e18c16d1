"""A random permutation that is a function of a seed, a row's number and a class: csrc/permutation.h.

The swap-or-not shuffle (Hoang, Morris, Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO
2012). In each round every index x has a partner, K - x modulo the number of indices, and one random bit, the
same for both, tells whether they change places. It permutes any number of indices exactly and stores nothing.
Bit for bit what the kernels draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

_32_BITS = 0xFFFFFFFF  # numbers are unsigned 32-bit ones, held in int64


def random_permutation(
    kept: Tensor,  # row shape, int64: the class of each row that stays where it is
    classes: int,
    seed: int | Tensor,  # >= 0; a tensor is a scalar
) -> Tensor:
    """int64 `[*rows, classes]`: all classes but `kept` shuffled; rows are numbered in row-major order."""
    row = torch.arange(kept.numel(), device=kept.device).view(kept.shape).unsqueeze(-1)
    key = _mix(_mix(seed & _32_BITS) ^ (seed >> 32))
    key = _mix(_mix(key ^ (row & _32_BITS)) ^ (row >> 32))

    classes_of_row = torch.arange(classes, device=kept.device)
    kept = kept.unsqueeze(-1)
    count = classes - 1
    rank = classes_of_row - (classes_of_row > kept).long()  # among the others; of `kept` itself any
    for number in range(_rounds(count)):
        random = _mix((key + (number + 1) * 0x9E3779B9) & _32_BITS)
        offset, salt = random * count >> 32, _mix(random)
        partner = offset - rank
        partner = partner + (partner < 0) * count
        swap = _mix(torch.maximum(rank, partner) ^ salt) >> 31
        rank = torch.where(swap > 0, partner, rank)
    return torch.where(classes_of_row == kept, kept, rank + (rank >= kept))


def draw_seed(generator: torch.Generator | None) -> Tensor:
    """A scalar in host memory. As a tensor it can be drawn inside torch.compile, too."""
    return torch.randint(2**63 - 1, (), generator=generator, device="cpu")


def draw_permutation(teacher: Tensor, generator: torch.Generator | None, dim: int) -> Tensor:
    """Another one in each row; the first of the teacher's largest logits stays where it is."""
    drawn = random_permutation(teacher.argmax(dim), teacher.shape[dim], draw_seed(generator))
    return drawn.movedim(-1, dim)


def _rounds(count: int) -> int:
    # Mixing takes a number of rounds that grows as the logarithm of the count: four times it, and some for
    # the smallest, pass every test of uniformity.
    return 4 * count.bit_length() + 8 if count > 1 else 0


def _mix(x: int | Tensor) -> int | Tensor:
    """A bijection of 32 bits in which every bit of x turns every bit of the result with probability 1/2
    (C. Wellons, "Prospecting for Hash Functions", 2018). What overflows int64 lies above the 32 bits."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D & _32_BITS
    x = x ^ (x >> 15)
    x = x * 0x846CA68B & _32_BITS
    return x ^ (x >> 16)
