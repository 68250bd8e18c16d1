"""The mathematics of the row losses (csrc/row_loss.h) in float64 NumPy, written from the formulas and not from any kernel.

Classes are the last axis. Beside each value stands its rounding scale: what one rounding error of the arithmetic type,
made in every logarithm and every product, can move it by. A kernel in float32 is right if it stays within a small number
of such errors (close()).
"""

from typing import NamedTuple

import numpy as np

SOURCES = ("logits", "log_probs", "probs")
DIVERGENCES = ("forward", "reverse", "jsd", "cross_entropy", "tvd")
REDUCTIONS = ("none", "sum", "batchmean", "elementmean")
UNDERFLOW = 2.0**-101  # float32 kernels take probabilities below 2^-125 for 0: in units of its precision


class Estimate(NamedTuple):
    value: np.ndarray
    scale: np.ndarray  # of a rounding error, in units of the machine precision

    def __add__(self, other):
        return Estimate(self.value + other.value, self.scale + other.scale)

    def __mul__(self, factor):
        return Estimate(self.value * factor, self.scale * np.abs(factor))

    def where(self, condition):
        return Estimate(np.where(condition, self.value, 0), np.where(condition, self.scale, 0))


def total(x):
    """Sum over the classes. In float64 alone, many equal terms make many equal errors, more than a kernel's blocks do."""
    return x.sum(-1, keepdims=True, dtype=np.longdouble).astype(np.float64)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(total(np.exp(shifted)))


def times(p, factor):
    """p * factor, 0 where p is 0."""
    return p * np.where(p == 0, 0, factor)


def standardized(logits):
    """(z - mean) / (s + 1e-7), s + 1e-7 and the sample standard deviation s [rows, 1]. Classes of -inf are no part of mean and
    s. Shifted by the maximum, so that a constant row has s = 0."""
    present = logits != -np.inf
    count = present.sum(-1, keepdims=True)
    shifted = np.where(present, logits - logits.max(-1, keepdims=True), 0)
    mean = total(shifted) / count
    distance = np.where(present, shifted - mean, 0)
    deviation = np.where(count > 0, np.sqrt(total(distance**2) / np.maximum(count - 1, 1)), np.nan)
    unit = deviation + 1e-7
    return np.where(present, distance / unit, -np.inf), unit, deviation


def by_raw_logits(gradient, logits):
    """The gradient by logits, from that by the standardized ones: (g - mean(g)) / (s + 1e-7) - z sum(g z) / (s (count - 1)); 0
    where s = 0."""
    z, unit, deviation = standardized(logits)
    present = logits != -np.inf
    count = present.sum(-1, keepdims=True)
    z, g, noise = (np.where(present, x, 0) for x in (z, *gradient))

    def along(sum):
        return np.where(deviation == 0, 0, sum / (deviation * np.maximum(count - 1, 1)))

    value = (g - total(g) / count) / unit - z * along(total(g * z))
    scale = (noise + total(noise) / count) / unit + np.abs(z) * along(total((noise + np.abs(g)) * np.abs(z)))
    zero = (deviation == 0) | (~present & (count > 0))
    return Estimate(*(np.where(zero, 0, x) for x in (value, scale)))


