"""The mathematics of the similarity losses (csrc/similarity.h) in float64 NumPy, written from the formulas and not from any
kernel. Values come with their rounding scales, as in row_oracle.py.
"""

import numpy as np
from row_oracle import UNDERFLOW, Estimate, log_softmax, times, total

TARGETS = ("positive", "labels", "teacher")
LEAST_NORM = 1e-8


def growth(count):
    """Roundings of a sum of `count` terms, in units of one rounding of the sum of their sizes."""
    return 2 + np.sqrt(count) / 4


def unit_rows(x, normalize):
    """Rows as they are compared; per row [rows, 1] what it was multiplied by and whether its gradient is projected."""
    norm = np.sqrt((x * x).sum(1, keepdims=True)) if normalize else np.ones((len(x), 1))
    inverse = 1 / np.maximum(norm, LEAST_NORM)
    return x * inverse, inverse, (norm > LEAST_NORM) & normalize


def products(query, key, normalize):
    """[queries, keys] inner products."""
    (u, _, _), (v, _, _) = unit_rows(query, normalize), unit_rows(key, normalize)
    return Estimate(u @ v.T, growth(u.shape[1]) * (np.abs(u) @ np.abs(v.T)))


def softmax(logits):
    """Log-probabilities over the last axis, and probabilities; the error of a sum is that of its terms."""
    with np.errstate(invalid="ignore", divide="ignore"):
        log_q = log_softmax(logits.value)
    q = np.exp(log_q)
    size = np.abs(np.where(np.isfinite(log_q), log_q, 0))
    noise = logits.scale + total(times(q, logits.scale)) + 2 + size
    return Estimate(log_q, noise), Estimate(q, (q + UNDERFLOW) * noise)


