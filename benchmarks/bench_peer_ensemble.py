"""Losses among peers, forward + backward, against the expressions they replace; and their table.

Shapes: two samples of two classes, where all is overhead; the paper's on CIFAR-100 and ImageNet; on a GPU eight peers, and a
vocabulary.
"""

from __future__ import annotations

import statistics
import sys
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kdkernels as kd

from .timing import Call, alternate, peak_bytes, ratio, seconds_per_row, spread

T, EPS = 3.0, 1e-7


class Batch(NamedTuple):
    peers: Tensor  # [B, P, C]
    leader: Tensor  # [B, C]
    query: Tensor  # [B, P, d]
    key: Tensor
    gate: Tensor  # [B, P]
    target: Tensor  # [B]


def ours_okddip(batch: Batch) -> Tensor:
    return kd.okddip_loss(batch.peers, batch.leader, batch.query, batch.key, batch.target)


def ours_gated(batch: Batch) -> Tensor:
    return kd.gated_ensemble_loss(batch.gate, batch.peers, batch.target)


def ours_leave_one_out(batch: Batch) -> Tensor:
    return kd.leave_one_out_loss(batch.peers, batch.target)


def ours_pairwise(batch: Batch) -> Tensor:
    return kd.leave_one_out_loss(batch.peers, batch.target, pairwise=True)


# All peers in one expression


def ce(logits: Tensor, target: Tensor) -> Tensor:
    labels = target.unsqueeze(1).expand(logits.shape[:2])
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / len(target)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    t = F.softmax(teacher / T, -1) + EPS
    return T * T * F.kl_div(F.log_softmax(student / T, -1), t, reduction="sum") / len(student)


def eager_okddip(batch: Batch) -> Tensor:
    peers, leader = batch.peers.float(), batch.leader.float()
    mixed = torch.softmax(batch.query.float() @ batch.key.float().mT, -1) @ peers
    labelled = ce(peers, batch.target) + F.cross_entropy(leader, batch.target)
    return labelled + kl(mixed, peers) + kl(peers.mean(1), leader)


def eager_gated(batch: Batch) -> Tensor:
    branches = batch.peers.float()
    ensemble = (batch.gate.float().unsqueeze(2) * branches).sum(1)
    labelled = ce(branches, batch.target) + F.cross_entropy(ensemble, batch.target)
    return labelled + kl(ensemble.unsqueeze(1).expand_as(branches), branches)


def eager_leave_one_out(batch: Batch) -> Tensor:
    peers = batch.peers.float()
    others = (peers.sum(1, keepdim=True) - peers) / (peers.shape[1] - 1)
    return ce(peers, batch.target) + kl(others, peers)


def eager_pairwise(batch: Batch) -> Tensor:
    peers = batch.peers.float()
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
    peers, leader = batch.peers.float(), batch.leader.float()
    mixed = torch.bmm(torch.softmax(torch.bmm(batch.query.float(), batch.key.float().mT), -1), peers)
    loss = F.cross_entropy(leader, batch.target) + soft_divergence(peers.mean(1), leader)
    for a in range(peers.shape[1]):
        loss = loss + F.cross_entropy(peers[:, a], batch.target) + soft_divergence(mixed[:, a], peers[:, a])
    return loss


def loop_gated(batch: Batch) -> Tensor:
    branches, gate = batch.peers.float(), batch.gate.float()
    ensemble = sum(gate[:, b : b + 1] * branches[:, b] for b in range(branches.shape[1]))
    loss = F.cross_entropy(ensemble, batch.target)
    for b in range(branches.shape[1]):
        loss = loss + F.cross_entropy(branches[:, b], batch.target) + soft_divergence(ensemble, branches[:, b])
    return loss


def loop_leave_one_out(batch: Batch) -> Tensor:
    peers = batch.peers.float()
    loss = 0
    for a in range(peers.shape[1]):
        others = sum(peers[:, b] for b in range(peers.shape[1]) if b != a) / (peers.shape[1] - 1)
        loss = loss + F.cross_entropy(peers[:, a], batch.target) + soft_divergence(others, peers[:, a])
    return loss


def loop_pairwise(batch: Batch) -> Tensor:
    peers = batch.peers.float()
    loss, count = 0, peers.shape[1]
    for a in range(count):
        loss = loss + F.cross_entropy(peers[:, a], batch.target)
        for b in range(count):
            if b != a:
                loss = loss + soft_divergence(peers[:, b], peers[:, a]) / (count - 1)
    return loss