def soft_rows(student, teacher, temperature, source, divergence, beta, eps, skew=0.0, standardize=False, parts=0.0):
    """D(p, q) per row, and its gradients by student and teacher; temperature [rows, 1]. `parts`: what a kernel adds and
    subtracts again on its way to p."""
    if standardize:
        raw = student, teacher
        student, teacher = standardized(student)[0], standardized(teacher)[0]
    log_q = log_softmax(student / temperature)
    q = np.exp(log_q)
    made = {"logits": lambda: np.exp(log_softmax(teacher / temperature)), "log_probs": lambda: np.exp(teacher)}
    made = made.get(source, lambda: teacher)()
    p = made + eps
    log_p = np.log(p)
    if eps == 0 and source != "probs":  # exact also where the probability underflows
        log_p = log_softmax(teacher / temperature) if source == "logits" else teacher
    size = 1 + sum(np.abs(np.where(np.isfinite(x), x, 0)) for x in (log_p, log_q))
    noise = (p + q + parts + UNDERFLOW) * size**2
    doubt = 0.0  # of the derivative by q, times q

    def log_mixture(share):
        """Of share p + (1 - share) q."""
        return np.logaddexp(np.log(share) + log_p, np.log1p(-share) + log_q)

    if divergence == "cross_entropy":
        value, by_q, by_p = -times(p, log_q), -times(p, 1 / q), -log_q
    elif divergence == "forward" and skew:
        log_m = log_mixture(skew)
        share = np.where(p == 0, 0, np.exp(log_p - log_m))  # of p in m; 1 / m may overflow
        value, by_q, by_p = times(p, log_p - log_m), -(1 - skew) * share, log_p - log_m + 1 - skew * share
    elif divergence == "forward":
        value, by_q, by_p = times(p, log_p - log_q), -times(p, 1 / q), log_p - log_q + 1
    elif divergence == "reverse" and skew:
        log_m = log_mixture(1 - skew)
        share = np.where(q == 0, 0, np.exp(log_q - log_m))
        value, by_q, by_p = times(q, log_q - log_m), log_q - log_m + 1 - skew * share, -(1 - skew) * share
    elif divergence == "reverse":
        value, by_q, by_p = times(q, log_q - log_p), log_q - log_p + 1, -times(q, 1 / p)
    elif divergence == "tvd":
        distance = np.abs(p - q)
        value, by_q, by_p = distance / 2, np.sign(q - p) / 2, np.sign(p - q) / 2
        # A sign is in doubt where the distance is a rounding. Equal rows have no gradient whatever is rounded.
        equal = (distance == 0).all(-1, keepdims=True)
        doubt = np.where(equal | (noise * (p + q) == 0), 0, noise * (p + q) / distance)
    else:
        log_m = log_mixture(beta)
        left = times(beta * p, log_p - log_m)
        right = times((1 - beta) * q, log_q - log_m)
        value, by_q, by_p = left + right, times(1 - beta, log_q - log_m), times(beta, log_p - log_m)

    plain = not skew
    q_by_q = -p if divergence in ("forward", "cross_entropy") and plain else times(q, by_q)
    made_by_made = times(made, by_p)
    if divergence == "reverse" and eps == 0 and plain:
        made_by_made = -q  # also where p underflows
    grad_student = (q_by_q - q * total(q_by_q)) / temperature
    if source == "logits":
        grad_teacher = (made_by_made - made * total(made_by_made)) / temperature
    elif source == "log_probs":
        grad_teacher = made_by_made
    else:
        grad_teacher = np.where(p == 0, 0, by_p)

    spread = noise + doubt + times(p + q, total(noise + doubt))  # a doubt may be infinite
    by_teacher = {"logits": spread / temperature, "log_probs": spread}.get(source, spread / np.where(p == 0, 1, p))
    gradients = Estimate(grad_student, spread / temperature), Estimate(grad_teacher, by_teacher)
    if standardize:
        gradients = [by_raw_logits(gradient, logits) for gradient, logits in zip(gradients, raw)]
    return Estimate(total(value)[..., 0], noise.sum(-1)), *gradients


def one_hot(target, classes):
    return (np.arange(classes) == target[:, None]).astype(np.float64)


def hard_rows(student, probabilities, smoothing):
    """Cross entropy per row with a distribution over the classes, of any sum, and its gradient."""
    log_q = log_softmax(student)
    wanted = (1 - smoothing) * probabilities + smoothing / student.shape[-1]
    mass = np.abs(wanted).sum(-1, keepdims=True)
    size = 1 + np.abs(np.where(np.isfinite(log_q), log_q, 0))
    q = np.exp(log_q)
    noise = (np.abs(wanted) + mass * (q + UNDERFLOW)) * size
    by_sums = q * mass * total(q * size)  # all of q is divided by the sum of its terms, and multiplied by that of the target's
    return (
        Estimate(-total(times(wanted, log_q))[..., 0], noise.sum(-1) + mass[..., 0] * size.max(-1)),
        Estimate(q * total(wanted) - wanted, noise + by_sums),
    )


def widened(gradient, logits):
    """With 0 for the classes that are not compared."""
    more = [(0, 0), (0, logits.shape[1] - gradient.value.shape[1])]
    return Estimate(*(np.pad(x, more) for x in gradient))


def rowwise(estimate, factor, included):
    """[rows] or [rows, C] numbers times one factor per row, 0 in the rows that are not included."""
    shape = (-1,) + (1,) * (estimate.value.ndim - 1)
    return (estimate * factor.reshape(shape)).where(included.reshape(shape))


