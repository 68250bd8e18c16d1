"""NumPy problems of the similarity family drawn by hypothesis, and the comparison of a kernel's results with the oracle: for
the CPU kernels of kdkernels._host and for the CUDA kernels, emulated.
"""

import numpy as np
import row_oracle
import similarity_oracle
from hypothesis import strategies as st
from row_problems import FLOATS, PRECISION, STORED, decode, encode, kept, name_of

# None, one, around a vector, a tile of the matrix product, a band of 64, and more than one of them.
QUERIES = st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 130, 192]) | st.integers(0, 100)
KEYS = st.sampled_from([1, 2, 5, 6, 7, 64, 65, 126, 127, 200, 300]) | st.integers(1, 100)
WIDTHS = st.sampled_from([1, 2, 3, 16, 17, 63, 64, 65, 128, 129, 257, 300]) | st.integers(1, 100)
REDUCTIONS = st.sampled_from(row_oracle.REDUCTIONS)
# The arguments of lay_out; plain ones half of the time.
GAPS = st.integers(0, 9)
# Of queries and keys; one for both more often than not.
DTYPES = st.sampled_from(FLOATS).map(lambda one: (one, one)) | st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS))
LAYOUTS = st.just((0, 0, 1, False)) | st.tuples(GAPS, GAPS, st.sampled_from([1, 1, 2]), st.booleans())


def make_features(rng, rows, width, spread):
    """Some rows equal, some zero."""
    features = rng.normal(size=(rows, width)) * spread
    if rows:
        features = features[np.where(rng.random(rows) < 0.2, rng.integers(0, rows, rows), np.arange(rows))]
    features[rng.random(rows) < 0.05] = 0
    return features.astype(np.float32)


def lay_out(array, front, gap, step, turned):
    """The same rows in a larger buffer of NaN: starting `front` elements late, `gap` elements between rows, features `step`
    apart, or in reverse order."""
    rows, width = array.shape
    buffer = np.empty((rows, front + width * step + gap), array.dtype)
    buffer.view(np.uint8)[...] = 0xFF
    view = buffer[::-1] if turned else buffer
    view = view[:, front : front + width * step : step]
    view[...] = array
    return view


