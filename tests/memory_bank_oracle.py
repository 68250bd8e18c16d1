"""The mathematics of memory bank NCE in NumPy, written from the formulas of the paper and not from any kernel, and in long
double: logarithms of ratios near 1, of which thousands are added, would leave float64 too few digits to check it with;
problems drawn by hypothesis, and the comparison of a kernel's results with the formulas.

Beside each value stands its rounding scale, as in row_oracle.py.
"""

import emulated
import numpy as np
from hypothesis import strategies as st
from row_oracle import REDUCTIONS, UNDERFLOW, Estimate, close
from row_problems import FLOATS, PRECISION, STORED, decode, encode, kept, lay_out, name_of

# One feature, around one chunk of 8, the last that 32 lanes hold in one chunk each and in four, and beyond.
WIDTHS = [1, 7, 8, 9, 16, 64, 100, 128, 256, 257]
WIDE = [1000, 1024, 1025, 2100]
# One negative, around the 16 entries of a gather, a share of 512 columns, a fold of the CPU's sums, and several.
COLUMNS = [2, 3, 16, 17, 33, 512, 513, 1100]


@np.errstate(all="ignore")
def memory_bank_nce(embedding, bank, index, *, normalizer=None, temperature=1.0, eps=0.0, reduction="batchmean"):
    """dict of Estimates: loss, normalizer, positive [B] and grad_embedding [B, d]; a row of NaN for an index that is none."""
    embedding, bank = np.asarray(embedding, np.longdouble), np.asarray(bank, np.longdouble)
    rows, columns = index.shape
    entries, negatives = len(bank), columns - 1
    bad = (index < 0) | (index >= entries)
    gathered = np.where(bad[..., None], np.nan, bank[np.where(bad, 0, index)])
    products = gathered * embedding[:, None] / temperature
    scores = products.sum(-1)
    moved = np.abs(products).sum(-1) + np.abs(scores)  # what the roundings of a product can move a score by

    exponentials = np.exp(scores)
    share = np.longdouble(entries) / scores.size  # infinite where there are no scores, and Z is then NaN
    z = Estimate(share * exponentials.sum(), share * (exponentials * (1 + moved) + UNDERFLOW).sum())
    if normalizer is not None:
        z = Estimate(*(np.asarray(normalizer, np.longdouble),) * 2)
    log_z, noise = np.log(z.value), np.longdouble(negatives) / entries + eps
    moved = 4 + moved + np.abs(log_z) + z.scale / z.value + np.abs(np.log(noise))

    p = np.exp(scores - log_z)
    from_positive = -np.log(p[:, 0] / (p[:, 0] + noise))
    from_negatives = -np.log(np.longdouble(negatives) / entries / (p[:, 1:] + noise))
    losses = from_positive + from_negatives.sum(-1)
    # p / (p + c) moves by its product with 1 - itself, and so does the loss of a positive's 1 - p / (p + c).
    share = p / (p + noise)
    weights = share - (np.arange(columns) == 0)
    weight_noise = share * (1 - share) * moved + np.abs(weights) + UNDERFLOW
    loss_noise = np.abs(weights) * moved + np.column_stack([from_positive, np.abs(from_negatives)]) + UNDERFLOW
    loss = Estimate(losses, loss_noise.sum(-1))

    divisor = max(rows, 1) if reduction == "batchmean" else 1
    gradient = Estimate(
        np.einsum("bk,bkd->bd", weights, gathered), np.einsum("bk,bkd->bd", weight_noise, np.abs(gathered))
    ) * (1 / temperature / divisor)
    if reduction != "none":
        loss = Estimate(loss.value.sum(keepdims=True), loss.scale.sum(keepdims=True)) * (1 / divisor)
    return {
        "loss": double(loss),
        "normalizer": double(Estimate(z.value.reshape(1), z.scale.reshape(1))),
        "positive": double(Estimate(p[:, 0], p[:, 0] * moved[:, 0] + UNDERFLOW)),
        "grad_embedding": double(gradient),
    }


def double(estimate):
    return Estimate(*(numbers.astype(np.float64) for numbers in estimate))


@st.composite
def problems(draw, widths=st.sampled_from(WIDTHS), columns=st.sampled_from(COLUMNS)):
    """(embedding, bank, index, options): rows of features in their memory layout, options by the oracle's names."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, width, entries = draw(st.integers(0, 3)), draw(widths), draw(st.sampled_from([1, 5, 300]))
    spread = draw(st.sampled_from([0.0, 0.3, 1.0, 3.0]))  # of the scores
    temperature = draw(st.sampled_from([1.0, 0.07, 5.0]))
    embedding = rng.normal(size=(rows, width)) * spread * temperature
    bank = rng.normal(size=(entries, width)) / np.sqrt(width)
    index = rng.integers(0, entries, (rows, draw(columns)))
    options = {
        "temperature": temperature,
        "eps": draw(st.sampled_from([0.0, 1e-7, 0.1])),
        "reduction": draw(st.sampled_from(REDUCTIONS[:3])),
        "normalizer": draw(st.sampled_from([None, None, 1.0, 1e5, 1e-3])),
    }
    embedding, bank = (encode(x.astype(np.float32), draw(st.sampled_from(FLOATS))) for x in (embedding, bank))
    return aside(embedding, draw(st.integers(0, 9))), aside(bank, draw(st.integers(0, 9))), index, options


def aside(rows, front):
    """The same rows in a wider buffer of NaN, `front` elements late."""
    return lay_out(rows[:, None], (0, 1, 2), front, 1)[:, 0] if front else rows


def numbered(options):
    """Options with the integers of csrc/row_loss.h instead of names."""
    return {**options, "reduction": REDUCTIONS.index(options.get("reduction", "batchmean"))}


def check(embedding, bank, index, options, ours):
    """Compares results with the oracle. Equal terms may all round alike when they are added one after another, to a sum half
    as large as the last on average; a thread of a GPU adds up to 128: 64 roundings."""
    factor = 64
    truth = memory_bank_nce(decode(embedding), decode(bank), index, **options)
    is_double = "float64" in (name_of(embedding), name_of(bank))
    precision = PRECISION["float64" if is_double else "float32"]
    for name in ("loss", "normalizer", "positive"):
        close(ours[name].astype(np.float64), truth[name], precision, precision, factor=factor)
    if ours["grad_embedding"] is None:
        return
    gradient = ours["grad_embedding"]
    assert gradient.shape == embedding.shape and gradient.dtype == kept(embedding)
    close(decode(gradient), truth["grad_embedding"], precision, *STORED[name_of(gradient)][:2], factor=factor)


def plain_problem(rows=2, width=128, columns=40, entries=50, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    embedding, bank = rng.normal(size=(rows, width)), rng.normal(size=(entries, width))
    embedding, bank = (
        encode((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), dtype) for x in (embedding, bank)
    )
    return embedding, bank, rng.integers(0, entries, (rows, columns))


def solve_emulated(embedding, bank, index, options, seed=0, **more):
    emulated.module().set_seed(seed)
    return emulated.module().memory_bank_nce(embedding, bank, index, **numbered(options), **more)