@np.errstate(all="ignore")
def row_loss(
    student,  # [rows, C]
    teacher,  # [rows, C]; with shared_classes of any other width
    *,
    source="logits",
    divergence="forward",
    reduction="batchmean",
    temperature=1.0,
    beta=0.5,
    skew=0.0,
    standardize=False,
    shared_classes=None,
    target_eps=0.0,
    scale_by_t2=True,
    kl_weight=1.0,
    ce_weight=0.0,
    label_smoothing=0.0,
    ignore_index=-100,
    target=None,  # [rows]
    target_probs=None,  # [rows, C]: in place of labels
    target_parts=0.0,  # [rows, C]: see soft_rows
    needs_label=False,  # rows without a label do not count in the soft term either
    mask=None,  # [rows]
    row_weight=None,  # [rows]
    row_temperature=None,  # [rows]
    groups=1,
    denominator=None,  # a number, or [groups]: what means divide by instead of counted rows
):
    """dict of Estimates: loss [losses], parts [2, losses], grad_student and grad_teacher [rows, C]."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    rows, classes = student.shape
    shared = shared_classes or classes
    temperature = temperature if row_temperature is None else row_temperature
    temperature = np.broadcast_to(temperature, rows).astype(np.float64)
    temperature = np.where(temperature > 0, temperature, np.nan)
    counted = np.ones(rows, bool) if mask is None else mask
    labels = np.full(rows, ignore_index) if target is None else target
    labelled = labels != ignore_index if target_probs is None else np.ones(rows, bool)
    bad = labelled & ((labels < 0) | (labels >= classes)) & (target_probs is None)
    if needs_label:
        counted = counted & labelled

    compared = student[:, :shared], teacher[:, :shared]
    soft = soft_rows(*compared, temperature[:, None], source, divergence, beta, target_eps, skew, standardize, target_parts)
    soft = soft[0], *(widened(gradient, logits) for gradient, logits in zip(soft[1:], (student, teacher)))
    if target_probs is None:
        probabilities = one_hot(np.where(labelled & ~bad, labels, 0), classes)
    else:
        probabilities = np.asarray(target_probs, np.float64)
    hard = hard_rows(student, probabilities, label_smoothing)
    weight = temperature**2 if scale_by_t2 else np.ones(rows)
    weight = weight if row_weight is None else weight * row_weight
    soft = [rowwise(x, weight, counted) for x in soft]
    hard = [rowwise(x, np.where(bad, np.nan, 1), labelled) for x in hard]

    def divisor(included):
        if reduction in ("none", "sum"):
            return np.ones(groups)
        if denominator is not None:
            given = np.broadcast_to(denominator, groups).astype(np.float64)
            return np.where(given > 0, given, np.nan)
        return np.maximum(included.reshape(groups, -1).sum(1), 1)

    has_hard = target is not None or target_probs is not None
    soft_divisor, hard_divisor = divisor(counted), divisor(labelled if has_hard else np.ones(rows, bool))
    if reduction == "elementmean":
        soft_divisor = soft_divisor * shared

    def reduced(losses, by):
        if reduction == "none":
            return losses
        return Estimate(*(x.reshape(groups, -1).sum(1) / by for x in losses))

    def weighted(losses, factor):
        return losses * factor if factor else losses.where(False)

    def gradient(term, factor, by, included):
        per_row = (1 / np.repeat(by, rows // groups))[:, None]
        return (term * (factor * per_row)).where(included[:, None] & bool(factor))

    soft_loss, hard_loss = reduced(soft[0], soft_divisor), reduced(hard[0], hard_divisor)
    parts = None if not has_hard else Estimate(*(np.stack(pair) for pair in zip(soft_loss, hard_loss)))
    return {
        "loss": weighted(soft_loss, kl_weight) + weighted(hard_loss, ce_weight),
        "parts": parts,
        "grad_student": gradient(soft[1], kl_weight, soft_divisor, counted)
        + gradient(hard[1], ce_weight, hard_divisor, labelled),
        "grad_teacher": gradient(soft[2], kl_weight, soft_divisor, counted),
    }


def label_target(target, classes, on, off, ignore_index=-100):
    """[rows, C] probabilities; which rows count; and 1 per row, NaN where the label is out of range."""
    counted = target != ignore_index
    valid = (target >= 0) & (target < classes)
    u = np.where(np.arange(classes) == target[:, None], on, np.full((len(target), classes), off, np.float64))
    return u, counted, np.where(counted & ~valid, np.nan, 1.0)


@np.errstate(all="ignore")
def label_loss(
    student,  # [rows, C]
    target,  # [rows]
    *,
    teacher=None,  # [rows, C]
    confidence=None,  # [rows]
    on=1.0,
    off=0.0,
    relative=True,
    temperature=1.0,
    kl_weight=1.0,
    ce_weight=0.0,
    normalize=False,
    ignore_index=-100,
    reduction="batchmean",
    groups=1,
    denominator=None,
):
    """As row_loss, without the gradient of a teacher."""
    student = np.asarray(student, np.float64)
    u, counted, weight = label_target(target, student.shape[1], on, off, ignore_index)
    if teacher is not None:
        confidence = np.exp(log_softmax(np.asarray(teacher, np.float64)).max(-1))
    if confidence is not None:
        confidence = np.where(counted, confidence, 0)
        if normalize:
            by_group = counted.reshape(groups, -1), confidence.reshape(groups, -1)
            mean = by_group[1].sum(1) / np.maximum(by_group[0].sum(1), 1)
            confidence = confidence / np.repeat(np.where(mean > 0, mean, 1), len(target) // groups)
        weight = weight * confidence
    return row_loss(
        student,
        u,
        source="probs",
        divergence="forward" if relative else "cross_entropy",
        reduction=reduction,
        temperature=temperature,
        scale_by_t2=False,
        kl_weight=kl_weight,
        ce_weight=ce_weight,
        ignore_index=ignore_index,
        target=target,
        mask=counted,
        row_weight=weight,
        target_parts=off * one_hot(target, student.shape[1]),  # less `off` everywhere, less `on - off` on the label
        groups=groups,
        denominator=denominator,
    )


def joint_cross_entropy(student, target, *, transforms=4, ignore_index=-100, **options):
    """As row_loss: every `transforms` rows share a label, and have as many times its number, and their own, as a class."""
    joint = [
        -1 if label == ignore_index else transforms * int(label) + number for label in target for number in range(transforms)
    ]
    return label_loss(student, np.array(joint, np.int64), relative=False, ignore_index=-1, **options)


def class_range_cross_entropy(student, target, start, stop, *, ignore_index=-100, **options):
    """As row_loss, among some of the classes."""
    target = np.where(target == ignore_index, -1, target - start)
    found = label_loss(student[:, start:stop], target, relative=False, ignore_index=-1, **options)
    around = ((0, 0), (start, student.shape[1] - stop))
    return {**found, "grad_student": Estimate(*(np.pad(x, around) for x in found["grad_student"]))}


def binary(logits, label):
    """(log p_y, log(1 - p_y)) [rows, 1] of softmax(logits); logarithms of the other classes' distribution, -inf for
    the label's and where the others have no probability at all."""
    others = np.where(label, -np.inf, logits)
    largest = others.max(-1, keepdims=True)
    none = largest == -np.inf
    shifted = others - np.where(none, 0, largest)
    log_sum = np.log(np.where(none, 1, total(np.exp(shifted))))
    log_odds = np.where(label, logits, 0).sum(-1, keepdims=True) - np.where(none, -np.inf, largest + log_sum)
    return -np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds), np.where(none, -np.inf, shifted - log_sum)


