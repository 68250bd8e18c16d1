"""NumPy problems of the sources label, permuted, adjusted and decoupled drawn by hypothesis, and what the oracle
expects of them: each of the first three is a softened KL from the target that the kernels never build.
"""

import numpy as np
import row_oracle
from hypothesis import strategies as st
from row_problems import CLASSES, FLOATS, PRECISION, as_rows, decode, encode, in_units_of_one, lay_out, make_logits, name_of

TARGET_SOURCES = (*row_oracle.SOURCES, "label", "permuted", "adjusted", "decoupled")
STATISTICS = ("none", "confidence", "cosine", "doubt")
ADJUSTMENTS = ("none", "exchange", "label")


@st.composite
def source_problems(draw, classes=st.sampled_from(CLASSES) | st.integers(1, 300)):
    """(student, teacher, options): logits [outer, C, inner]; options as in csrc/row_loss.h, by name."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    source = draw(st.sampled_from(["label", "permuted", "adjusted", "decoupled"]))
    outer, inner = draw(st.integers(0, 4)), draw(st.sampled_from([1, 1, 1, 2, 5]))
    shape = (outer, draw(classes), inner)
    rows, count = outer * inner, shape[1]
    groups = draw(st.sampled_from([g for g in range(1, outer + 1) if outer % g == 0])) if rows else 1
    spread = draw(st.sampled_from([0.0, 1.0, 5.0, 20.0]))
    # No probability of exactly 0 beside those that underflow, at temperatures down to 0.25: as in problems.py.
    absent = draw(st.sampled_from([0, 0, 0.3])) if spread <= 1 else 0
    student, teacher = (make_logits(rng, shape, spread, absent) for _ in range(2))
    options = {
        "source": source,
        "reduction": draw(st.sampled_from(row_oracle.REDUCTIONS)),
        "temperature": draw(st.sampled_from([1.0, 4.0, 0.5])),
        "kl_weight": draw(st.sampled_from([1.0, 0.3])),
        "groups": groups,
    }
    extra = {}
    if source != "permuted":
        options["ignore_index"] = draw(st.sampled_from([-100, -1]))
        options["ce_weight"] = draw(st.sampled_from([1.0, 0.5, 0.0]))
        options["target"] = rng.integers(0, count, rows)
        options["target"][rng.random(rows) < 0.2] = options["ignore_index"]
    if source != "label":
        options["scale_by_t2"] = source == "decoupled" or draw(st.booleans())
        if draw(st.booleans()):
            options["mask"] = rng.random(rows) < 0.7
            np.moveaxis(teacher, 1, -1)[~options["mask"].reshape(outer, inner)] = np.nan  # never looked at
        if draw(st.booleans()):
            options["row_weight"] = rng.normal(size=rows).astype(np.float32)

    if source == "label":
        options["divergence"], options["scale_by_t2"] = draw(st.sampled_from(["forward", "cross_entropy"])), False
        on = 1.0 if count == 1 else draw(st.sampled_from([1.0, 0.9, 0.5, 1 / count, 0.0]))
        extra.update(label_on=on, label_off=(1 - on) / (count - 1) if count > 1 else 0.0)
        statistic = draw(st.sampled_from(["none", "confidence", "given"]))
        if statistic != "none":
            extra.update(statistic="confidence", normalize_statistic=draw(st.booleans()))
        if statistic == "given":
            extra["confidence"] = rng.uniform(0.1, 1, rows).astype(np.float32)
        kinds = ["classes", "range"] + ["joint"] * (rows // groups % 2 == 0 and count % 2 == 0)
        kind, labelled = draw(st.sampled_from(kinds)), options["target"] != options["ignore_index"]
        if kind == "range":
            options["first_class"] = draw(st.integers(1, 100))
            options["target"][labelled] += options["first_class"]
        elif kind == "joint":
            options["transforms"] = 2
            options["target"] = np.where(labelled, options["target"] // 2, options["ignore_index"])[::2].copy()
    elif source == "permuted":
        options["divergence"] = "cross_entropy"
        extra["seed"] = int(rng.integers(0, 2**63))
        if draw(st.booleans()):
            extra["permutation"] = np.array([rng.permutation(count) for _ in range(rows)], np.int64).reshape(rows, count)
    elif source == "decoupled":
        options["divergence"], options["grad_teacher"] = "forward", draw(st.booleans())
        if draw(st.booleans()):
            options["row_temperature"] = rng.uniform(0.5, 8, rows).astype(np.float32)
    else:
        options["divergence"] = "forward"
        smoothing = draw(st.sampled_from([0.1, 0.0, 1.0]))
        extra["adjustment"] = draw(st.sampled_from(ADJUSTMENTS))
        extra.update(label_on=1 - smoothing + smoothing / count, label_off=smoothing / count)
        # An infinite vector has no cosine.
        extra["statistic"] = draw(st.sampled_from(["none", "doubt"] if absent else ["none", "cosine", "doubt"]))
        if extra["statistic"] != "none":
            extra.update(
                normalize_statistic=draw(st.booleans()),
                statistic_power=draw(st.sampled_from([1.0, 0.5, 2.0])),
                temperature_slope=draw(st.sampled_from([0.0, 0.3, 2.0])),
                least_temperature=draw(st.sampled_from([1.0, 0.25])),
            )
    if options["divergence"] == "forward" and extra:
        extra["label_entropy"] = entropy(extra["label_on"], extra["label_off"], count)

    layouts = st.tuples(st.permutations([0, 1, 2]), st.integers(0, 9), st.sampled_from([1, 1, 1, 2]))
    plain = st.just(((0, 2, 1), 0, 1))
    student, teacher = (encode(logits, draw(st.sampled_from(FLOATS))) for logits in (student, teacher))
    student, teacher = lay_out(student, *draw(plain | layouts)), lay_out(teacher, *draw(plain | layouts))
    return student, teacher, {**options, "source_options": extra}


def entropy(on, off, count):
    return -sum(n * p * np.log(p) for n, p in ((1, on), (count - 1, off)) if p > 0 and n > 0)


def numbered(options):
    """Options with the integers of csrc/row_loss.h instead of names."""
    names = {"source": TARGET_SOURCES, "divergence": row_oracle.DIVERGENCES, "reduction": row_oracle.REDUCTIONS}
    names.update(statistic=STATISTICS, adjustment=ADJUSTMENTS)

    def number(name, value):
        if name == "source_options":
            return {inner: number(inner, its) for inner, its in value.items()}
        return names[name].index(value) if name in names else value

    return {name: number(name, value) for name, value in options.items()}


def statistics(student, teacher, options, precision):
    """Weights or temperatures of the rows in float64, and how far an arithmetic of this precision may be from them."""
    extra, rows = options["source_options"], len(student)
    counted = np.ones(rows, bool) if options.get("mask") is None else options["mask"]
    if options["source"] == "label":
        counted = options["target"] != options["ignore_index"]
    with np.errstate(all="ignore"):
        if extra["statistic"] == "confidence":
            found = extra.get("confidence")
            found = np.exp(row_oracle.log_softmax(teacher)).max(1) if found is None else found.astype(np.float64)
        elif extra["statistic"] == "doubt":
            found = 1 / (np.exp(row_oracle.log_softmax(student)).max(1) + 1e-3)
        else:
            if extra["adjustment"] == "exchange":
                teacher = exchanged(teacher, options)
            units = [x / (np.sqrt((x * x).sum(1, keepdims=True)) + 1e-4) for x in (student, teacher)]
            found = np.maximum(1 - (units[0] * units[1]).sum(1), 0) ** extra["statistic_power"]
    # An exponential, blocks of sums, a quotient. A cosine near 1 leaves few digits of 1 - cos, its root half as many.
    wobble = 32 * precision * found
    if extra["statistic"] == "cosine":
        power = extra["statistic_power"]
        wobble = np.full(rows, (200 * precision) ** min(power, 1.0) * 4)
    weighs = extra["statistic"] == "confidence"
    result = np.zeros(rows) if weighs else np.full(rows, float(options["temperature"]))
    allowed = 8 * precision * result
    for group in np.split(np.arange(rows), options["groups"]) if rows else []:
        group = group[counted[group]]
        count, total = max(len(group), 1), found[group].sum()
        unit = total if extra["normalize_statistic"] and total > 0 else 1.0
        if weighs:
            factor = count / unit if extra["normalize_statistic"] and total > 0 else 1
            result[group] = found[group] * factor
            allowed[group] = wobble[group] * factor
        else:
            slope = extra["temperature_slope"] / unit
            result[group] = options["temperature"] + (total / count - found[group]) * slope
            result[group] = np.maximum(result[group], extra["least_temperature"])
            of_mean = (wobble[group].sum() + 8 * precision * total) / count
            allowed[group] += slope * (wobble[group] + 8 * precision * found[group] + of_mean)
    return result, allowed


def mistaken(teacher, options):
    """Rows with a label that is not the teacher's largest class."""
    labelled = options["target"] != options["ignore_index"]
    return labelled & (teacher.argmax(1) != options["target"])


