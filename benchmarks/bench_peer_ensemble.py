"""Losses among peers against the expressions they replace: all peers in one, and peer by peer as published code goes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .problem import Loss, Shape, Work, in_float
from .row_losses import DIVERGENCE, GRADIENT, SOFTMAX

T, EPS = 3.0, 1e-7


class Batch(NamedTuple):
    peers: Tensor  # [B, P, C]
    leader: Tensor  # [B, C]
    query: Tensor  # [B, P, d]
    key: Tensor
    gate: Tensor  # [B, P]
    target: Tensor  # [B]


def draw(
    samples: int, peers: int, classes: int, width: int, dtype: torch.dtype, device: str, generator: torch.Generator
) -> Batch:
    def normal(*shape: int, scale: float = 3.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)

    return Batch(
        normal(samples, peers, classes),
        normal(samples, classes),
        normal(samples, peers, width, scale=width**-0.5),
        normal(samples, peers, width, scale=1.0),
        normal(samples, peers, scale=1.0).softmax(1),
        torch.randint(classes, (samples,), generator=generator, device=device),
    )


# All peers in one expression


def ce(logits: Tensor, target: Tensor) -> Tensor:
    labels = target.unsqueeze(1).expand(logits.shape[:2])
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / len(target)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    t = F.softmax(teacher / T, -1) + EPS
    return T * T * F.kl_div(F.log_softmax(student / T, -1), t, reduction="sum") / len(student)


def eager_okddip(batch: Batch) -> Tensor:
    peers, leader = in_float(batch.peers), in_float(batch.leader)
    mixed = torch.softmax(in_float(batch.query) @ in_float(batch.key).mT, -1) @ peers
    labelled = ce(peers, batch.target) + F.cross_entropy(leader, batch.target)
    return labelled + kl(mixed, peers) + kl(peers.mean(1), leader)


def eager_gated(batch: Batch) -> Tensor:
    branches = in_float(batch.peers)
    ensemble = (in_float(batch.gate).unsqueeze(2) * branches).sum(1)
    labelled = ce(branches, batch.target) + F.cross_entropy(ensemble, batch.target)
    return labelled + kl(ensemble.unsqueeze(1).expand_as(branches), branches)


def eager_leave_one_out(batch: Batch) -> Tensor:
    peers = in_float(batch.peers)
    others = (peers.sum(1, keepdim=True) - peers) / (peers.shape[1] - 1)
    return ce(peers, batch.target) + kl(others, peers)


def eager_pairwise(batch: Batch) -> Tensor:
    peers = in_float(batch.peers)
    log_q = F.log_softmax(peers / T, -1)
    t = F.softmax(peers / T, -1) + EPS
    count = peers.shape[1]
    # sum_a sum_{b != a} t_b log q_a = sum_a (sum_b t_b - t_a) log q_a
    divergence = (count - 1) * (t * t.log()).sum() - ((t.sum(1, keepdim=True) - t) * log_q).sum()
    return ce(peers, batch.target) + T * T * divergence / (count - 1) / len(peers)


# Peer by peer, as the published code goes


def soft_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    t = F.softmax(teacher / T, 1) + EPS
    return T * T * (t * (t.log() - F.log_softmax(student / T, 1))).sum(1).mean()


def loop_okddip(batch: Batch) -> Tensor:
    peers, leader = in_float(batch.peers), in_float(batch.leader)
    mixed = torch.bmm(torch.softmax(torch.bmm(in_float(batch.query), in_float(batch.key).mT), -1), peers)
    loss = F.cross_entropy(leader, batch.target) + soft_divergence(peers.mean(1), leader)
    for a in range(peers.shape[1]):
        loss = loss + F.cross_entropy(peers[:, a], batch.target) + soft_divergence(mixed[:, a], peers[:, a])
    return loss


def loop_gated(batch: Batch) -> Tensor:
    branches, gate = in_float(batch.peers), in_float(batch.gate)
    ensemble = sum(gate[:, b : b + 1] * branches[:, b] for b in range(branches.shape[1]))
    loss = F.cross_entropy(ensemble, batch.target)
    for b in range(branches.shape[1]):
        loss = loss + F.cross_entropy(branches[:, b], batch.target) + soft_divergence(ensemble, branches[:, b])
    return loss


def loop_leave_one_out(batch: Batch) -> Tensor:
    peers = in_float(batch.peers)
    loss = 0
    for a in range(peers.shape[1]):
        others = sum(peers[:, b] for b in range(peers.shape[1]) if b != a) / (peers.shape[1] - 1)
        loss = loss + F.cross_entropy(peers[:, a], batch.target) + soft_divergence(others, peers[:, a])
    return loss


def loop_pairwise(batch: Batch) -> Tensor:
    peers = in_float(batch.peers)
    loss, count = 0, peers.shape[1]
    for a in range(count):
        loss = loss + F.cross_entropy(peers[:, a], batch.target)
        for b in range(count):
            if b != a:
                loss = loss + soft_divergence(peers[:, b], peers[:, a]) / (count - 1)
    return loss


def of_peers(samples: int, peers: int, classes: int, width: int, size: int) -> Work:
    """Every peer against its labels and against a mixture of all of them, both sides of which have a gradient."""
    logits = samples * peers * classes
    return Work(
        bytes={"peers": logits * size, "gradient of peers": logits * size},
        operations={
            "mixtures": 2 * logits * peers,
            "softmax of peers, of these softened, of mixtures": 3 * SOFTMAX * logits,
            "divergence": DIVERGENCE * logits,
            "gradient": GRADIENT * logits,
            "gradient through mixtures": 2 * logits * peers,
        },
    )


def of_branches(samples: int, peers: int, classes: int, width: int, size: int) -> Work:
    work, gate = of_peers(samples, peers, classes, width, size), samples * peers * size
    # One mixture, for all.
    each = samples * peers * classes
    mixtures = {"mixtures": 2 * each, "gradient through mixtures": 4 * each}
    return Work(work.bytes | {"gate": gate, "gradient of gate": gate}, work.operations | mixtures)


def of_leader(samples: int, peers: int, classes: int, width: int, size: int) -> Work:
    work, logits, features = of_peers(samples, peers, classes, width, size), samples * classes, samples * peers * width
    return Work(
        work.bytes
        | {
            "leader": logits * size,
            "query and key": 2 * features * size,
            "gradient of leader": logits * size,
            "gradient of query and key": 2 * features * size,
        },
        work.operations
        | {
            "attention": 2 * features * peers,
            "leader": (3 * SOFTMAX + DIVERGENCE + GRADIENT) * logits,
            "gradient of attention": 2 * samples * peers * peers * classes + 4 * features * peers,
        },
    )


# OKDDip's four students are three peers and a leader.
TINY = {(2, 2, 2, 2): "all is overhead"}
OKDDIP_SHAPES = {
    "cpu": TINY | {(128, 3, 100, 8): "the paper's on CIFAR-100", (64, 3, 1000, 64): "the paper's on ImageNet"},
    "cuda": TINY
    | {
        (128, 3, 100, 8): "the paper's on CIFAR-100",
        (256, 8, 1000, 64): "eight peers on ImageNet",
        (256, 8, 32768, 64): "a vocabulary",
    },
    "quick": {(64, 3, 100, 8): "the paper's on CIFAR-100, half a batch"},
}
SHAPES = {
    "cpu": {(128, 4, 100, 1): "the papers' on CIFAR-100", (64, 4, 1000, 1): "the papers' on ImageNet"},
    "cuda": {(256, 8, 1000, 1): "eight peers on ImageNet", (256, 8, 32768, 1): "a vocabulary"},
    "quick": {(64, 3, 100, 1): "the papers' on CIFAR-100, half a batch"},
}


def loss(
    name: str, ours, eager, loop, differentiated: tuple[str, ...], work, shapes: dict[str, dict[Shape, str]] = SHAPES
) -> Loss:
    others = {"loop": loop}
    return Loss(name, "samples x peers x classes x width", ours, eager, differentiated, draw, work, shapes, others)


LOSSES = (
    loss(
        "okddip_loss",
        lambda batch: kd.okddip_loss(batch.peers, batch.leader, batch.query, batch.key, batch.target),
        eager_okddip,
        loop_okddip,
        ("peers", "leader", "query", "key"),
        of_leader,
        OKDDIP_SHAPES,
    ),
    loss(
        "gated_ensemble_loss",
        lambda batch: kd.gated_ensemble_loss(batch.gate, batch.peers, batch.target),
        eager_gated,
        loop_gated,
        ("gate", "peers"),
        of_branches,
    ),
    loss(
        "leave_one_out_loss",
        lambda batch: kd.leave_one_out_loss(batch.peers, batch.target),
        eager_leave_one_out,
        loop_leave_one_out,
        ("peers",),
        of_peers,
    ),
    loss(
        "leave_one_out_loss, pairwise",
        lambda batch: kd.leave_one_out_loss(batch.peers, batch.target, pairwise=True),
        eager_pairwise,
        loop_pairwise,
        ("peers",),
        of_peers,
    ),
)