@np.errstate(all="ignore")
def decoupled_rows(student, teacher, target, temperature):
    """TCKD and NCKD per row, each with its gradients by both rows; every label is valid; temperature [rows, 1]."""
    label = np.arange(student.shape[1]) == target[:, None]
    q, p = (binary(logits / temperature, label) for logits in (student, teacher))
    pairs = [(np.exp(p[at]), np.exp(q[at]), times(np.exp(p[at]), p[at] - q[at])) for at in range(3)]
    (p_label, q_label, by_label), (p_others, q_others, by_others), (p_hat, q_hat, by_class) = pairs
    tckd, nckd = by_label + by_others, total(by_class)

    def rounding(at):
        size = 1 + sum(np.abs(np.where(np.isfinite(x[at]), x[at], 0)) for x in (p, q))
        return (pairs[at][0] + pairs[at][1] + UNDERFLOW) * size**2

    noise = rounding(0) + rounding(1)  # of the binary term
    each = np.where(label, 0, rounding(2))
    spread = each + (p_hat + q_hat) * total(each)

    def of_label(by_odds, shares):
        """The gradient of what depends on the log-odds alone."""
        doubt = noise * np.where(label, 1, shares) + np.where(label, 0, np.abs(by_odds) * (each + shares * total(each)))
        return Estimate(np.where(label, by_odds, -times(shares, by_odds)) / temperature, doubt / temperature)

    none = (p_hat == 0).all(-1, keepdims=True)
    by_teacher = times(p_label * p_others, (p[0] - q[0]) - (p[1] - q[1]))
    # Less rounding than q_label - p_label where both are near 1.
    by_student = np.where(q_label > 0.5, p_others - q_others, q_label - p_label)
    return (
        (Estimate(tckd[:, 0], noise[:, 0]), of_label(by_student, q_hat), of_label(by_teacher, p_hat)),
        (
            Estimate(nckd[:, 0], each.sum(-1)),
            Estimate(np.where(none, 0, q_hat - p_hat) / temperature, spread / temperature),
            Estimate(times(p_hat, p[2] - q[2] - nckd) / temperature, spread / temperature),
        ),
    )


