"""What peers say together, for losses of one's own and for ensembles."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import _backend, _checks, ops, reference
from .._names import PEER_MIXES


def peer_attention(
    query: Tensor,  # [B, P, d], any float dtype
    key: Tensor,  # [B, P, d], any float dtype
    peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    *,
    mix: str = "logits",
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
    return_attention: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""For each peer the logits, or the softened probabilities, of all peers, weighted by its attention.

    With `A_ab = softmax_b(Q_a . K_b)`, a peer itself among the b, and no 1/sqrt(d)::

        sum_b A_ab z_b        or        sum_b A_ab softmax(z_b / T)

    That is::

        A = (query @ key.mT).softmax(-1)
        A @ peer_logits       or        A @ (peer_logits / T).softmax(-1)

    Arguments:
        query, key: `[B, P, d]`, each float32, float16, bfloat16 or float64.
        peer_logits: `[B, P, C]`, 1 <= P <= 32, any of those dtypes. Or a list of P tensors `[B, C]`, which
            costs a copy: `torch.stack(peer_logits, 1)`.
        mix: `"logits"` or `"probs"`.
        temperature: T, finite and > 0, or a constant tensor of one number: where that is not read (see
            `kdkernels.functional`), the reference runs. Of `"probs"` alone: logits are mixed as they are.
        return_attention: also return A.

    Returns:
        `[B, P, C]` in the dtype of `peer_logits`; with `return_attention` also A `[B, P, P]`, float32, or
        float64 where features or logits are. Both are differentiable.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    Source:
        Chen, Mei, Wang, Feng, Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020,
        https://arxiv.org/abs/1912.00350, equations 5 to 7.

    >>> query = key = torch.tensor([[[1.0], [0.0]]])
    >>> peer_attention(query, key, torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    tensor([[[0.7311, 0.2689],
             [0.5000, 0.5000]]])
    """
    function = "peer_attention"
    peers = _checks.peers(function, "peer_logits", peer_logits)
    _checks.peer_features(function, query, key, peers)
    _checks.one_of(function, "mix", mix, PEER_MIXES)
    return_attention = _checks.flag(function, "return_attention", return_attention)
    temperature = _checks.one_temperature(function, temperature, peers, "peer_logits")

    # The op takes a number as temperature.
    if not _backend.use_library(function, peers) or isinstance(temperature, Tensor):
        return reference.peer_attention(
            query, key, peers, mix=mix, temperature=temperature, return_attention=return_attention
        )

    mixed, attention = ops.peer_mixture(
        peer_logits=peers, query=query, key=key, temperature=temperature, mix=mix
    )
    return (mixed, attention) if return_attention else mixed


def mean_probabilities(
    peer_logits: Tensor | Sequence[Tensor],  # [B, P, C], any float dtype, or P of [B, C]
    *,
    temperature: float | Tensor = 1.0,  # > 0; a tensor has no dimensions
) -> Tensor:
    r"""The mean of the peers' softened probabilities: an ensemble's prediction.

    That is `(peer_logits / T).softmax(-1).mean(1)`, without a softmax of each peer.

    Arguments:
        peer_logits: `[B, P, C]`, 1 <= P <= 32; float32, float16, bfloat16 or float64. Or a list of P tensors
            `[B, C]`, which costs a copy: `torch.stack(peer_logits, 1)`.
        temperature: T, finite and > 0, or a constant tensor of one number: where that is not read (see
            `kdkernels.functional`), the reference runs.

    Returns:
        `[B, C]` in the dtype of `peer_logits`; differentiable.

    Raises:
        ValueError: shapes, devices or values out of range. TypeError: dtypes or types.

    >>> mean_probabilities(torch.tensor([[[0.0, 0.0], [0.0, 40.0]]]))
    tensor([[0.2500, 0.7500]])
    """
    function = "mean_probabilities"
    peers = _checks.peers(function, "peer_logits", peer_logits)
    temperature = _checks.one_temperature(function, temperature, peers, "peer_logits")

    # The op takes a number as temperature.
    if not _backend.use_library(function, peers) or isinstance(temperature, Tensor):
        return reference.mean_probabilities(peers, temperature=temperature)

    mixed, _ = ops.peer_mixture(peer_logits=peers, temperature=temperature, mix="probs")
    return mixed.squeeze(1)