def exchanged(teacher, options):
    teacher = teacher.copy()
    for row in np.flatnonzero(mistaken(teacher, options)):
        pair = [teacher[row].argmax(), options["target"][row]]
        teacher[row, pair] = teacher[row, pair[::-1]]
    return teacher


def expectation(student, teacher, options, row_statistic):
    """The problem as the oracle knows it, given the weights or temperatures that the kernel found."""
    extra, count = options["source_options"], student.shape[1]
    rest = {name: value for name, value in options.items() if name not in ("source", "source_options")}
    if extra.get("statistic", "none") == "confidence":
        rest["row_weight"] = row_statistic
    elif extra.get("statistic", "none") != "none":
        rest["row_temperature"] = row_statistic
    if options["source"] == "label":
        labelled = options["target"] != options["ignore_index"]
        target = np.full(student.shape, extra["label_off"])
        target[labelled, options["target"][labelled]] = extra["label_on"]
        # A kernel subtracts `label_off` from every class, and `label_on - label_off` from the label.
        parts = extra["label_off"] * row_oracle.one_hot(options["target"], count)
        return target, {**rest, "source": "probs", "mask": labelled, "target_parts": parts}
    if options["source"] == "permuted":
        order = extra.get("permutation")
        if order is None:
            order = row_oracle.random_permutation(teacher.argmax(1), count, extra["seed"])
        return np.take_along_axis(teacher, order, 1), {**rest, "source": "logits"}
    wrong = mistaken(teacher, options)
    if extra["adjustment"] == "exchange":
        teacher = exchanged(teacher, options)
    temperature = np.broadcast_to(rest.get("row_temperature", rest["temperature"]), len(student))[:, None]
    with np.errstate(all="ignore"):
        log_p = row_oracle.log_softmax(teacher / temperature)
        if extra["adjustment"] == "label":
            smoothed = np.full(student.shape, np.log(extra["label_off"]))
            labels = np.where(wrong, options["target"], 0)
            smoothed[np.arange(len(labels)), labels] = np.log(extra["label_on"])
            log_p = np.where(wrong[:, None], smoothed, log_p)
    return log_p, {**rest, "source": "log_probs"}