@np.errstate(all="ignore")
def decoupled_kl(
    student,  # [rows, C]
    teacher,  # [rows, C]
    target,  # [rows]
    *,
    temperature=4.0,
    alpha=1.0,
    beta=8.0,
    ignore_index=-100,
    mask=None,  # [rows]
    row_weight=None,  # [rows]
    row_temperature=None,  # [rows]
    reduction="batchmean",
    groups=1,
    denominator=None,  # a number, or [groups]
):
    """As row_loss. Its parts are NCKD and TCKD; under "elementmean" the first alone is divided by the classes."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    rows, classes = student.shape
    temperature = temperature if row_temperature is None else row_temperature
    temperature = np.broadcast_to(temperature, rows).astype(np.float64)
    temperature = np.where(temperature > 0, temperature, np.nan)
    counted = target != ignore_index
    bad = counted & ((target < 0) | (target >= classes))
    counted = counted if mask is None else counted & mask
    weight = np.where(bad, np.nan, temperature**2)
    weight = weight if row_weight is None else weight * row_weight
    terms = decoupled_rows(student, teacher, np.where(counted & ~bad, target, 0), temperature[:, None])
    tckd, nckd = ([rowwise(x, weight, counted) for x in term] for term in terms)
    by = np.ones(groups)
    if reduction not in ("none", "sum"):
        given = np.broadcast_to(np.nan if denominator is None else denominator, groups).astype(np.float64)
        by = np.where(given > 0, given, np.nan)
        by = np.maximum(counted.reshape(groups, -1).sum(1), 1) if denominator is None else by
    found = []
    for term, factor, divisor in ((nckd, beta, by * classes if reduction == "elementmean" else by), (tckd, alpha, by)):
        loss = term[0] if reduction == "none" else Estimate(*(x.reshape(groups, -1).sum(1) / divisor for x in term[0]))
        scale = factor / np.repeat(divisor, rows // groups)
        gradients = [rowwise(x, scale, counted & bool(factor)) for x in term[1:]]
        found.append((loss, loss * factor if factor else loss.where(False), *gradients))
    parts, losses, by_student, by_teacher = zip(*found)
    return {
        "loss": losses[0] + losses[1],
        "parts": Estimate(*(np.stack(pair) for pair in zip(*parts))),
        "grad_student": by_student[0] + by_student[1],
        "grad_teacher": by_teacher[0] + by_teacher[1],
    }


def mix(x):
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def random_permutation(kept, classes, seed):
    """csrc/permutation.h for one class after the other, in Python's integers; kept [rows]."""
    count, permutation = classes - 1, np.empty((len(kept), classes), np.int64)
    for row, fixed in enumerate(kept):
        key = mix(mix(mix(mix(seed % 2**32) ^ seed >> 32) ^ row % 2**32) ^ row >> 32)
        others = [c for c in range(classes) if c != fixed]
        numbers = range(1, 1 + (4 * count.bit_length() + 8 if count > 1 else 0))
        randoms = [mix((key + number * 0x9E3779B9) % 2**32) for number in numbers]
        rounds = [(random * count >> 32, mix(random)) for random in randoms]
        permutation[row, fixed] = fixed
        for x, c in enumerate(others):
            for offset, salt in rounds:
                partner = (offset - x) % count
                if mix(max(x, partner) ^ salt) >= 2**31:
                    x = partner
            permutation[row, c] = others[x]
    return permutation


def dkpp_loss(student, teacher, permutation=None, seed=0, **options):
    """As row_loss, its gradient of the teacher not being one."""
    teacher = np.asarray(teacher, np.float64)
    if permutation is None:
        permutation = random_permutation(teacher.argmax(-1), teacher.shape[1], seed)
    shuffled = np.take_along_axis(teacher, permutation, -1)
    return row_loss(student, shuffled, divergence="cross_entropy", **options)


