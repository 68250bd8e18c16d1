"""Losses of features and of peers, and the regimes in which numerics.py measures them; as numerics_rows.py."""

import math
from typing import NamedTuple

import memory_bank_oracle
import peer_ensemble_oracle
import similarity_oracle
import torch
import torch.nn.functional as F
from helpers import draw, labels
from numerics import Loss

import kdkernels as kd


class Features(NamedTuple):
    query: torch.Tensor  # [Q, D]
    key: torch.Tensor  # [K, D]
    teacher_query: torch.Tensor  # [Q, D]
    teacher_key: torch.Tensor  # [K, D]
    target: torch.Tensor  # [Q] labels
    temperature: float = 0.1


class Bank(NamedTuple):
    embedding: torch.Tensor  # [B, d]
    bank: torch.Tensor  # [n, d]
    index: torch.Tensor  # [B, K + 1]
    temperature: float = 0.1


class Peers(NamedTuple):
    peer_logits: torch.Tensor  # [B, P, C]
    leader: torch.Tensor  # [B, C]
    query: torch.Tensor  # [B, P, d]
    key: torch.Tensor  # [B, P, d]
    gate: torch.Tensor  # [B, P]
    target: torch.Tensor  # [B] labels
    upstream: torch.Tensor  # [B, P, C]: of a mixture
    temperature: float = 3.0
    target_eps: float = 1e-7


def features(dtype, count=24, width=128, scale=1.0, temperature=0.1):
    drawn = (draw(count, width, seed=seed, scale=scale, dtype=dtype) for seed in range(4))
    return Features(*drawn, labels(count, classes=5), temperature)


def parallel(dtype):
    """All keys are next to one: every other feature is the next number of bfloat16."""
    problem = features(torch.bfloat16)
    key = problem.key[:1] * (1 + torch.finfo(torch.bfloat16).eps * labels(24, 128, classes=2))
    return Features(*(x.to(dtype) for x in problem._replace(key=key.bfloat16())[:4]), problem.target)


# A normalizer that an earlier call has left, and more noise than the paper's.
GIVEN = {"normalizer": 1000.0, "eps": 0.1}


def bank(dtype, width=128, temperature=0.1, negatives=512):
    rows = (F.normalize(draw(count, width, seed=count), dim=1).to(dtype) for count in (4, 500))
    return Bank(*rows, labels(4, negatives + 1, classes=500), temperature)


def peers(dtype, classes=100, scale=3.0, temperature=3.0):
    def tensor(*shape, seed, scale):
        return draw(*shape, seed=seed, scale=scale, dtype=dtype)

    return Peers(
        tensor(4, 3, classes, seed=0, scale=scale),
        tensor(4, classes, seed=1, scale=scale),
        tensor(4, 3, 32, seed=2, scale=0.5),
        tensor(4, 3, 32, seed=3, scale=0.5),
        tensor(4, 3, seed=4, scale=0.5).softmax(1),
        labels(4, classes=classes),
        tensor(4, 3, classes, seed=5, scale=1.0),
        temperature,
    )


def equal_peers(dtype):
    problem = peers(dtype)
    return problem._replace(peer_logits=problem.leader[:, None].expand(4, 3, 100).clone())


def without_a_class(dtype):
    """That no peer and not the leader has; it is no label."""
    problem = peers(dtype)
    absent = F.one_hot((problem.target + 1) % 100, 100) > 0
    return problem._replace(
        target_eps=0.0,
        peer_logits=problem.peer_logits.masked_fill(absent[:, None], -math.inf),
        leader=problem.leader.masked_fill(absent, -math.inf),
    )


SIMILARITY_REGIMES = {
    "128 features": features,
    "features of 1e4": lambda dtype: features(dtype, scale=1e4),
    "features of 1e-4": lambda dtype: features(dtype, scale=1e-4),
    "1 feature": lambda dtype: features(dtype, width=1),
    "next to parallel keys": parallel,
    "T = 0.05": lambda dtype: features(dtype, temperature=0.05),
    "T = 100": lambda dtype: features(dtype, temperature=100.0),
}
BANK_REGIMES = {
    "512 negatives": bank,
    "16,384 negatives": lambda dtype: bank(dtype, negatives=16384),
    "1 feature": lambda dtype: bank(dtype, width=1),
    "T = 0.05": lambda dtype: bank(dtype, temperature=0.05),
    "T = 100": lambda dtype: bank(dtype, temperature=100.0),
}
PEER_REGIMES = {
    "logits of 3": peers,
    "logits of 1e4": lambda dtype: peers(dtype, scale=3e3, temperature=1.0),
    "equal peers": equal_peers,
    "T = 0.05": lambda dtype: peers(dtype, temperature=0.05),
    "T = 100": lambda dtype: peers(dtype, temperature=100.0),
    "1 class": lambda dtype: peers(dtype, classes=1),
    "2 classes": lambda dtype: peers(dtype, classes=2),
    "32,768 classes": lambda dtype: peers(dtype, classes=32768),
    "-inf in all": without_a_class,
}
# What is the target without a class: its own divergence from the mean is a difference of two infinities in the oracle.
PAIR_REGIMES = {name: make for name, make in PEER_REGIMES.items() if name != "-inf in all"}