def with_columns(options):
    """The labels as columns of the student, one per row."""
    transforms, first = options.get("transforms", 1), options.get("first_class", 0)
    if transforms == 1 and first == 0:
        return options
    options = {name: value for name, value in options.items() if name not in ("transforms", "first_class")}
    target = options["target"].repeat(transforms)
    columns = transforms * (target - first) + np.arange(len(target)) % transforms
    return {**options, "target": np.where(target == options["ignore_index"], target, columns)}


def check(student, teacher, options, ours):
    options = with_columns(options)
    double = "float64" in (name_of(student), name_of(teacher))
    if options["source"] == "label" and options["source_options"].get("statistic", "none") == "none":
        double = name_of(student) == "float64" or name_of(teacher) == "float64"
    precision = PRECISION["float64" if double else "float32"]
    z, t = as_rows(decode(student)), as_rows(decode(teacher))
    if ours["row_statistic"] is not None:
        truth, allowed = statistics(z, t, options, precision)
        assert (np.abs(ours["row_statistic"] - truth) <= allowed).all(), (ours["row_statistic"], truth, allowed)
    if options["source"] == "decoupled":
        return check_decoupled(student, teacher, options, ours, precision)
    target, rest = expectation(z, t, options, ours["row_statistic"])
    # Beside the roundings of one class, those of sums over the classes, which grow as a random walk does.
    factor = (16 if ours.get("form") == "strided" else 8) + np.sqrt(z.shape[1])
    truth = row_oracle.row_loss(z, target, **rest)
    for name in ("loss", "parts"):
        if truth[name] is not None:
            row_oracle.close(ours[name].astype(np.float64), truth[name], precision, precision, factor=factor)
    # Rows of infinite loss have whatever gradient.
    rows = row_oracle.row_loss(z, target, **{**rest, "reduction": "none", "kl_weight": 1.0, "ce_weight": 1.0})
    regular = np.isfinite(rows["loss"].value)[:, None]
    gradient, *stored = in_units_of_one(ours, "grad_student", student)
    gradient = np.where(regular, gradient, 0)
    row_oracle.close(gradient, truth["grad_student"].where(regular), precision, *stored, factor=factor)


def check_decoupled(student, teacher, options, ours, precision):
    shared = ("ignore_index", "mask", "row_weight", "row_temperature")
    rest = {name: value for name, value in options.items() if name in shared}
    rest.update(temperature=options["temperature"], groups=options["groups"])
    weights = {"alpha": options["ce_weight"], "beta": options["kl_weight"]}
    given = as_rows(decode(student)), as_rows(decode(teacher)), options["target"]
    truth = row_oracle.decoupled_kl(*given, **weights, **rest, reduction=options["reduction"])
    factor = (16 if ours.get("form") == "strided" else 8) + np.sqrt(student.shape[1])
    for name in ("loss", "parts"):
        row_oracle.close(ours[name].astype(np.float64), truth[name], precision, precision, factor=factor)
    # Rows of infinite loss have whatever gradient.
    rows = row_oracle.decoupled_kl(*given, alpha=1.0, beta=1.0, **rest, reduction="none")
    regular = np.isfinite(rows["loss"].value)[:, None]
    for name, logits in {"grad_student": student, "grad_teacher": teacher}.items():
        if name == "grad_teacher" and not options["grad_teacher"]:
            continue
        gradient, *stored = in_units_of_one(ours, name, logits)
        row_oracle.close(np.where(regular, gradient, 0), truth[name].where(regular), precision, *stored, factor=factor)