# What is called, what it replaces, that in a loop, and which tensors it differentiates.
LOSSES = {
    "okddip_loss": (ours_okddip, eager_okddip, loop_okddip, ("peers", "leader", "query", "key")),
    "gated_ensemble_loss": (ours_gated, eager_gated, loop_gated, ("gate", "peers")),
    "leave_one_out_loss": (ours_leave_one_out, eager_leave_one_out, loop_leave_one_out, ("peers",)),
    "leave_one_out_loss, pairwise": (ours_pairwise, eager_pairwise, loop_pairwise, ("peers",)),
}
# Samples, peers, classes, width of the features. OKDDip's four students are three peers and a leader.
TINY = (2, 2, 2, 2)
CPU_SHAPES = {
    "okddip_loss": [TINY, (128, 3, 100, 8), (64, 3, 1000, 64)],
    **dict.fromkeys(list(LOSSES)[1:], [(128, 4, 100, 1), (64, 4, 1000, 1)]),
}
CUDA_SHAPES = {
    "okddip_loss": [TINY, (128, 3, 100, 8), (256, 8, 1000, 64), (256, 8, 32768, 64)],
    **dict.fromkeys(list(LOSSES)[1:], [(256, 8, 1000, 1), (256, 8, 32768, 1)]),
}
QUICK_SHAPES = dict.fromkeys(LOSSES, [(64, 3, 100, 8)])


def draw(samples: int, peers: int, classes: int, width: int, dtype: torch.dtype, device: str) -> Batch:
    generator = torch.Generator(device).manual_seed(0)

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


def contenders(loss: str, *shape: int, dtype: torch.dtype, device: str) -> dict[str, Call]:
    """Name -> forward + backward of one batch. `copy` moves the bytes that cannot be avoided."""
    ours, eager, loop, differentiated = LOSSES[loss]
    batch = draw(*shape, dtype, device)
    leaves = [getattr(batch, name).requires_grad_() for name in differentiated]

    def step(function):
        def call():
            function(batch).backward()
            for leaf in leaves:
                leaf.grad = None

        return call

    source = torch.empty(sum(leaf.numel() for leaf in leaves), device=device, dtype=dtype)
    destination = torch.empty_like(source)
    return {
        "kdkernels": step(ours),
        "eager": step(eager),
        "loop": step(loop),
        "compile": step(torch.compile(eager)),
        "copy": lambda: destination.copy_(source),
    }


def measure(module: ModuleType, device: str, dtype: torch.dtype, quick: bool) -> list[dict]:
    results = []
    shapes = QUICK_SHAPES if quick else CUDA_SHAPES if device == "cuda" else CPU_SHAPES
    for loss in LOSSES:
        for shape in shapes[loss]:
            torch._dynamo.reset()
            calls = contenders(loss, *shape, dtype=dtype, device=device)
            times = alternate(calls, device, seconds=seconds_per_row(quick))
            results.append(
                {
                    "loss": loss,
                    "shape": shape,
                    "dtype": str(dtype).removeprefix("torch."),
                    "microseconds": {name: statistics.median(of) * 1e6 for name, of in times.items()},
                    "spread": {name: spread(of) for name, of in times.items()},
                    "over_eager": ratio(times, "eager", "kdkernels"),
                    "over_loop": ratio(times, "loop", "kdkernels"),
                    "over_compile": ratio(times, "compile", "kdkernels"),
                    "of_copy_speed": ratio(times, "copy", "kdkernels"),
                    "peak_bytes": {name: peak_bytes(calls[name], device) for name in ("kdkernels", "eager")},
                }
            )
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return results


def table(results: list[dict]) -> str:
    lines = [
        "| loss | samples x peers x classes | dtype | kdkernels, us | over eager | over a loop of the peers "
        "| over torch.compile | share of copy speed | peak memory, MB (eager) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        shape, peak = " x ".join(map(str, r["shape"][:3])), r["peak_bytes"]
        lines.append(
            f"| `{r['loss']}` | {shape} | {r['dtype']} "
            f"| {r['microseconds']['kdkernels']:.0f} ± {100 * r['spread']['kdkernels']:.0f} % "
            f"| {r['over_eager']:.1f}x | {r['over_loop']:.1f}x | {r['over_compile']:.1f}x "
            f"| {100 * r['of_copy_speed']:.0f} % "
            f"| {peak['kdkernels'] / 1e6:.2f} ({peak['eager'] / 1e6:.2f}) |"
        )
    return "\n".join(lines)
