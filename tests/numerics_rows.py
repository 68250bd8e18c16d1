"""Row losses and the regimes in which numerics.py measures them: ours, the eager formula, and the oracle's truth."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import row_oracle
import torch
import torch.nn.functional as F
from helpers import draw, labels
from numerics import Loss

import kdkernels as kd

inf = math.inf
SMOOTHING = 0.1
SKEW = 0.1
VIRTUAL = {"correct_prob": 0.99, "temperature": 20.0}


class Rows(NamedTuple):
    student: torch.Tensor  # [N, C] logits
    teacher: torch.Tensor  # [N, C] logits
    target: torch.Tensor  # [N] labels
    temperature: float = 4.0
    row_temperature: torch.Tensor | None = None  # [N], where ours has computed one


def usual(dtype, rows=8, classes=1000, scale=3.0, temperature=4.0):
    return Rows(
        draw(rows, classes, scale=scale, dtype=dtype),
        draw(rows, classes, seed=1, scale=scale, dtype=dtype),
        labels(rows, classes=classes),
        temperature,
    )


def with_teacher(teacher: Callable):
    def make(dtype):
        problem = usual(dtype, classes=100)
        return problem._replace(teacher=teacher(problem).to(dtype))

    return make


def nearly_equal(dtype):
    """Every other logit of the student is the next number of bfloat16."""
    problem = usual(torch.bfloat16)
    student = problem.teacher.clone()
    student[:, ::2] *= 1 + torch.finfo(torch.bfloat16).eps
    return problem._replace(student=student.to(dtype), teacher=problem.teacher.to(dtype))


def without(student: bool, teacher: bool):
    """In every other row a class that one of the two, or both, exclude; it is no label. Where only one does the loss of that
    row may be infinite; its neighbours have gradients to compare."""

    def make(dtype):
        problem = usual(dtype, classes=100)
        absent = (problem.target + 1) % 100
        for logits, excluded in ((problem.student, student), (problem.teacher, teacher)):
            logits[torch.arange(0, 8, 2), absent[::2]] = -inf if excluded else 0
        return problem

    return make


REGIMES = {
    "logits of 3": usual,
    "logits of 1e4": lambda dtype: usual(dtype, classes=100, scale=3e3, temperature=1.0),
    "one-hot teacher, logits of 1e4": with_teacher(lambda p: 1e4 * F.one_hot(p.target, 100)),
    "one-hot teacher, -inf": with_teacher(lambda p: torch.where(F.one_hot(p.target, 100) > 0, 0, -inf)),
    "equal rows": with_teacher(lambda p: p.student),
    "next to equal rows": nearly_equal,
    "T = 0.05": lambda dtype: usual(dtype, temperature=0.05),
    "T = 100": lambda dtype: usual(dtype, temperature=100.0),
    "1 class": lambda dtype: usual(dtype, classes=1),
    "2 classes": lambda dtype: usual(dtype, classes=2),
    "262,144 classes": lambda dtype: usual(dtype, rows=2, classes=262144),
    "-inf in the student": without(True, False),
    "-inf in the teacher": without(False, True),
    "-inf in both": without(True, True),
}


def of_probabilities(make: Callable, kind: str):
    """The same rows, their teacher as probabilities or as logarithms of them."""

    def given(dtype):
        problem = make(dtype)
        log_p = F.log_softmax(problem.teacher.double() / problem.temperature, -1)
        return problem._replace(teacher=(log_p.exp() if kind == "probs" else log_p).to(dtype))

    return given


# Stored probabilities are not the student's own, to which "equal rows" would be equal.
PROBABILITY_REGIMES = {
    kind: {name: of_probabilities(make, kind) for name, make in REGIMES.items() if name != "equal rows"}
    for kind in ("probs", "log_probs")
}
# Two classes become the same two numbers, whatever they were: no gradient is left but that of the 1e-7.
STANDARDIZED_REGIMES = {name: make for name, make in REGIMES.items() if name != "2 classes"}
# Finite logits: the cosine of "flsw" is of all of them. At T = 0.05 all of its temperatures would be clamped.
DYNAMIC_REGIMES = {name: make for name, make in REGIMES.items() if "inf" not in name and name != "T = 0.05"}


def divergence(name: str, eager: Callable, of_logits: Callable = lambda logits: logits, **how) -> Loss:
    how = {"divergence": name, "reduction": "none", **how}

    def ours(p):
        return kd.softened_kl(p.student, p.teacher, temperature=p.temperature, **how)

    def truth(p):
        return row_oracle.row_loss(p.student, p.teacher, temperature=p.temperature, **how)

    def plain(p):
        teacher, student = of_logits(p.teacher), of_logits(p.student)
        log_p, log_q = F.log_softmax(teacher / p.temperature, -1), F.log_softmax(student / p.temperature, -1)
        return eager(log_p, log_q).sum(-1) * p.temperature**2

    return Loss(ours, plain, truth, ("student", "teacher"))


def of_teacher(divergence: str, kind: str) -> Loss:
    how = {"divergence": divergence, "reduction": "none"}

    def ours(p):
        return kd.softened_kl(p.student, p.teacher, temperature=p.temperature, teacher_kind=kind, **how)

    def eager(p):
        log_q, probs = F.log_softmax(p.student / p.temperature, -1), p.teacher if kind == "probs" else p.teacher.exp()
        own = F.kl_div(log_q, probs, reduction="none") if divergence == "forward" else -probs * log_q
        return own.sum(-1) * p.temperature**2

    def truth(p):
        return row_oracle.row_loss(p.student, p.teacher, temperature=p.temperature, source=kind, **how)

    return Loss(ours, eager, truth, ("student", "teacher"))


def eager_jsd(log_p, log_q):
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)) / 2


def eager_skewed(log_p, log_q):
    """KL(p || skew p + (1 - skew) q)."""
    log_m = torch.logaddexp(log_p + math.log(SKEW), log_q + math.log(1 - SKEW))
    return log_p.exp() * (log_p - log_m)


def eager_standardized(logits):
    deviation = logits.std(-1, keepdim=True) if logits.shape[-1] > 1 else 0  # of one number it would be NaN
    return (logits - logits.mean(-1, keepdim=True)) / (deviation + 1e-7)


def eager_kd(p, target=None):
    soft = F.softmax(p.teacher / p.temperature, -1)
    kl = F.kl_div(F.log_softmax(p.student / p.temperature, -1), soft, reduction="none").sum(-1)
    ce = F.cross_entropy(p.student, p.target if target is None else target, reduction="none")
    return ce + kl * p.temperature**2


def mixed_labels(p):
    """Of two classes, as mixup makes them; exact in every dtype. A class that is excluded is none of them."""
    student, target = torch.as_tensor(p.student), torch.as_tensor(p.target)
    one, other = (F.one_hot(y, student.shape[1]).to(student.dtype) for y in (target, target.flip(0)))
    return torch.where(student == -inf, 0, 0.75 * one + 0.25 * other)


def eager_mixed(p):
    return eager_kd(p, mixed_labels(p))


def permutation(shape, device="cpu"):
    return draw(*shape, seed=2).argsort(-1).to(device)


def eager_dkpp(p):
    soft = F.softmax(p.teacher / p.temperature, -1).gather(-1, permutation(p.student.shape, p.student.device))
    return F.cross_entropy(p.student / p.temperature, soft, reduction="none") * p.temperature**2


def eager_decoupled(p):
    """As its authors write it."""
    T, is_label = p.temperature, F.one_hot(p.target, p.student.shape[1]).bool()

    def binary(logits):
        probs = F.softmax(logits / T, -1)
        return torch.stack([(probs * is_label).sum(-1), (probs * ~is_label).sum(-1)], -1)

    tckd = F.kl_div(binary(p.student).log(), binary(p.teacher), reduction="none").sum(-1)
    log_q, probs = (f(x / T - 1000.0 * is_label, -1) for f, x in ((F.log_softmax, p.student), (F.softmax, p.teacher)))
    return T**2 * (tckd + 8 * F.kl_div(log_q, probs, reduction="none").sum(-1))


def exchanged(p):
    teacher, largest, row = p.teacher.clone(), p.teacher.argmax(-1), torch.arange(len(p.teacher))
    teacher[row, largest], teacher[row, p.target] = p.teacher[row, p.target], p.teacher[row, largest]
    return teacher


def dynamic(adjust: str, **how) -> Loss:
    """The truth goes on from the temperatures that ours returns."""
    how = {"adjust": adjust, "reduction": "none", **how}

    def ours(p):
        return kd.dynamic_temperature_kl(p.student, p.teacher, p.target, temperature=p.temperature, **how)

    def complete(p):
        found = kd.dynamic_temperature_kl(
            p.student, p.teacher, p.target, temperature=p.temperature, return_parts=True, **how
        )
        return p._replace(row_temperature=found[1]["temperature"])

    def eager(p):
        T = p.row_temperature[:, None].to(p.student.dtype)
        soft = F.softmax((exchanged(p) if adjust == "ps" else p.teacher) / T, -1)
        if adjust == "lsr":
            smoothed = torch.full_like(soft, SMOOTHING / soft.shape[1])
            smoothed.scatter_add_(1, p.target[:, None], torch.full_like(smoothed[:, :1], 1 - SMOOTHING))
            soft = torch.where(p.teacher.argmax(-1, keepdim=True) == p.target[:, None], soft, smoothed)
        return F.kl_div(F.log_softmax(p.student / T, -1), soft, reduction="none").sum(-1) * T[:, 0] ** 2

    def truth(p):
        return row_oracle.dynamic_temperature_kl(p.student, p.teacher, p.target, row_temperature=p.row_temperature, **how)

    return Loss(ours, eager, truth, ("student",), complete)


def eager_virtual(p):
    classes, correct = p.student.shape[1], VIRTUAL["correct_prob"]
    u = torch.full_like(p.student, (1 - correct) / (classes - 1)).scatter(1, p.target[:, None], correct)
    kl = F.kl_div(F.log_softmax(p.student, -1), F.softmax(u / VIRTUAL["temperature"], -1), reduction="none").sum(-1)
    return F.cross_entropy(p.student, p.target, reduction="none") + kl


def virtual_truth(p):
    classes, correct = p.student.shape[1], VIRTUAL["correct_prob"]
    others = np.exp(((1 - correct) / (classes - 1) - correct) / VIRTUAL["temperature"])
    on = 1 / (1 + (classes - 1) * others)
    return row_oracle.label_loss(p.student, p.target, on=on, off=on * others, ce_weight=1.0, reduction="none")


def images(p):
    """Transforms of a row's image, and the labels of the images, where rows and classes are those of transforms."""
    rows, classes = p.student.shape
    transforms = math.gcd(4, rows, classes)
    return transforms, p.target[::transforms] % (classes // transforms)


def eager_joint(p):
    transforms, target = images(p)
    joint = transforms * target[:, None] + torch.arange(transforms, device=target.device)
    return F.cross_entropy(p.student, joint.flatten(), reduction="none")


def ours_joint(p):
    transforms, target = images(p)
    return kd.joint_cross_entropy(p.student, target, transforms=transforms, reduction="none")


def joint_truth(p):
    transforms, target = images(p)
    return row_oracle.joint_cross_entropy(p.student, target, transforms=transforms, reduction="none")


def half_of_classes(p):
    """Labels in the middle half of the classes, and where that is."""
    classes = p.student.shape[1]
    start, stop = classes // 4, classes - classes // 4
    return start + p.target % (stop - start), start, stop


def eager_class_range(p):
    target, start, stop = half_of_classes(p)
    return F.cross_entropy(p.student[:, start:stop], target - start, reduction="none")


def eager_cwtm(p):
    confidence = F.softmax(p.teacher, -1).amax(-1)
    return F.cross_entropy(p.student, p.target, reduction="none") * confidence / confidence.mean()


def smoothed_truth(p):
    off = SMOOTHING / p.student.shape[1]
    return row_oracle.label_loss(p.student, p.target, on=1 - SMOOTHING + off, off=off, relative=False, reduction="none")


def two_heads(student, teacher, wider: Callable):
    """Rows as one head, and with three more classes of logit 0 as another: (students, teachers)."""
    return [student, wider(student)], [teacher, wider(teacher)]


def heads_of_rows(loss: Callable) -> Callable:
    """A number per row: the loss of its two heads alone."""

    def wider(logits):
        return F.pad(logits, (0, 3))

    def of(p):
        rows = zip(p.student[:, None], p.teacher[:, None])
        return torch.stack([loss(*two_heads(student, teacher, wider), p.temperature) for student, teacher in rows])

    return of


def eager_heads(students, teachers, T):
    return sum(
        F.kl_div(F.log_softmax(s / T, -1), F.softmax(t / T, -1), reduction="batchmean") * T * T
        for s, t in zip(students, teachers)
    )


def heads_truth(p):
    """The student's gradient is the sum of those of the heads, each of which is stored."""
    heads = two_heads(p.student, p.teacher, lambda logits: np.pad(logits, [(0, 0), (0, 3)]))
    rows = [
        row_oracle.multi_head_kl(*([logits[row : row + 1] for logits in side] for side in heads), temperature=p.temperature)
        for row in range(len(p.student))
    ]
    loss = row_oracle.Estimate(*map(np.concatenate, zip(*(row["loss"] for row in rows))))
    first, second = (
        row_oracle.Estimate(*map(np.concatenate, zip(*(row["grad_students"][at] for row in rows)))) for at in (0, 1)
    )
    second = row_oracle.Estimate(*(each[:, : p.student.shape[1]] for each in second))
    total = first + second
    return {"loss": loss, "grad_student": total, "stored_student": [first.value, second.value, total.value]}


LOSSES = {
    "softened_kl, forward": divergence("forward", lambda p, q: F.kl_div(q, p.exp(), reduction="none")),
    "softened_kl, reverse": divergence("reverse", lambda p, q: F.kl_div(p, q.exp(), reduction="none")),
    "softened_kl, jsd": divergence("jsd", eager_jsd),
    "softened_kl, skewed forward": divergence("forward", eager_skewed, skew=SKEW),
    "softened_kl, skewed reverse": divergence("reverse", lambda p, q: eager_skewed(q, p), skew=SKEW),
    "softened_kl, tvd": divergence("tvd", lambda p, q: (p.exp() - q.exp()).abs() / 2),
    "soft_cross_entropy": divergence("cross_entropy", lambda p, q: -p.exp() * q)._replace(
        ours=lambda p: kd.soft_cross_entropy(p.student, p.teacher, temperature=p.temperature, reduction="none")
    ),
    "kd_loss": Loss(
        lambda p: kd.kd_loss(p.student, p.teacher, p.target, temperature=p.temperature, reduction="none"),
        eager_kd,
        lambda p: row_oracle.row_loss(
            p.student, p.teacher, target=p.target, temperature=p.temperature, ce_weight=1.0, reduction="none"
        ),
        ("student", "teacher"),
    ),
    "kd_loss of probabilities": Loss(
        lambda p: kd.kd_loss(p.student, p.teacher, mixed_labels(p), temperature=p.temperature, reduction="none"),
        eager_mixed,
        lambda p: row_oracle.row_loss(
            p.student,
            p.teacher,
            target_probs=mixed_labels(p),
            temperature=p.temperature,
            ce_weight=1.0,
            reduction="none",
        ),
        ("student", "teacher"),
    ),
    "dkpp_loss": Loss(
        lambda p: kd.dkpp_loss(
            p.student,
            p.teacher,
            permutation=permutation(p.student.shape, p.student.device),
            temperature=p.temperature,
            reduction="none",
        ),
        eager_dkpp,
        lambda p: row_oracle.dkpp_loss(
            p.student, p.teacher, permutation(p.student.shape).numpy(), temperature=p.temperature, reduction="none"
        ),
        ("student",),
    ),
    "decoupled_kl": Loss(
        lambda p: kd.decoupled_kl(p.student, p.teacher, p.target, temperature=p.temperature, reduction="none"),
        eager_decoupled,
        lambda p: row_oracle.decoupled_kl(p.student, p.teacher, p.target, temperature=p.temperature, reduction="none"),
        ("student", "teacher"),
    ),
    "dynamic_temperature_kl": dynamic("ps", mode="const"),
    "virtual_teacher_loss": Loss(
        lambda p: kd.virtual_teacher_loss(p.student, p.target, **VIRTUAL, reduction="none"),
        eager_virtual,
        virtual_truth,
        ("student",),
    ),
    "label_smoothing_loss": Loss(
        lambda p: kd.label_smoothing_loss(p.student, p.target, smoothing=SMOOTHING, reduction="none"),
        lambda p: F.cross_entropy(p.student, p.target, label_smoothing=SMOOTHING, reduction="none"),
        smoothed_truth,
        ("student",),
    ),
    "joint_cross_entropy": Loss(ours_joint, eager_joint, joint_truth, ("student",)),
    "class_range_cross_entropy": Loss(
        lambda p: kd.class_range_cross_entropy(p.student, *half_of_classes(p), reduction="none"),
        eager_class_range,
        lambda p: row_oracle.class_range_cross_entropy(p.student, *half_of_classes(p), reduction="none"),
        ("student",),
    ),
    "cwtm_loss": Loss(
        lambda p: kd.cwtm_loss(p.student, p.target, p.teacher, reduction="none"),
        eager_cwtm,
        lambda p: row_oracle.label_loss(
            p.student, p.target, teacher=p.teacher, relative=False, normalize=True, reduction="none"
        ),
        ("student",),
    ),
    "multi_head_kl": Loss(
        heads_of_rows(lambda students, teachers, T: kd.multi_head_kl(students, teachers, temperature=T)),
        heads_of_rows(eager_heads),
        heads_truth,
        ("student",),
    ),
}
STANDARDIZED_LOSSES = {
    "softened_kl, standardized": divergence(
        "forward", lambda p, q: F.kl_div(q, p.exp(), reduction="none"), eager_standardized, standardize=True
    )
}
PROBABILITY_LOSSES = {
    kind: {
        f"softened_kl of {kind}": of_teacher("forward", kind),
        f"soft_cross_entropy of {kind}": of_teacher("cross_entropy", kind),
    }
    for kind in PROBABILITY_REGIMES
}
DYNAMIC_LOSSES = {
    "dynamic_temperature_kl, flsw": dynamic("lsr", mode="flsw", smoothing=SMOOTHING),
    "dynamic_temperature_kl, cwsm": dynamic("none", mode="cwsm", beta=0.1),
}
