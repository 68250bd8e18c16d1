"""Every public function with good arguments: small ones, for tests of what all of them have in common."""

import inspect

import torch
from helpers import double, draw, labels

import kdkernels as kd

BY_NAME = {
    "student": draw(4, 3),
    "teacher": draw(4, 3, seed=1),
    "students": [draw(4, 3), draw(4, 2, seed=4)],
    "teachers": [draw(4, 3, seed=1), draw(4, 2, seed=5)],
    "logits": draw(4, 3),
    "joint_logits": draw(16, 12),
    "start": 0,
    "stop": 3,
    "target": labels(4, classes=3),
    "query": draw(4, 3),
    "key": draw(4, 3, seed=1),
    "positive": labels(4, classes=4),
    "student_query": draw(4, 3),
    "student_key": draw(4, 3, seed=1),
    "teacher_query": draw(4, 3, seed=2),
    "teacher_key": draw(4, 3, seed=3),
    "features": draw(4, 3),
    "labels": labels(4, classes=2),
    "rank": labels(4, classes=3),
    "ratio": 0.5,
    "embedding": draw(4, 3, scale=0.3),
    "bank": draw(7, 3, scale=0.3),
    "index": labels(4, 5, classes=7),
    "peer_logits": draw(4, 2, 3),
    "leader_logits": draw(4, 3, seed=3),
    "branch_logits": draw(4, 2, 3),
    "gate": draw(4, 2).softmax(1),
}
PEER_PAIR = {"query": draw(4, 2, 5), "key": draw(4, 2, 5, seed=1)}
# What a function asks for beyond that.
OWN = {
    "cwtm_loss": {"teacher": BY_NAME["teacher"]},
    "dkpp_loss": {"permutation": draw(4, 3, seed=2).argsort(1)},
    "info_nce": {"positive": BY_NAME["positive"]},
    "okddip_loss": PEER_PAIR,
    "peer_attention": {**PEER_PAIR, "mix": "probs"},
}


def good(function):
    """By the names of the parameters without a default."""
    parameters = inspect.signature(getattr(kd, function)).parameters.values()
    needed = [its.name for its in parameters if its.default is its.empty]
    own = OWN.get(function, {})
    return {name: own[name] if name in own else BY_NAME[name] for name in needed} | own


GOOD = {function: good(function) for function in kd.functional.__all__}


def call(function, **changed):
    """With good arguments, but for those changed; all outputs in one list."""
    output = getattr(kd, function)(**{**GOOD[function], **changed})
    if isinstance(output, torch.Tensor):
        return [output]
    return [each for part in output for each in (part.values() if isinstance(part, dict) else [part])]


def doubles(arguments):
    """The same in float64."""
    return {name: double(value) for name, value in arguments.items()}