@np.errstate(all="ignore")
def dynamic_temperature_kl(
    student,  # [rows, C]
    teacher,  # [rows, C]
    target,  # [rows]
    *,
    temperature=4.0,
    beta=1.0,
    gamma=1.0,
    mode="flsw",
    adjust="none",
    smoothing=0.1,
    l1=False,
    t_min=-np.inf,
    mask=None,  # [rows]
    row_temperature=None,  # [rows]: in place of the computed ones
    ignore_index=-100,
    groups=1,
    **options,  # of row_loss
):
    """As row_loss, without the gradient of the teacher and with the temperatures: row_temperature [rows]."""
    student, teacher = np.asarray(student, np.float64), np.array(teacher, np.float64)
    rows, classes = student.shape
    counted = np.ones(rows, bool) if mask is None else mask
    largest = teacher.argmax(-1)
    wrong = np.flatnonzero((target != ignore_index) & (largest != target))
    if adjust == "ps":
        one, other = (wrong, largest[wrong]), (wrong, target[wrong])
        teacher[one], teacher[other] = teacher[other], teacher[one]

    if row_temperature is None and mode != "const":
        if mode == "flsw":
            length = [np.sqrt((x * x).sum(-1)) + 1e-4 for x in (student, teacher)]
            hardness = np.maximum(1 - (student * teacher).sum(-1) / (length[0] * length[1]), 0) ** gamma
        else:
            hardness = 1 / (np.exp(log_softmax(student)).max(-1) + 1e-3)
        hardness = np.where(counted, hardness, 0).reshape(groups, -1)
        total = hardness.sum(1, keepdims=True)
        mean = total / counted.reshape(groups, -1).sum(1, keepdims=True)
        slopes = beta / np.where(total > 0, total, 1) if l1 else beta
        row_temperature = np.maximum((temperature + (mean - hardness) * slopes).reshape(-1), t_min)
        row_temperature = np.where(counted, row_temperature, temperature)
    elif row_temperature is None:
        row_temperature = np.full(rows, temperature, np.float64)

    log_target = log_softmax(teacher / row_temperature[:, None])
    if adjust == "lsr":
        off = smoothing / classes
        u, _, _ = label_target(target, classes, 1 - smoothing + off, off)
        log_target[wrong] = np.log(u[wrong])
    found = row_loss(
        student,
        log_target,
        source="log_probs",
        target=target,
        mask=mask,
        row_temperature=row_temperature,
        ignore_index=ignore_index,
        groups=groups,
        **options,
    )
    return {**found, "row_temperature": row_temperature}


@np.errstate(all="ignore")
def multi_head_kl(students, teachers, *, temperature=3.0, weights=None, denominator=None):
    """dict of Estimates: loss [1], heads [number of heads]; grad_students: a list, [rows, C_i] each."""
    weights = np.ones(len(students)) if weights is None else np.asarray(weights, np.float64)
    weights = np.where(weights >= 0, weights, np.nan)
    how = {"temperature": temperature, "denominator": denominator}
    found = [row_loss(student, teacher, **how) for student, teacher in zip(students, teachers)]
    heads = [one["loss"] for one in found]

    def weighted(estimate, weight):
        return estimate * weight if weight else estimate.where(False)

    loss = sum(map(weighted, heads, weights), Estimate(np.zeros(1), np.zeros(1)))
    return {
        "loss": loss,
        "heads": Estimate(*map(np.concatenate, zip(*heads))),
        "grad_students": [weighted(one["grad_student"], weight) for one, weight in zip(found, weights)],
    }


def close(ours, truth, precision, stored_precision=0.0, stored_tiny=0.0, factor=4):
    """Asserts |ours - truth| <= factor * precision * scale, and the rounding of the stored value; `ours` is float64.
    Where the truth is not finite, ours is not either."""
    assert ours.shape == truth.value.shape
    finite = np.isfinite(truth.value)
    np.testing.assert_array_equal(np.isfinite(ours), finite)
    np.testing.assert_array_equal(np.isposinf(ours), np.isposinf(truth.value))
    error = np.abs(ours - np.where(finite, truth.value, 0))[finite]
    stored = (np.abs(truth.value) * stored_precision + stored_tiny)[finite]
    excess, unit = np.maximum(error - stored, 0), precision * truth.scale[finite]
    worst = float(np.max(excess / np.maximum(unit, 1e-300), initial=0))
    assert worst <= factor, f"error of {worst:.1f} roundings"
