"""Losses of peers that teach each other while all of them learn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._names import PEER_MIXES


def okddip_loss(
    peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    leader_logits: Tensor | None,  # [B, C], any float dtype
    query: Tensor,  # [B, P, d], any float dtype
    key: Tensor,  # [B, P, d], any float dtype
    target: Tensor,  # [B], integers in [0, C)
    *,
    temperature: float | Tensor = 3.0,  # > 0; a tensor has no dimensions
    kl_weight: float = 1.0,
    target_eps: float = 1e-7,  # >= 0
    mix: str = "logits",
    detach_targets: bool = False,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""Labels, and for each peer a target of its own: all peers, weighted by its attention; the leader's is their mean.

    With `z_a` the logits of peer a, `z_m` those of the leader, `A_ab = softmax_b(Q_a . K_b)` and
    `t_a = softmax(sum_b A_ab z_b / T)`, `t_m = softmax(mean_b z_b / T)`, per sample, averaged::

        sum_a CE(z_a, y) + CE(z_m, y)
        + kl_weight * T^2 * [sum_a KL(t_a + eps || softmax(z_a / T)) + KL(t_m + eps || softmax(z_m / T))]

    That is::

        def kl(x, z):
            t = F.softmax(x / T, -1) + eps
            return T**2 * F.kl_div(F.log_softmax(z / T, -1), t, reduction="sum") / B

        x = (query @ key.mT).softmax(-1) @ peer_logits
        ce = F.cross_entropy(peer_logits.transpose(1, 2), target[:, None].expand(B, P), reduction="sum") / B
        ce + F.cross_entropy(leader_logits, target) + kl_weight * (
            kl(x, peer_logits) + kl(peer_logits.mean(1), leader_logits)
        )

    in one sweep over the logits: no softmax and no target is stored, the gradients are all that is left.

    Nothing is a constant: the attention learns through the targets alone, and the peers learn from what they
    teach as well.

    Arguments:
        peer_logits: `[B, P, C]`, 1 <= P <= 32; float32, float16, bfloat16 or float64. Or a list of P tensors
            `[B, C]`, which costs a copy: `torch.stack(peer_logits, 1)`. `-inf` is a class of probability 0.
        leader_logits: `[B, C]`, any of those dtypes. None: all are peers, and the leader's two terms are 0.
        query, key: `[B, P, d]`, any of those dtypes; a peer attends to itself too, and there is no 1/sqrt(d).
        target: labels of any integer dtype, `[B]` or `[B, 1]`, in [0, C). Another label is a ValueError on the CPU;
            on CUDA, where asking would stall, it makes the loss NaN.
        temperature: T, finite and > 0, or a constant tensor of one number: where that is not read (see
            `kdkernels.functional`), the reference runs. 3 is the paper's.
        kl_weight: finite and >= 0; the ramp-up of the paper, which is 1 at its end. At 0 the term adds
            exactly 0, even where it is infinite.
        target_eps: finite and >= 0; added to every probability of a target, without renormalising. 1e-7 is
            the code's.
        mix: `"logits"`, as above and in the code, or `"probs"`: `t_a = sum_b A_ab softmax(z_b / T)` and
            `t_m = mean_b softmax(z_b / T)`, as in the paper.
        detach_targets: whether the targets are constants; query and key have gradient 0 then.
        return_parts: also return `{"ce_peers", "ce_leader", "kl_peers", "kl_leader"}`, detached and on the
            device: averaged over samples, summed over peers, before `kl_weight`, T^2 included.

    Returns:
        float32, or float64 where any logits or features are float64; a scalar, 0 where B is.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Chen, Mei, Wang, Feng, Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020,
        https://arxiv.org/abs/1912.00350, equations 5 to 9, and the authors' code.

    >>> peers = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]])
    >>> query = key = torch.eye(2).unsqueeze(0)
    >>> loss, parts = okddip_loss(peers, torch.zeros(1, 3), query, key, torch.tensor([2]), return_parts=True)
    >>> loss, parts["ce_peers"], parts["kl_peers"]
    (tensor(4.1022), tensor(2.8152), tensor(0.1884))
    """
    function = "okddip_loss"
    peers = _checks.peers(function, "peer_logits", peer_logits)
    if leader_logits is not None:
        _checks.leader(function, leader_logits, peers)
    _checks.peer_features(function, query, key, peers)
    target, temperature, kl_weight, target_eps = _checks.peer_terms(
        function, target, peers, "peer_logits", temperature, kl_weight, target_eps
    )
    _checks.one_of(function, "mix", mix, PEER_MIXES)
    detach_targets = _checks.flag(function, "detach_targets", detach_targets)
    return_parts = _checks.flag(function, "return_parts", return_parts)

    # The op takes a number as temperature.
    if not _backend.use_library(function, peers) or isinstance(temperature, Tensor):
        return reference.okddip_loss(
            peers,
            leader_logits,
            query,
            key,
            target,
            temperature=temperature,
            kl_weight=kl_weight,
            target_eps=target_eps,
            mix=mix,
            detach_targets=detach_targets,
            return_parts=return_parts,
        )

    loss, parts = ops.okddip_loss(
        function=function,
        peer_logits=peers,
        leader_logits=leader_logits,
        query=query,
        key=key,
        target=target,
        temperature=temperature,
        kl_weight=kl_weight,
        target_eps=target_eps,
        mix=mix,
        detach_targets=detach_targets,
    )
    if not return_parts:
        return loss
    return loss, dict(zip(("ce_peers", "ce_leader", "kl_peers", "kl_leader"), parts.unbind()))


