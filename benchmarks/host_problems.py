"""One problem per CPU kernel on NumPy arrays, a mark before each: what benchmarks.instructions runs under callgrind.

    python benchmarks/host_problems.py LIBRARY INSTRUCTION_SET

LIBRARY is the file of kdkernels._host. It is loaded by itself: the package would bring torch, which takes minutes there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np

ROWS, CLASSES = 64, 1000


def problems(host: ModuleType) -> dict[str, Callable[[], dict]]:
    """Name -> call. Integers are those of the enums in csrc/row_loss.h, csrc/similarity.h and csrc/peer_ensemble.h."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, spread: float = 1.0) -> np.ndarray:
        return (rng.normal(size=shape) * spread).astype(np.float32)

    student, teacher = normal(ROWS, CLASSES, spread=3), normal(ROWS, CLASSES, spread=3)
    long_rows = normal(2, 2, 32000, spread=3)
    target = rng.integers(0, CLASSES, ROWS)
    query, key, teacher_query, teacher_key = (normal(64, 128) for _ in range(4))
    labels = rng.integers(0, 8, 64)
    embedding, bank, index = normal(4, 128), normal(500, 128), rng.integers(0, 500, (4, 513))
    peers, leader, gate = normal(4, 3, CLASSES, spread=3), normal(4, CLASSES, spread=3), normal(4, 3)
    peer_query, peer_key = normal(4, 3, 32), normal(4, 3, 32)
    images = normal(2, 19, 64 * 64, spread=3)
    probabilities = np.full((ROWS, CLASSES), 1 / CLASSES, np.float32)
    of_label = {"label_on": 0.9, "label_off": 0.1 / (CLASSES - 1)}

    def rows(student: np.ndarray = student, teacher: np.ndarray = teacher, **options) -> Callable[[], dict]:
        return lambda: host.row_loss(student, teacher, **{"temperature": 4.0, **options})

    def label_rows(*logits: np.ndarray, **options) -> Callable[[], dict]:
        return rows(*logits, source=3, divergence=3, temperature=1.0, **options)

    def half(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float16)

    def similarity(**options) -> Callable[[], dict]:
        return lambda: host.similarity(query, key, temperature=0.1, **options)

    def ensemble(**options) -> Callable[[], dict]:
        return lambda: host.peer_ensemble_loss(peers, target[:4], temperature=3.0, **options)

    attention = {"weights": 0, "leader": leader, "query": peer_query, "key": peer_key}
    return {
        "softened_kl, forward": rows(),
        "softened_kl, forward, float16": rows(half(student), half(teacher)),
        "softened_kl, forward, bfloat16": rows(bfloat16(student), bfloat16(teacher)),
        "softened_kl, forward, float64": rows(student.astype(float), teacher.astype(float)),
        "softened_kl, forward, 2 x 32000": rows(*long_rows),
        "softened_kl, forward, both gradients": rows(grad_teacher=True),
        "softened_kl, reverse": rows(divergence=1),
        "softened_kl, jsd": rows(divergence=2),
        "soft_cross_entropy": rows(divergence=3),
        "softened_kl, tvd": rows(divergence=4),
        "softened_kl, skew": rows(skew=0.1),
        "softened_kl, standardize": rows(standardize=True),
        "softened_kl, shared classes": rows(shared_classes=900),
        "kd_loss": rows(target=target, ce_weight=1.0, label_smoothing=0.1),
        "kd_loss, probabilities": rows(target_probs=probabilities, ce_weight=1.0),
        "label_smoothing_loss": rows(source=3, divergence=3, temperature=1.0, target=target, source_options=of_label),
        "joint_cross_entropy": label_rows(target=target[::4] // 4, transforms=4),
        "class_range_cross_entropy": label_rows(
            student[:, 200:400], teacher[:, 200:400], target=200 + target // 5, first_class=200
        ),
        "pseudo_labels": lambda: host.pseudo_labels(student),
        "pseudo_labels, images": lambda: host.pseudo_labels(images, dim=1),
        "dkpp_loss": rows(source=4, divergence=3, source_options={"seed": 1}),
        "decoupled_kl": rows(source=6, target=target, ce_weight=1.0, kl_weight=8.0),
        "dynamic_temperature_kl": rows(
            source=5, target=target, source_options={**of_label, "adjustment": 1, "statistic": 2, "temperature_slope": 1.0}
        ),
        "multi_head_kl": lambda: host.multi_head_kl(
            [student[:, :100], *[student[:, :400]] * 3], [teacher[:, :100], *[teacher[:, :400]] * 3]
        ),
        "info_nce": similarity(),
        "info_nce, symmetric": similarity(symmetric=True),
        "supervised_contrastive": similarity(target=1, query_labels=labels, key_labels=labels, own_key=0),
        "similarity_kl": similarity(target=2, teacher_query=teacher_query, teacher_key=teacher_key),
        "similarity_rank": lambda: host.similarity_rank(query, key, np.arange(64)),
        "memory_bank_nce": lambda: host.memory_bank_nce(embedding, bank, index, temperature=20.0),
        "okddip_loss": ensemble(**attention),
        "gated_ensemble_loss": ensemble(weights=1, gate=gate),
        "leave_one_out_loss": ensemble(weights=2),
        "mean_probabilities": lambda: host.peer_mixture(peers, mix=1),
    }


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Its bits, cut off and not rounded."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)


def mark() -> None:
    """A call of libc that nobody else makes; callgrind writes out its counts before it."""
    os.getppid()


def load(library: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_host", library)
    host = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host)
    return host


def main() -> None:
    library, instruction_set = sys.argv[1:]
    host = load(library)
    host.set_isa(instruction_set)
    calls = problems(host)
    print("\n".join(calls))
    for call in calls.values():
        mark()
        call()
    mark()


if __name__ == "__main__":
    main()
