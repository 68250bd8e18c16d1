"""NumPy problems of softened KL drawn by hypothesis, and the comparison of a kernel's results with the oracle: for the
CUDA kernels, emulated, and for the CPU kernels of kdkernels._host.
"""

import emulated
import numpy as np
import row_oracle
from hypothesis import strategies as st

# Arithmetic precision (half an ulp of 1), and per storage dtype the same and half its smallest number.
PRECISION = {"float32": 2.0**-24, "float64": 2.0**-53}
STORED = {
    "float32": (2.0**-24, 2.0**-150, 3.4e38),
    "float64": (2.0**-53, 0, 1e308),
    "float16": (2.0**-11, 2.0**-25, 65504),
    "bfloat16": (2.0**-8, 2.0**-134, 3.3e38),
}
FLOATS = sorted(STORED)

# One class, binary, around one chunk of 8, common sizes, around 127 chunks (the last that registers hold), and what a
# block shares.
CLASSES = [1, 2, 7, 8, 9, 10, 24, 25, 100, 256, 1000, 1001, 1008, 1016, 1017, 1025, 2500]


def encode(values, dtype):
    return emulated.module().float_to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def decode(array):
    return (emulated.module().bfloat16_to_float(array) if array.dtype == np.uint16 else array).astype(np.float64)


def kept(array):
    """The dtype in which an op returns the gradient of a loss by an array (csrc/kept_gradient.h)."""
    return np.float32 if array.dtype == np.float16 else array.dtype


def lay_out(array, order, front, step):
    """The same [outer, C, inner] values in a larger buffer of NaN: axes in this order in memory, starting `front`
    elements late, elements of the last axis `step` apart."""
    moved = array.transpose(order)
    width = moved.shape[-1] * step
    buffer = np.empty((*moved.shape[:-1], front + width + 1), array.dtype)
    buffer.view(np.uint8)[...] = 0xFF
    view = buffer[..., front : front + width : step]
    view[...] = moved
    return view.transpose(np.argsort(order))


def as_rows(array):
    """[outer, C, inner] -> [rows, C]"""
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])


def make_logits(rng, shape, spread, absent):
    logits = (rng.normal(size=shape) * spread).astype(np.float32)
    hidden = rng.random(shape) < absent
    hidden[:, :1] = False  # a row without any class is another test
    return np.where(hidden, -np.inf, logits).astype(np.float32)


def make_teacher(rng, shape, spread, absent, source):
    logits = make_logits(rng, shape, spread, absent)
    if source == "logits":
        return logits
    log_p = np.moveaxis(row_oracle.log_softmax(np.moveaxis(logits, 1, -1).astype(np.float64)), -1, 1)
    return (log_p if source == "log_probs" else np.exp(log_p)).astype(np.float32)


FEATURES = ("skew", "standardize", "shared_classes", "denominator", "needs_label", "target_probs")