@np.errstate(all="ignore")
def similarity(
    query,  # [queries, width]
    key,  # [keys, width]
    *,
    target="positive",
    teacher_query=None,
    teacher_key=None,
    positive=None,  # [queries]; None: key j for query j
    query_labels=None,  # [queries]
    key_labels=None,  # [keys]
    own_key=-1,
    temperature=1.0,
    normalize=True,
    symmetric=False,
    scale_by_t2=False,
    mask=None,  # [queries]
    row_weight=None,  # [queries]
    bias=None,  # broadcastable to [queries, keys]
    reduction="batchmean",
    short_rows_are_constant=(False, False),  # of queries, of keys
):
    """dict of Estimates: loss [losses], rows [queries], grad_query, grad_key, grad_temperature; and which queries have a defined
    gradient wherever their loss is finite, `defined` [queries]."""
    rows, keys = len(query), len(key)
    counted = np.ones(rows, bool) if mask is None else mask
    own = (np.arange(keys) == own_key + np.arange(rows)[:, None]) & (own_key >= 0)

    def logits_of(query, key, bias):
        similar = products(np.where(counted[:, None], query, 0), key, normalize)
        value = similar.value / temperature
        scale = similar.scale / temperature + np.abs(value)
        if bias is not None:
            bias = np.broadcast_to(bias, value.shape)
            value, scale = value + bias, scale + np.abs(np.where(np.isfinite(bias), bias, 0))
        return Estimate(np.where(own, -np.inf, value), scale)

    logits = logits_of(query, key, bias)
    if target == "positive":
        positive = np.arange(rows) if positive is None else positive
        p = (np.arange(keys) == np.where(counted, positive, -1)[:, None]).astype(np.float64)
    elif target == "labels":
        alike = (query_labels[:, None] == key_labels) & ~own
        counted = counted & alike.any(1)
        p = alike / np.maximum(alike.sum(1, keepdims=True), 1)
    if target == "teacher":
        log_p, (p, p_scale) = softmax(logits_of(teacher_query, teacher_key, None))
    else:  # a cross entropy: the target's own entropy is left out
        log_p, p_scale = Estimate(np.zeros_like(p), np.zeros_like(p)), p

    log_q, q = softmax(logits)
    ratio = log_p.value - log_q.value
    value = Estimate(
        total(times(p, ratio))[:, 0],
        (times(p, log_p.scale + log_q.scale) + (p_scale + q.value) * (1 + np.abs(np.where(p == 0, 0, ratio)))).sum(1),
    )
    factor = np.ones(rows) if row_weight is None else row_weight.astype(np.float64)
    if scale_by_t2:
        factor = factor * temperature**2
    divisor = {"batchmean": 1, "elementmean": keys}.get(reduction, 0) * max(counted.sum(), 1) or 1
    by_logit = np.where(counted, factor / divisor, 0)[:, None]
    gradient = (q + Estimate(-p, p_scale)) * by_logit
    defined = np.ones(rows, bool)
    if symmetric and rows:
        columns = Estimate(*(np.where(counted[:, None], x, y).T for x, y in zip(logits, (-np.inf, 0))))
        log_c, c = (Estimate(x.value.T, x.scale.T) for x in softmax(columns))
        at = (np.flatnonzero(counted), positive[counted])
        column_value = Estimate(np.zeros(rows), np.zeros(rows))
        column_value.value[counted], column_value.scale[counted] = -log_c.value[at], log_c.scale[at]
        value = (value + column_value) * 0.5
        weights = total((by_logit * p).T)[:, 0]  # of the columns
        sizes = total((np.abs(by_logit) * p).T)[:, 0]
        # A column of -inf alone has no softmax, and every query's gradient is a sum over the columns that weigh.
        defined = ~counted | ((columns.value != -np.inf).any(1) | (weights == 0)).all()
        column_gradient = Estimate(times(weights, c.value), np.where(sizes == 0, 0, sizes * (c.scale + c.value)))
        gradient = (gradient + column_gradient + Estimate(-p * by_logit, p * np.abs(by_logit))) * 0.5
    gradient = (gradient * (1 / temperature)).where(counted[:, None])
    losses = (value * factor).where(counted)

    u, query_inverse, query_projected = unit_rows(np.where(counted[:, None], query, 0), normalize)
    v, key_inverse, key_projected = unit_rows(key, normalize)

    def product(weights, others):
        size = np.abs(weights.value) * growth(weights.value.shape[1]) + weights.scale
        return Estimate(weights.value @ others, size @ np.abs(others))

    def unprojected(m, unit, inverse, projected, short_is_constant):
        size = m.scale + growth(unit.shape[1]) * np.abs(m.value)
        along = Estimate((m.value * unit).sum(1), (size * np.abs(unit)).sum(1))
        part = Estimate(unit * along.value[:, None], np.abs(unit) * (along.scale + 2 * np.abs(along.value))[:, None])
        by_row = (m + Estimate(-part.value, part.scale).where(projected)) * inverse
        constant = short_is_constant and normalize
        return by_row.where(projected) if constant else by_row, along

    by_query = product(gradient, v)
    by_key = product(Estimate(gradient.value.T, gradient.scale.T), u)
    grad_query, along = unprojected(by_query, u, query_inverse, query_projected, short_rows_are_constant[0])
    grad_key, _ = unprojected(by_key, v, key_inverse, key_projected, short_rows_are_constant[1])
    if reduction != "none":
        loss = Estimate(*(np.array([x.sum() / divisor]) for x in losses))
    return {
        "loss": losses if reduction == "none" else loss,
        "rows": losses,
        "defined": defined,
        "grad_query": grad_query.where(counted[:, None]),
        "grad_key": grad_key,
        "grad_temperature": Estimate(np.array([-along.value.sum()]), np.array([along.scale.sum()])) * (1 / temperature),
    }


def rank_bounds(query, key, positive, normalize, precision):
    """The least and the largest rank [queries] that similarities of this precision allow. Equal keys are equally similar."""
    kinds, kind = np.unique(key, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    similar = products(query, kinds, normalize)
    value, scale = similar.value[:, kind], similar.scale[:, kind]
    row, k = np.arange(len(query)), np.arange(len(key))
    least = value - value[row, positive][:, None]
    doubt = 4 * precision * (scale + scale[row, positive][:, None])
    same = kind == kind[positive][:, None]
    before = same & (k < positive[:, None])
    unclear = ~same & (np.abs(least) <= doubt)
    low = (before | (~same & (least > doubt))).sum(1)
    return low, low + unclear.sum(1)