@st.composite
def similarity_problems(draw, queries=QUERIES, keys=KEYS, widths=WIDTHS):
    """(query, key, options): features in their memory layout, options by the oracle's names."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    target = draw(st.sampled_from(similarity_oracle.TARGETS))
    rows, count, width = draw(queries), draw(keys), draw(widths)
    options = {
        "target": target,
        "reduction": draw(REDUCTIONS),
        "temperature": draw(st.sampled_from([1.0, 0.5, 0.07])),
        "normalize": draw(st.sampled_from([True, True, False])),
        "scale_by_t2": draw(st.booleans()),
    }
    if count >= rows + 1 and draw(st.booleans()):
        options["own_key"] = int(rng.integers(0, count - rows + 1))
    own = np.arange(rows)[:, None] + options.get("own_key", -1 - rows) == np.arange(count)
    chosen = np.zeros((rows, count), bool)  # keys that may not be removed
    if target == "positive":
        if count < rows or "own_key" in options or draw(st.booleans()):
            options["positive"] = rng.integers(0, count, rows)
        positive = options.get("positive", np.arange(rows))
        if "own_key" in options:
            own_ones = positive == options["own_key"] + np.arange(rows)
            options["positive"] = positive = np.where(own_ones, (positive + 1) % count, positive)
        options["symmetric"] = draw(st.booleans())
        chosen[np.arange(rows), positive] = True
    elif target == "labels":
        names = np.array([-1, 0, 7, 2**40, -(2**50)])[: draw(st.integers(1, 5))]
        options["query_labels"], options["key_labels"] = (rng.choice(names, n) for n in (rows, count))
        if "own_key" in options:
            options["key_labels"][options["own_key"] :][:rows] = options["query_labels"]
        chosen = options["query_labels"][:, None] == options["key_labels"]
    else:
        chosen[...] = True
    if draw(st.booleans()):
        options["mask"] = rng.random(rows) < 0.7
    if draw(st.booleans()):
        options["row_weight"] = rng.normal(size=rows).astype(np.float32)
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(rows, count), (1, count), (rows, 1), ()]))
        bias = np.broadcast_to(rng.normal(size=shape), (rows, count)).astype(np.float32)
        if draw(st.booleans()):
            # A query keeps a key, and its positives but in one draw of four.
            removed = rng.random((rows, count)) < 0.3
            weights = np.where(own, -1, rng.random((rows, count)))
            removed[np.arange(rows), weights.argmax(1)] = False
            bias = np.where(removed & ~(chosen & (draw(st.integers(0, 3)) > 0)), -np.inf, bias)
        options["bias"] = bias.astype(np.float32)

    def features(rows, width, dtype):
        spread = draw(st.sampled_from([1.0, 1e-3, 1e3])) if options["normalize"] else 2 / np.sqrt(width)
        return lay_out(encode(make_features(rng, rows, width, spread), dtype), *draw(LAYOUTS))

    def both(width):
        of_query, of_key = draw(DTYPES)
        return features(rows, width, of_query), features(count, width, of_key)

    query, key = both(width)
    if target == "teacher":
        options["teacher_query"], options["teacher_key"] = both(draw(widths))
    if "mask" in options:
        for masked in (query, options.get("teacher_query")):
            if masked is not None:
                masked.view(f"u{masked.itemsize}")[~options["mask"]] = 2 ** (8 * masked.itemsize) - 1  # NaN, never looked at
    return query, key, options


def dtypes_of(query, key, options):
    teacher = [options[name] for name in ("teacher_query", "teacher_key") if name in options]
    return {name_of(features) for features in (query, key, *teacher)}


def check(query, key, options, ours, factor=4, product_precision=None):
    """Compares results with the oracle. Where a row's loss is infinite, its gradient and those of the keys are whatever;
    so are the gradients of all queries where the softmax over them of a column that weighs is 0 / 0.
    `product_precision`: of the factors that gradients are products of, where it is less than that of the arithmetic."""
    precision = PRECISION["float64" if "float64" in dtypes_of(query, key, options) else "float32"]
    decoded = {name: decode(x) if name.startswith("teacher") else x for name, x in options.items()}
    constant = [name_of(features) in ("float16", "bfloat16") for features in (query, key)]
    truth = similarity_oracle.similarity(decode(query), decode(key), short_rows_are_constant=constant, **decoded)
    row_oracle.close(ours["loss"].astype(np.float64), truth["loss"], precision, precision, factor=factor)
    finite = np.isfinite(truth["rows"].value)
    for name, features, regular in (("grad_query", query, (finite & truth["defined"])[:, None]), ("grad_key", key, finite.all())):
        if ours[name] is None:
            continue
        assert ours[name].shape == features.shape and ours[name].dtype == kept(features)
        stored = STORED[name_of(ours[name])]
        largest = np.abs(truth[name].value) + factor * (product_precision or precision) * truth[name].scale
        regular = regular & ~(largest >= 0.99 * stored[2])
        ours_here = np.where(regular, decode(ours[name]), 0)
        row_oracle.close(ours_here, truth[name].where(regular), product_precision or precision, *stored[:2], factor=factor)
    if ours["grad_temperature"] is not None and finite.all():
        by_temperature = ours["grad_temperature"].astype(np.float64)
        row_oracle.close(by_temperature, truth["grad_temperature"], product_precision or precision, precision, factor=factor)


def numbered(options):
    """Options with the integers of csrc/similarity.h instead of names."""
    names = {"target": similarity_oracle.TARGETS, "reduction": row_oracle.REDUCTIONS}
    return {name: names[name].index(value) if name in names else value for name, value in options.items()}


gradients = st.fixed_dictionaries({name: st.booleans() for name in ("grad_query", "grad_key", "grad_temperature")})


@st.composite
def rank_problems(draw, queries=QUERIES, keys=KEYS, widths=WIDTHS):
    """(query, key, positive, normalize, exact): `exact` features are small whole numbers with many ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, count, width, dtypes = draw(queries), draw(keys), draw(widths), draw(DTYPES)
    exact = draw(st.booleans())
    normalize = not exact and draw(st.booleans())

    def features(rows, dtype):
        if exact:
            return encode(rng.integers(-1, 2, (rows, width)).astype(np.float32), dtype)
        return encode(make_features(rng, rows, width, 1.0), dtype)

    return features(rows, dtypes[0]), features(count, dtypes[1]), rng.integers(0, count, rows), normalize, exact


def check_ranks(query, key, positive, normalize, exact, ours):
    query, key = decode(query), decode(key)
    assert ours.dtype == np.int64 and ours.shape == positive.shape
    if exact:
        similar = query @ key.T
        chosen = similar[np.arange(len(query)), positive][:, None]
        before = np.arange(len(key)) < positive[:, None]
        np.testing.assert_array_equal(ours, ((similar > chosen) | ((similar == chosen) & before)).sum(1))
        return
    low, high = similarity_oracle.rank_bounds(query, key, positive, normalize, PRECISION["float32"])
    assert ((low <= ours) & (ours <= high)).all(), (ours, low, high)