def cosines(query, key):
    return F.normalize(query, dim=1, eps=1e-8) @ F.normalize(key, dim=1, eps=1e-8).T


def eager_info_nce(p):
    scores = cosines(p.query, p.key) / p.temperature
    own = torch.arange(len(p.query), device=p.query.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def eager_contrastive(p):
    own = torch.eye(len(p.query), dtype=torch.bool, device=p.query.device)
    log_q = (cosines(p.query, p.query) / p.temperature).masked_fill(own, -math.inf).log_softmax(1)
    pairs = (p.target[:, None] == p.target) & ~own
    losses = -log_q.masked_fill(~pairs, 0).sum(1) / pairs.sum(1)
    return losses[pairs.any(1)].mean()


def contrastive_truth(p):
    own = {"query_labels": p.target, "key_labels": p.target, "own_key": 0}
    found = similarity_oracle.similarity(p.query, p.query, target="labels", temperature=p.temperature, **own)
    parts = found["grad_query"], found["grad_key"]
    # Autograd adds the two, each already rounded to the dtype of the features, and rounds the sum.
    both = parts[0] + parts[1]
    return {"loss": found["loss"], "grad_query": both, "stored_query": [x.value for x in (*parts, both)]}


def eager_similarity_kl(p):
    T = p.temperature
    soft = F.softmax(cosines(p.teacher_query, p.teacher_key) / T, -1)
    return T * T * F.kl_div(F.log_softmax(cosines(p.query, p.key) / T, -1), soft, reduction="batchmean")


def similarity_truth(p):
    teacher = {"teacher_query": p.teacher_query, "teacher_key": p.teacher_key}
    return similarity_oracle.similarity(
        p.query, p.key, target="teacher", temperature=p.temperature, scale_by_t2=True, **teacher
    )


def eager_bank(p, normalizer=None, eps=0.0):
    entries, negatives = len(p.bank), p.index.shape[1] - 1
    exponentials = torch.einsum("bkd,bd->bk", p.bank[p.index], p.embedding).div(p.temperature).exp()
    scores = exponentials / (normalizer or entries * exponentials.detach().mean())
    noise = negatives / entries
    kept = noise / (scores[:, 1:] + noise + eps)
    return ((scores[:, 0] / (scores[:, 0] + noise + eps)).log().neg() - kept.log().sum(1)).mean()


def eager_kl(x, z, p):
    T = p.temperature
    soft = F.softmax(x / T, -1) + p.target_eps
    return T**2 * F.kl_div(F.log_softmax(z / T, -1), soft, reduction="sum") / len(z)


def eager_okddip(p):
    mixed = (p.query @ p.key.mT).softmax(-1) @ p.peer_logits
    ce = sum(F.cross_entropy(z, p.target) for z in (*p.peer_logits.unbind(1), p.leader))
    mean = p.peer_logits.mean(1)
    return ce + eager_kl(mixed, p.peer_logits, p) + eager_kl(mean, p.leader, p)


def eager_gated(p):
    mixed = (p.gate[..., None] * p.peer_logits).sum(1)
    ce = sum(F.cross_entropy(z, p.target) for z in (*p.peer_logits.unbind(1), mixed))
    return ce + eager_kl(mixed[:, None].expand_as(p.peer_logits), p.peer_logits, p)


def eager_others(p):
    ce = sum(F.cross_entropy(z, p.target) for z in p.peer_logits.unbind(1))
    count = p.peer_logits.shape[1]
    rest = [torch.cat([p.peer_logits[:, :a], p.peer_logits[:, a + 1 :]], 1).mean(1) for a in range(count)]
    return ce + eager_kl(torch.stack(rest, 1), p.peer_logits, p)


def eager_pairs(p):
    peers = p.peer_logits.unbind(1)
    ce = sum(F.cross_entropy(z, p.target) for z in peers)
    pairs = [eager_kl(x, z, p) for a, z in enumerate(peers) for b, x in enumerate(peers) if a != b]
    return ce + sum(pairs) / (len(peers) - 1)


def eager_attention(p, mix):
    mixed = p.peer_logits if mix == "logits" else F.softmax(p.peer_logits / p.temperature, -1)
    return (p.query @ p.key.mT).softmax(-1) @ mixed


def attention(mix: str) -> Loss:
    def truth(p):
        found = peer_ensemble_oracle.peer_mixture(
            p.peer_logits, query=p.query, key=p.key, grad_mixture=p.upstream, mix=mix, temperature=p.temperature
        )
        return {"loss": found["mixture"], **found}

    return Loss(
        lambda p: kd.peer_attention(p.query, p.key, p.peer_logits, mix=mix, temperature=p.temperature),
        lambda p: eager_attention(p, mix),
        truth,
        ("peer_logits", "query", "key"),
        upstream=lambda p: p.upstream,
    )


def mean_truth(p):
    found = peer_ensemble_oracle.peer_mixture(
        p.peer_logits, grad_mixture=p.upstream[:, :1], mix="probs", temperature=p.temperature
    )
    return {"loss": found["mixture"], **found}


def options(p):
    return {"temperature": p.temperature, "target_eps": p.target_eps}


def peer_truth(weights: str, *tensors: str, **how):
    def truth(p):
        given = {name: getattr(p, name) for name in tensors}
        return peer_ensemble_oracle.peer_ensemble_loss(
            p.peer_logits, p.target, weights=weights, **options(p), **given, **how
        )

    return truth


SIMILARITY_LOSSES = {
    "info_nce": Loss(
        lambda p: kd.info_nce(p.query, p.key, temperature=p.temperature, symmetric=True),
        eager_info_nce,
        lambda p: similarity_oracle.similarity(p.query, p.key, temperature=p.temperature, symmetric=True),
        ("query", "key"),
    ),
    "supervised_contrastive": Loss(
        lambda p: kd.supervised_contrastive(p.query, p.target, temperature=p.temperature),
        eager_contrastive,
        contrastive_truth,
        ("query",),
    ),
    "similarity_kl": Loss(
        lambda p: kd.similarity_kl(p.query, p.key, p.teacher_query, p.teacher_key, temperature=p.temperature),
        eager_similarity_kl,
        similarity_truth,
        ("query", "key"),
    ),
}
BANK_LOSSES = {
    "memory_bank_nce": Loss(
        lambda p: kd.memory_bank_nce(p.embedding, p.bank, p.index, temperature=p.temperature, eps=0.0),
        eager_bank,
        lambda p: memory_bank_oracle.memory_bank_nce(p.embedding, p.bank, p.index, temperature=p.temperature),
        ("embedding",),
    ),
    "memory_bank_nce, given Z": Loss(
        lambda p: kd.memory_bank_nce(p.embedding, p.bank, p.index, temperature=p.temperature, **GIVEN),
        lambda p: eager_bank(p, **GIVEN),
        lambda p: memory_bank_oracle.memory_bank_nce(p.embedding, p.bank, p.index, temperature=p.temperature, **GIVEN),
        ("embedding",),
    ),
}
PEER_LOSSES = {
    "okddip_loss": Loss(
        lambda p: kd.okddip_loss(p.peer_logits, p.leader, p.query, p.key, p.target, **options(p)),
        eager_okddip,
        peer_truth("attention", "leader", "query", "key"),
        ("peer_logits", "leader", "query", "key"),
    ),
    "gated_ensemble_loss": Loss(
        lambda p: kd.gated_ensemble_loss(p.gate, p.peer_logits, p.target, **options(p)),
        eager_gated,
        peer_truth("gate", "gate"),
        ("peer_logits", "gate"),
    ),
    "leave_one_out_loss": Loss(
        lambda p: kd.leave_one_out_loss(p.peer_logits, p.target, **options(p)),
        eager_others,
        peer_truth("others"),
        ("peer_logits",),
    ),
}
PAIR_LOSSES = {
    "leave_one_out_loss, pairwise": Loss(
        lambda p: kd.leave_one_out_loss(p.peer_logits, p.target, pairwise=True, **options(p)),
        eager_pairs,
        peer_truth("others", mix="divergences"),
        ("peer_logits",),
    ),
}
MIXTURES = {
    "peer_attention": attention("logits"),
    "peer_attention, probs": attention("probs"),
    "mean_probabilities": Loss(
        lambda p: kd.mean_probabilities(p.peer_logits, temperature=p.temperature),
        lambda p: F.softmax(p.peer_logits / p.temperature, -1).mean(1),
        mean_truth,
        ("peer_logits",),
        upstream=lambda p: p.upstream[:, 0],
    ),
}