@st.composite
def problems(draw, classes=st.sampled_from(CLASSES) | st.integers(1, 300), features=()):
    """(student, teacher, options): logits [outer, C, inner] in their memory layout, options by the oracle's names."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    outer, inner, groups = draw(st.integers(0, 4)), draw(st.sampled_from([1, 1, 1, 2, 5])), 1
    shape = (outer, draw(classes), inner)
    rows = outer * inner
    if rows and draw(st.booleans()):
        groups = draw(st.sampled_from([g for g in range(1, outer + 1) if outer % g == 0]))
    source = draw(st.sampled_from(row_oracle.SOURCES))
    spread = draw(st.sampled_from([0.0, 1.0, 5.0, 100.0]))
    # No probability of exactly 0 beside those that underflow: where these meet, the KL is infinite in float64 alone.
    spread = min(spread, 5.0) if source == "probs" else spread
    absent = draw(st.sampled_from([0, 0, 0.3])) if spread < 100 else 0

    options = {
        "source": source,
        "divergence": draw(st.sampled_from(row_oracle.DIVERGENCES)),
        "reduction": draw(st.sampled_from(row_oracle.REDUCTIONS)),
        "temperature": draw(st.sampled_from([1.0, 4.0, 0.5])),
        "beta": draw(st.sampled_from([0.5, 0.1, 0.0, 1.0])),
        "target_eps": draw(st.sampled_from([0.0, 0.0, 1e-7, 0.1])),
        "scale_by_t2": draw(st.booleans()),
        "kl_weight": draw(st.sampled_from([1.0, 0.3])),
        "groups": groups,
    }
    teacher_shape = shape
    if "skew" in features and options["divergence"] in ("forward", "reverse"):
        options["skew"] = draw(st.sampled_from([0.0, 0.1, 0.7]))
    if "standardize" in features and source == "logits":
        options["standardize"] = draw(st.booleans())
    if "shared_classes" in features and draw(st.booleans()):
        options["shared_classes"] = shared = draw(st.integers(1, shape[1]))
        width = draw(st.sampled_from([shared, shape[1], shape[1] + 7, shared + 1]))
        teacher_shape = (outer, width, inner)
    student = make_logits(rng, shape, spread, absent)
    teacher = make_teacher(rng, teacher_shape, spread, draw(st.sampled_from([0, absent])), source)
    if options.get("standardize"):
        for logits in (student, teacher):
            logits[rng.random(outer) < 0.2] = rng.normal()  # constant rows
    if draw(st.booleans()):
        options["mask"] = rng.random(rows) < 0.7
        np.moveaxis(teacher, 1, -1)[~options["mask"].reshape(outer, inner)] = np.nan  # never looked at
    if draw(st.booleans()):
        options["row_weight"] = rng.normal(size=rows).astype(np.float32)
    if draw(st.booleans()):
        options["row_temperature"] = rng.uniform(0.5, 5, rows).astype(np.float32)
    if draw(st.booleans()):
        ignore = options["ignore_index"] = draw(st.sampled_from([-100, -1, shape[1] // 2]))
        options["ce_weight"] = draw(st.sampled_from([1.0, 0.5, 0.0]))
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
        options["target"] = rng.integers(0, shape[1], rows)
        options["target"][rng.random(rows) < 0.2] = ignore
        if draw(st.integers(0, 9)) == 0:
            options["target"][rng.random(rows) < 0.3] = draw(st.sampled_from([shape[1], -7, 2**40]))
        if "needs_label" in features:
            options["needs_label"] = draw(st.booleans())
    elif "target_probs" in features and draw(st.booleans()):
        options["ce_weight"] = draw(st.sampled_from([1.0, 0.5, 0.0]))
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
        probs = rng.dirichlet(np.full(shape[1], 0.3), (outer, inner)) * draw(st.sampled_from([1.0, 0.7]))
        probs = encode(np.moveaxis(probs, -1, 1).astype(np.float32), draw(st.sampled_from(FLOATS)))
        options["target_probs"] = lay_out(probs, (0, 2, 1), draw(st.integers(0, 9)), draw(st.sampled_from([1, 1, 2])))
    if "denominator" in features and draw(st.booleans()):
        options["denominator"] = rng.uniform(0.5, 5, groups)

    layouts = st.tuples(st.permutations([0, 1, 2]), st.integers(0, 9), st.sampled_from([1, 1, 1, 2]))
    plain = st.just(((0, 2, 1), 0, 1))
    student, teacher = (encode(logits, draw(st.sampled_from(FLOATS))) for logits in (student, teacher))
    return lay_out(student, *draw(plain | layouts)), lay_out(teacher, *draw(plain | layouts)), options


def name_of(array):
    return "bfloat16" if array.dtype == np.uint16 else array.dtype.name


def check(student, teacher, options, ours):
    """Compares results with the oracle. Rows of an infinite term have whatever gradient."""
    double = "float64" in (name_of(student), name_of(teacher))
    precision = PRECISION["float64" if double else "float32"]
    if "target_probs" in options:
        options = {**options, "target_probs": as_rows(decode(options["target_probs"]))}
    truth = row_oracle.row_loss(as_rows(decode(student)), as_rows(decode(teacher)), **options)
    rows = row_oracle.row_loss(as_rows(decode(student)), as_rows(decode(teacher)), **{**options, "reduction": "none"})
    for name in ("loss", "parts"):
        if truth[name] is not None:
            row_oracle.close(ours[name].astype(np.float64), truth[name], precision, precision)
    for name, logits in (("grad_student", student), ("grad_teacher", teacher)):
        if ours[name] is None:
            continue
        assert ours[name].shape == logits.shape and ours[name].dtype == logits.dtype
        gradient, rounding, tiny = in_units_of_one(ours, name, logits)
        most = np.inf if ours[unit_of(name)] is not None else STORED[name_of(logits)][2]
        regular = ~has_infinite_term(rows, options)[:, None] & ~(np.abs(truth[name].value) >= 0.99 * most)
        row_oracle.close(np.where(regular, gradient, 0), truth[name].where(regular), precision, rounding, tiny)


def has_infinite_term(rows, options):
    """[rows], of losses that are not reduced. Each term is asked by itself: two infinite ones of opposite sign add up to NaN."""
    if rows["parts"] is None:
        return np.isinf(rows["loss"].value)
    weights = np.array([options.get("kl_weight", 1.0), options.get("ce_weight", 0.0)])
    return (np.isinf(rows["parts"].value) & (weights != 0)[:, None]).any(0)


def unit_of(name):
    return name.replace("grad", "unit")


def in_units_of_one(ours, name, logits):
    """A gradient [rows, C] as the numbers it stands for, and what storing it may move these by, relative and absolute."""
    unit = ours[unit_of(name)]
    unit = 1.0 if unit is None else unit.astype(np.float64)[:, None]
    rounding, tiny, _ = STORED[name_of(logits)]
    return as_rows(decode(ours[name])) * unit, rounding, tiny * unit * np.ones((len(as_rows(logits)), 1))


def sliced(array):
    """The rows of [outer, C, 1] as [2, outer / 2, C], a slice of a larger buffer of NaN whose rows two strides lead to."""
    outer, classes, _ = array.shape
    buffer = np.empty((2, outer // 2 + 1, classes), array.dtype)
    buffer.view(np.uint8)[...] = 0xFF
    buffer[:, :-1] = array.reshape(2, outer // 2, classes)
    return buffer[:, :-1]


def plain_problem(classes, rows=3, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(2, rows, classes, 1)).astype(np.float32) * 3
    return encode(student, dtype), encode(teacher, dtype)


def numbered(options):
    """Options with the integers of csrc/row_loss.h instead of names, and its name of denominators."""
    names = {"source": row_oracle.SOURCES, "divergence": row_oracle.DIVERGENCES, "reduction": row_oracle.REDUCTIONS}
    options = {"denominators" if name == "denominator" else name: value for name, value in options.items()}
    return {name: names[name].index(value) if name in names else value for name, value in options.items()}


gradients = st.fixed_dictionaries({"grad_student": st.booleans(), "grad_teacher": st.booleans()})