def gated_ensemble_loss(
    gate: Tensor,  # [B, P], any float dtype
    branch_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    target: Tensor,  # [B], integers in [0, C)
    *,
    temperature: float | Tensor = 3.0,  # > 0; a tensor has no dimensions
    kl_weight: float = 1.0,
    target_eps: float = 1e-7,  # >= 0
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""Labels for the branches and for their gated ensemble, which teaches each of them.

    With `z_b` the logits of branch b, `x = sum_b gate_b z_b`, per sample, averaged::

        sum_b CE(z_b, y) + CE(x, y) + kl_weight * T^2 * sum_b KL(softmax(x / T) + eps || softmax(z_b / T))

    in one sweep over the logits: neither ensemble nor softmax is stored, the gradients are all that is left.
    Nothing is a constant: the gate learns through the ensemble's cross entropy and through the target.

    Arguments:
        gate: `[B, P]`, any finite numbers, ONE's after their softmax; float32, float16, bfloat16 or float64.
        branch_logits: `[B, P, C]`, 1 <= P <= 32, any of those dtypes. Or a list of P tensors `[B, C]`, which
            costs a copy: `torch.stack(branch_logits, 1)`. `-inf` is a class of probability 0.
        target: labels of any integer dtype, `[B]` or `[B, 1]`, in [0, C). Another label is a ValueError on the CPU;
            on CUDA, where asking would stall, it makes the loss NaN.
        temperature: T, finite and > 0, or a constant tensor of one number: where that is not read (see
            `kdkernels.functional`), the reference runs. 3 is the paper's.
        kl_weight: finite and >= 0. At 0 the term adds exactly 0, even where it is infinite.
        target_eps: finite and >= 0; added to every probability of the target, without renormalising.
        return_parts: also return `{"ce_branches", "ce_ensemble", "kl"}`, detached and on the device: averaged
            over samples, summed over branches, before `kl_weight`, T^2 included.

    Returns:
        float32, or float64 where gate or logits are float64; a scalar, 0 where B is.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018,
        https://arxiv.org/abs/1806.04606, equations 4 to 8.

    >>> branches = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]])
    >>> gated_ensemble_loss(torch.tensor([[0.75, 0.25]]), branches, torch.tensor([2]))
    tensor(4.3216)
    """
    function = "gated_ensemble_loss"
    branches = _checks.peers(function, "branch_logits", branch_logits)
    _checks.gate(function, gate, branches)
    target, temperature, kl_weight, target_eps = _checks.peer_terms(
        function, target, branches, "branch_logits", temperature, kl_weight, target_eps
    )
    return_parts = _checks.flag(function, "return_parts", return_parts)

    # The op takes a number as temperature.
    if not _backend.use_library(function, branches) or isinstance(temperature, Tensor):
        return reference.gated_ensemble_loss(
            gate,
            branches,
            target,
            temperature=temperature,
            kl_weight=kl_weight,
            target_eps=target_eps,
            return_parts=return_parts,
        )

    loss, parts = ops.gated_ensemble_loss(
        function=function,
        gate=gate,
        branch_logits=branches,
        target=target,
        temperature=temperature,
        kl_weight=kl_weight,
        target_eps=target_eps,
    )
    return (loss, dict(zip(("ce_branches", "ce_ensemble", "kl"), parts.unbind()))) if return_parts else loss


def leave_one_out_loss(
    peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    target: Tensor,  # [B], integers in [0, C)
    *,
    temperature: float | Tensor = 3.0,  # > 0; a tensor has no dimensions
    kl_weight: float = 1.0,
    pairwise: bool = False,
    target_eps: float = 1e-7,  # >= 0
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    r"""Labels, and each peer taught by all others: by their mean, or by each of them.

    With `z_a` the logits of peer a, per sample, averaged::

        sum_a CE(z_a, y) + kl_weight * T^2 * sum_a KL(softmax(mean_{b != a} z_b / T) + eps || softmax(z_a / T))

    and with `pairwise` the mean over b != a of the divergence from `softmax(z_b / T) + eps`. In one sweep over
    the logits: no softmax and no target is stored, the gradient is all that is left. Nothing is a constant.

    Arguments:
        peer_logits: `[B, P, C]`, 1 <= P <= 32; float32, float16, bfloat16 or float64. Or a list of P tensors
            `[B, C]`, which costs a copy: `torch.stack(peer_logits, 1)`. `-inf` is a class of probability 0. A
            single peer learns from its label alone.
        target: labels of any integer dtype, `[B]` or `[B, 1]`, in [0, C). Another label is a ValueError on the CPU;
            on CUDA, where asking would stall, it makes the loss NaN.
        temperature: T, finite and > 0, or a constant tensor of one number: where that is not read (see
            `kdkernels.functional`), the reference runs.
        kl_weight: finite and >= 0. At 0 the term adds exactly 0, even where it is infinite.
        pairwise: the divergences averaged instead of the logits, as in the DML paper.
        target_eps: finite and >= 0; added to every probability of a target, without renormalising.
        return_parts: also return `{"ce", "kl"}`, detached and on the device: averaged over samples, summed
            over peers, before `kl_weight`, T^2 included.

    Returns:
        float32, or float64 for float64 logits; a scalar, 0 where B is.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Song, Chai, "Collaborative Learning for Deep Neural Networks", NeurIPS 2018,
        https://arxiv.org/abs/1805.11761, equations 2 to 4; Zhang, Xiang, Hospedales, Lu, "Deep Mutual
        Learning", CVPR 2018, https://arxiv.org/abs/1706.00384, equations 8 and 9, where the targets are constants.

    >>> peers = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]])
    >>> leave_one_out_loss(peers, torch.tensor([2])), leave_one_out_loss(peers, torch.tensor([2]), pairwise=True)
    (tensor(5.4035), tensor(5.8777))
    """
    function = "leave_one_out_loss"
    peers = _checks.peers(function, "peer_logits", peer_logits)
    target, temperature, kl_weight, target_eps = _checks.peer_terms(
        function, target, peers, "peer_logits", temperature, kl_weight, target_eps
    )
    pairwise = _checks.flag(function, "pairwise", pairwise)
    return_parts = _checks.flag(function, "return_parts", return_parts)

    # The op takes a number as temperature.
    if not _backend.use_library(function, peers) or isinstance(temperature, Tensor):
        return reference.leave_one_out_loss(
            peers,
            target,
            temperature=temperature,
            kl_weight=kl_weight,
            pairwise=pairwise,
            target_eps=target_eps,
            return_parts=return_parts,
        )

    loss, parts = ops.leave_one_out_loss(
        function=function,
        peer_logits=peers,
        target=target,
        temperature=temperature,
        kl_weight=kl_weight,
        target_eps=target_eps,
        pairwise=pairwise,
    )
    return (loss, {"ce": parts[0], "kl": parts[2]}) if return_parts else loss
