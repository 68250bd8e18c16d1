"""Every public function with good arguments: small ones, for tests of what all of them have in common."""

import torch
from helpers import double, draw, labels

import kdkernels as kd

ROWS = dict(student=draw(4, 3), teacher=draw(4, 3, seed=1))
TARGET = dict(target=labels(4, classes=3))
PAIR = dict(query=draw(4, 3), key=draw(4, 3, seed=1))
PEERS = dict(peer_logits=draw(4, 2, 3))
PEER_PAIR = dict(query=draw(4, 2, 5), key=draw(4, 2, 5, seed=1))

GOOD = {
    "cwtm_loss": {**ROWS, **TARGET},
    "dkpp_loss": {**ROWS, "permutation": draw(4, 3, seed=2).argsort(1)},
    "dynamic_temperature_kl": {**ROWS, **TARGET},
    "gated_ensemble_loss": dict(gate=draw(4, 2).softmax(1), branch_logits=draw(4, 2, 3), **TARGET),
    "info_nce": {**PAIR, "positive": labels(4, classes=4)},
    "kd_loss": {**ROWS, **TARGET},
    "label_smoothing_loss": dict(student=ROWS["student"], **TARGET),
    "leave_one_out_loss": {**PEERS, **TARGET},
    "logit_rank": dict(logits=ROWS["student"], **TARGET),
    "mean_probabilities": PEERS,
    "memory_bank_nce": dict(embedding=draw(4, 3, scale=0.3), bank=draw(7, 3, scale=0.3), index=labels(4, 5, classes=7)),
    "okddip_loss": {**PEERS, "leader_logits": draw(4, 3, seed=3), **PEER_PAIR, **TARGET},
    "peer_attention": {**PEERS, **PEER_PAIR, "mix": "probs"},
    "select_trusted_rows": dict(rank=labels(4, classes=3), ratio=0.5),
    "similarity_kl": dict(
        zip(("student_query", "student_key", "teacher_query", "teacher_key"), (draw(4, 3, seed=s) for s in range(4)))
    ),
    "similarity_rank": {**PAIR, "positive": labels(4, classes=4)},
    "soft_cross_entropy": ROWS,
    "softened_kl": ROWS,
    "supervised_contrastive": dict(features=draw(4, 3), labels=labels(4, classes=2)),
    "virtual_teacher_loss": dict(student=ROWS["student"], **TARGET),
}


def call(function, **changed):
    """With good arguments, but for those changed; all outputs in one list."""
    output = getattr(kd, function)(**{**GOOD[function], **changed})
    if isinstance(output, torch.Tensor):
        return [output]
    return [each for part in output for each in (part.values() if isinstance(part, dict) else [part])]


def doubles(arguments):
    """The same in float64."""
    return {name: double(value) for name, value in arguments.items()}
