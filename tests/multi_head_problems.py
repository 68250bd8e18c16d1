"""NumPy problems of several heads drawn by hypothesis, and the comparison of a kernel's results with the oracle: for the CUDA
kernels, emulated, and for the CPU kernels of kdkernels._host.
"""

import numpy as np
import row_oracle
from hypothesis import strategies as st
from row_problems import CLASSES, FLOATS, PRECISION, STORED, decode, encode, make_logits, name_of

TWO_DTYPES = st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS))
PLAIN_DTYPES = st.sampled_from([("float32", "float32"), ("float16", "float32"), ("bfloat16", "bfloat16")])


def lay_out(array, order, front, step):
    """The same rows [outer, middle, C] in a larger buffer of NaN, axes in this order in memory."""
    moved = array.transpose(order)
    width = moved.shape[-1] * step
    buffer = np.empty((*moved.shape[:-1], front + width + 1), array.dtype)
    buffer.view(np.uint8)[...] = 0xFF
    view = buffer[..., front : front + width : step]
    view[...] = moved
    return view.transpose(np.argsort(order))


@st.composite
def problems(draw, most_heads=5, classes=st.sampled_from(CLASSES) | st.integers(1, 300)):
    """(students, teachers, options): logits [outer, middle, C_i] in their memory layouts, options as the bindings name them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    heads, outer, middle = draw(st.integers(1, most_heads)), draw(st.integers(0, 4)), draw(st.sampled_from([1, 1, 3]))
    # Not beside probabilities that underflow, where the KL is infinite in float64 alone.
    spread = draw(st.sampled_from([0.0, 1.0, 5.0, 100.0]))
    absent = draw(st.sampled_from([0, 0, 0.3])) if spread < 100 else 0
    dtypes, plain = draw(st.sampled_from([TWO_DTYPES, PLAIN_DTYPES])), draw(st.booleans())
    layouts = st.tuples(st.permutations([0, 1, 2]), st.integers(0, 9), st.sampled_from([1, 1, 1, 2]))
    students, teachers = [], []
    for _ in range(heads):
        # Classes are in front for make_logits: what it never hides is a class of each row.
        shape = (outer, draw(classes), middle)
        for logits, dtype in zip((students, teachers), draw(dtypes)):
            drawn = encode(make_logits(rng, shape, spread, draw(st.sampled_from([0, absent]))), dtype).transpose(0, 2, 1)
            logits.append(np.ascontiguousarray(drawn) if plain else lay_out(drawn, *draw(layouts)))
    options = {"temperature": draw(st.sampled_from([1.0, 3.0, 0.5]))}
    weights = [draw(st.sampled_from([1.0, 0.3, 2.0, 0.0])) for _ in range(heads)]
    if kind := draw(st.sampled_from(["", "weights", "weight_array"])):
        options[kind] = np.array(weights, np.float32) if kind == "weight_array" else weights
    if kind := draw(st.sampled_from(["", "", "denominator", "denominator_array"])):
        options[kind] = draw(st.sampled_from([7.0, 0.5]))
    options["grad_students"] = [draw(st.sampled_from([True, True, False])) for _ in range(heads)]
    return students, teachers, options


def plain_problem(classes, rows=3, seed=0, dtypes=("float32", "float32")):
    """(students, teachers) of heads with so many classes."""
    rng = np.random.default_rng(seed)
    return [[encode((rng.normal(size=(rows, c)) * 3).astype(np.float32), dtype) for c in classes] for dtype in dtypes]


def as_rows(array):
    return decode(array).reshape(-1, array.shape[-1])


def check(students, teachers, options, ours, factor=4):
    """Compares results with the oracle. Rows of infinite loss have whatever gradient."""
    is_double = any(name_of(array) == "float64" for array in (*students, *teachers))
    precision = PRECISION["float64" if is_double else "float32"]
    rows = [as_rows(array) for array in students], [as_rows(array) for array in teachers]
    how = {"temperature": options.get("temperature", 3.0)}
    how["weights"] = options.get("weights", options.get("weight_array"))
    how["denominator"] = options.get("denominator", options.get("denominator_array"))
    truth = row_oracle.multi_head_kl(*rows, **how)
    assert ours["loss"].dtype == ours["heads"].dtype == (np.float64 if is_double else np.float32)
    for name in ("loss", "heads"):
        row_oracle.close(ours[name].astype(np.float64), truth[name], precision, precision, factor=factor)
    wanted = options.get("grad_students", [True] * len(students))
    for at, (student, its) in enumerate(zip(students, truth["grad_students"], strict=True)):
        gradient, unit = ours["grad_students"][at], ours["units"][at]
        assert (gradient is not None) == wanted[at]
        assert (unit is not None) == (wanted[at] and name_of(student) == "float16")
        if gradient is None:
            continue
        assert gradient.shape == student.shape and gradient.dtype == student.dtype
        alone = row_oracle.row_loss(rows[0][at], rows[1][at], temperature=how["temperature"], reduction="none")
        unit = np.ones((len(rows[0][at]), 1)) if unit is None else unit.astype(np.float64)[:, None]
        rounding, tiny, _ = STORED[name_of(student)]
        regular = ~np.isinf(alone["loss"].value)[:, None] & np.ones_like(its.value, bool)
        found = np.where(regular, as_rows(gradient) * unit, 0)
        row_oracle.close(found, its.where(regular), precision, rounding, tiny * (unit * np.ones_like(its.value)), factor=factor)
