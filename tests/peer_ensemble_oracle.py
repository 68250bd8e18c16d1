"""The mathematics of learning from an ensemble of peers (csrc/peer_ensemble.h) in NumPy, written from the formulas of the
papers and not from any kernel: chain rule step by step, in long double. Problems drawn by hypothesis, and the comparison
of a kernel's results with the formulas.

Beside each value stands its rounding scale, as in row_oracle.py: here every product and sum adds its own roundings to those of
what it is made of. Axes: n samples, a rows that learn (peers, then the leader), b peers, c classes, d features.
"""

import emulated
import numpy as np
from hypothesis import strategies as st
from row_oracle import UNDERFLOW, Estimate, close
from row_problems import FLOATS, PRECISION, STORED, decode, encode, kept, lay_out, name_of

WEIGHTS = ("attention", "gate", "others")
MIXES = ("logits", "probs", "divergences")
PARTS = ("ce_peers", "ce_leader", "kl_peers", "kl_leader")

# One class, binary, around a vector of each instruction set, a chunk of 8, a warp, common sizes, several chunks.
CLASSES = st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 256, 257, 300]) | st.integers(1, 300)
PEERS = st.sampled_from([1, 2, 3, 3, 4, 5, 8, 9, 32]) | st.integers(1, 9)
SAMPLES = st.sampled_from([2, 1, 3, 2, 1, 0])
WIDTHS = st.sampled_from([1, 7, 8, 9, 16, 17, 32, 33, 64, 70]) | st.integers(1, 70)
# Where n, a or b, and c or d come in memory, elements before and between them; plain ones half of the time.
LAYOUTS = st.just(((0, 1, 2), 0, 1)) | st.tuples(
    st.sampled_from([(0, 1, 2), (1, 0, 2), (0, 2, 1)]) | st.permutations([0, 1, 2]),
    st.integers(0, 9),
    st.sampled_from([1, 1, 1, 2]),
)


def exact(numbers):
    numbers = np.asarray(numbers, np.longdouble)
    return Estimate(numbers, np.zeros_like(numbers))


def minus(x):
    return Estimate(-x.value, x.scale)


def times(x, y):
    """Element by element; 0 where either is 0."""
    nothing = (x.value == 0) | (y.value == 0)
    value = np.where(nothing, 0, x.value * y.value)
    moved = [np.where(one == 0, 0, np.abs(one) * other) for one, other in ((x.value, y.scale), (y.value, x.scale))]
    return Estimate(value, np.abs(value) + sum(moved))


def scaled(x, factor):
    """Times a number that is rounded itself."""
    return Estimate(x.value * factor, (x.scale + np.abs(x.value)) * np.abs(factor))


def contract(subscripts, x, y):
    """np.einsum."""
    size = np.einsum(subscripts, np.abs(x.value), np.abs(y.value) + y.scale)
    return Estimate(np.einsum(subscripts, x.value, y.value), size + np.einsum(subscripts, x.scale, np.abs(y.value)))


def total(x, axis=-1):
    return Estimate(x.value.sum(axis, keepdims=True), x.scale.sum(axis, keepdims=True))


def shifted(logits):
    """Logits less the largest of their row, which no softmax notices."""
    difference = logits - logits.max(-1, keepdims=True)
    return Estimate(difference, np.abs(np.where(np.isfinite(difference), difference, 0)))


def softmax(logits, temperature=1.0):
    """Log-probabilities and probabilities over the last axis."""
    scaled = (logits.value - logits.value.max(-1, keepdims=True)) / temperature
    log_p = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    p = np.exp(log_p)
    finite = np.where(np.isfinite(scaled), scaled, 0), np.where(np.isfinite(log_p), log_p, 0)
    moved = logits.scale / temperature + 2 * np.abs(finite[0])
    noise = moved + (p * moved).sum(-1, keepdims=True) + 2 + np.abs(finite[1])
    return Estimate(log_p, noise), Estimate(p, (p + UNDERFLOW) * noise)


def through_softmax(p, by_p, temperature=1.0):
    """The gradient of the logits from that of the probabilities."""
    return scaled(times(p, by_p + minus(total(times(p, by_p)))), 1 / temperature)


def log_target(p, log_p, eps):
    """t' = p + eps and its logarithm, 0 where t' is 0. Without eps the logarithm is `log_p`, if that is known."""
    made = Estimate(p.value + eps, p.scale + (p.value + eps) * (eps > 0))
    if eps > 0 or log_p is None:
        value = np.log(made.value)
        log_p = Estimate(value, made.scale / made.value + 1 + np.abs(value))
    return made, log_p.where(made.value > 0)


def mix_logits(weights, logits):
    """[n, a, c] from W [n, a, b] and logits [n, b, c]; a class that any counting peer lacks is lacking."""
    lacking = np.isneginf(logits.value)
    mixed = contract("nab,nbc->nac", weights, logits.where(~lacking))
    lacks = np.einsum("nab,nbc->nac", weights.value != 0, lacking) > 0
    return Estimate(np.where(lacks, -np.inf, mixed.value), np.where(lacks, 0, mixed.scale))


def by_weights(by_mixed, logits):
    """The gradient of W [n, a, b] from that of the mixtures; no softmax that made them notices a missing class."""
    return contract("nac,nbc->nab", by_mixed, logits.where(np.isfinite(logits.value)))


def attention_of(query, key):
    products = contract("nad,nbd->nab", exact(query), exact(key))
    return softmax(products)[1]


def through_attention(attention, by_attention, query, key):
    by_products = through_softmax(attention, by_attention)
    return {
        "grad_query": contract("nab,nbd->nad", by_products, exact(key)),
        "grad_key": contract("nab,nad->nbd", by_products, exact(query)),
    }


def cross_entropy(logits, target):
    """Of every row [n, a], and its gradient by the logits."""
    log_q, q = softmax(logits)
    wanted = np.arange(q.value.shape[-1]) == target[:, None, None]
    value = Estimate(-np.where(wanted, log_q.value, 0).sum(-1), np.where(wanted, log_q.scale, 0).sum(-1))
    return value, Estimate(q.value - wanted, q.scale + wanted)


def row_sum(x):
    return Estimate(x.value.sum(-1), x.scale.sum(-1))


@np.errstate(all="ignore")
def peer_ensemble_loss(
    peer_logits,  # [n, b, c]
    target,  # [n]
    *,
    leader=None,  # [n, c]
    query=None,  # [n, b, d]
    key=None,  # [n, b, d]
    gate=None,  # [n, b]
    weights="attention",
    mix="logits",
    detach_targets=False,
    temperature=1.0,
    kl_weight=1.0,
    target_eps=0.0,
):
    """dict of Estimates: loss [1], parts [4], and the gradient of every tensor that was given."""
    z = np.asarray(peer_logits, np.longdouble)
    samples, peers, classes = z.shape
    logits = shifted(z)
    learning = logits
    if leader is not None:
        own = shifted(np.asarray(leader, np.longdouble)[:, None])
        learning = Estimate(*(np.concatenate(pair, 1) for pair in zip(logits, own)))
    rows = learning.value.shape[1]
    log_q, q = softmax(learning, temperature)
    peer_log_q, peer_q = (Estimate(x.value[:, :peers], x.scale[:, :peers]) for x in (log_q, q))

    if weights == "attention":
        attention = attention_of(query, key)
        even = np.full((samples, rows - peers, peers), np.longdouble(1) / peers)
        w = Estimate(*(np.concatenate([x, y], 1) for x, y in zip(attention, (even, even))))
    elif weights == "gate":
        w = exact(np.broadcast_to(gate[:, None], (samples, peers, peers)))
    else:
        even = (1 - np.eye(peers, dtype=np.longdouble)) / max(peers - 1, 1)
        w = Estimate(*(np.broadcast_to(even, (samples, peers, peers)),) * 2)

    ce, by_learning = cross_entropy(learning, target)
    gradients = {}
    kl = exact(np.zeros((samples, rows)))
    by_w = exact(np.zeros((samples, rows, peers)))
    by_peers = exact(np.zeros(z.shape))
    square = temperature**2
    if weights != "others" or peers > 1:
        if mix == "logits":
            log_p, p = softmax(mix_logits(w, logits), temperature)
            made, log_made = log_target(p, log_p, target_eps)
        elif mix == "probs":
            p = contract("nab,nbc->nac", w, peer_q)
            made, log_made = log_target(p, None, target_eps)
        else:
            each, log_each = log_target(peer_q, peer_log_q, target_eps)
            made = contract("nab,nbc->nac", w, each)
        if mix == "divergences":
            negative_entropy = row_sum(times(each, log_each))
            divergence = contract("nab,nb->na", w, negative_entropy) + minus(row_sum(times(made, log_q)))
            by_each = [  # one b after the other, lest [n, a, b, c] be large
                contract(
                    "nac,na->nc",
                    Estimate(log_each.value[:, b, None], log_each.scale[:, b, None]) + minus(log_q),
                    Estimate(w.value[..., b], w.scale[..., b]),
                )
                for b in range(peers)
            ]
            by_each = Estimate(*(np.stack(x, 1) for x in zip(*by_each)))
            through_targets = through_softmax(peer_q, by_each, temperature)
        else:
            ratio = (log_made + minus(log_q)).where(made.value > 0)
            divergence = row_sum(times(made, ratio))
            if mix == "logits":
                by_mixed = through_softmax(p, ratio, temperature)
                through_targets = contract("nab,nac->nbc", w, by_mixed)
                by_w = scaled(by_weights(by_mixed, logits), square)
            else:
                through_targets = through_softmax(peer_q, contract("nab,nac->nbc", w, ratio), temperature)
                by_w = scaled(contract("nac,nbc->nab", ratio, peer_q), square)
        kl = scaled(divergence, square)
        mass = made.value.sum(-1, keepdims=True)
        by_q = scaled(q * mass + minus(made), temperature)
        if kl_weight != 0:
            by_learning = by_learning + scaled(by_q, kl_weight)
        if kl_weight != 0 and not detach_targets:
            by_peers, by_w = scaled(through_targets, square * kl_weight), scaled(by_w, kl_weight)
        else:
            by_w = exact(np.zeros_like(by_w.value))

    ensemble_ce = exact(np.zeros((samples, 0)))
    if weights == "gate":
        g = exact(gate[:, None])
        ensemble_ce, by_ensemble = cross_entropy(mix_logits(g, logits), target)
        by_peers = by_peers + contract("nab,nac->nbc", g, by_ensemble)
        by_gate = total(by_w, 1) + by_weights(by_ensemble, logits)
        gradients["grad_gate"] = Estimate(by_gate.value[:, 0], by_gate.scale[:, 0])
    if weights == "attention":
        by_attention = Estimate(by_w.value[:, :peers], by_w.scale[:, :peers])
        gradients |= through_attention(attention, by_attention, query, key)
    gradients["grad_peer_logits"] = Estimate(by_learning.value[:, :peers], by_learning.scale[:, :peers]) + by_peers
    if leader is not None:
        gradients["grad_leader"] = Estimate(by_learning.value[:, peers], by_learning.scale[:, peers])

    share = 1 / np.longdouble(max(samples, 1))
    parts = Estimate(
        *(
            share * np.stack([c[:, :peers].sum(), c[:, peers:].sum() + e.sum(), k[:, :peers].sum(), k[:, peers:].sum()])
            for c, k, e in zip(ce, kl, ensemble_ce)
        )
    )
    weighed = times(parts, exact([1, 1, kl_weight, kl_weight]))
    gradients = {name: scaled(gradient, share) for name, gradient in gradients.items()}
    return {name: double(x) for name, x in {"loss": total(weighed), "parts": parts, **gradients}.items()}


@np.errstate(all="ignore")
def peer_mixture(
    peer_logits,  # [n, b, c]
    *,
    query=None,  # [n, b, d]
    key=None,  # [n, b, d]
    grad_mixture=None,  # [n, a, c]
    grad_attention=None,  # [n, a, b]
    mix="logits",
    temperature=1.0,
):
    """dict of Estimates: mixture [n, a, c], attention [n, a, b] and, given that of the mixture, the gradients."""
    z = np.asarray(peer_logits, np.longdouble)
    samples, peers, classes = z.shape
    if query is None:
        w = Estimate(*(np.full((samples, 1, peers), np.longdouble(1) / peers),) * 2)
    else:
        w = attention_of(query, key)
    _, q = softmax(shifted(z), temperature)
    logits = Estimate(z, np.zeros_like(z))
    found = {"mixture": mix_logits(w, logits) if mix == "logits" else contract("nab,nbc->nac", w, q)}
    if query is not None:
        found["attention"] = w
    if grad_mixture is not None:
        above = exact(grad_mixture)
        by_mixed = contract("nab,nac->nbc", w, above)
        found["grad_peer_logits"] = by_mixed if mix == "logits" else through_softmax(q, by_mixed, temperature)
        if query is not None:
            by_attention = by_weights(above, logits) if mix == "logits" else contract("nac,nbc->nab", above, q)
            if grad_attention is not None:
                by_attention = by_attention + exact(grad_attention)
            found |= through_attention(w, by_attention, query, key)
    return {name: double(x) for name, x in found.items()}


def double(estimate):
    return Estimate(*(numbers.astype(np.float64) for numbers in estimate))


def draw_logits(draw, rng, shape, spread):
    """Peers that differ, or agree to the bit."""
    logits = rng.normal(size=shape) * spread
    if draw(st.integers(0, 5)) == 0:
        logits[:, :] = logits[:, :1]
    return logits


def draw_features(draw, rng, shape):
    """query and key, their products near 0, common, or so far apart that the attention is saturated."""
    spread = draw(st.sampled_from([0.0, 0.3, 1.0, 1.0, 10.0])) / np.sqrt(np.sqrt(shape[-1]))
    return [np.maximum(rng.normal(size=shape) * spread, -spread) for _ in range(2)]


def stored(draw, array, dtype=None):
    """[n, P, .] or [n, .] in a float dtype, drawn if none is given, and a memory layout."""
    array = encode(array.astype(np.float32), dtype or draw(st.sampled_from(FLOATS)))
    if array.ndim == 2:
        return lay_out(array[:, None], *draw(LAYOUTS))[:, 0]
    return lay_out(array, *draw(LAYOUTS))


SPREADS = st.sampled_from([0.0, 1.0, 1.0, 5.0, 100.0, 1e4])
TEMPERATURES = st.sampled_from([1.0, 3.0, 3.0, 0.5, 20.0])


@st.composite
def problems(draw, classes=CLASSES, peers=PEERS, widths=WIDTHS):
    """(peer_logits, target, options): tensors in their memory layout, options by the oracle's names."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples, count, columns = draw(SAMPLES), draw(peers), draw(classes)
    weights = draw(st.sampled_from(WEIGHTS))
    mixes = {"attention": MIXES[:2], "gate": MIXES[:1], "others": MIXES}[weights]
    options = {
        "weights": weights,
        "mix": draw(st.sampled_from(mixes)),
        "detach_targets": draw(st.sampled_from([False, False, False, True])),
        "temperature": draw(TEMPERATURES),
        "kl_weight": draw(st.sampled_from([1.0, 0.3, 0.0])),
        "target_eps": draw(st.sampled_from([0.0, 1e-7, 1e-7, 0.1])),
    }
    spread = draw(SPREADS)
    peer_logits = draw_logits(draw, rng, (samples, count, columns), spread)
    if weights == "attention":
        features = draw_features(draw, rng, (samples, count, draw(widths)))
        options["query"], options["key"] = (stored(draw, x) for x in features)
        if draw(st.booleans()):
            options["leader"] = stored(draw, rng.normal(size=(samples, columns)) * spread)
    elif weights == "gate":
        gate = rng.random((samples, count))
        if draw(st.booleans()):
            gate[rng.random(gate.shape) < 0.3] = 0
        options["gate"] = stored(draw, gate / np.maximum(gate.sum(1, keepdims=True), 1e-3))
    return stored(draw, peer_logits), rng.integers(0, columns, samples), options


GRADIENTS = ("grad_peers", "grad_leader", "grad_features", "grad_gate")
gradients = st.fixed_dictionaries({name: st.booleans() for name in GRADIENTS})


@st.composite
def mixture_problems(draw, classes=CLASSES, peers=PEERS, widths=WIDTHS):
    """(peer_logits, options), options by the oracle's names."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples, count, columns = draw(SAMPLES), draw(peers), draw(classes)
    peer_logits = stored(draw, draw_logits(draw, rng, (samples, count, columns), draw(SPREADS)))
    options = {"mix": draw(st.sampled_from(MIXES[:2])), "temperature": draw(TEMPERATURES)}
    if draw(st.integers(0, 3)):
        features = draw_features(draw, rng, (samples, count, draw(widths)))
        options["query"], options["key"] = (stored(draw, x) for x in features)
    if draw(st.integers(0, 3)):
        above = rng.normal(size=(samples, count if "query" in options else 1, columns))
        options["grad_mixture"] = stored(draw, above, name_of(peer_logits))
        if "query" in options and draw(st.booleans()):
            dtype = np.float64 if is_double(peer_logits, options) else np.float32
            options["grad_attention"] = rng.normal(size=(samples, count, count)).astype(dtype)
    return peer_logits, options


def is_double(peer_logits, options):
    """What comes from above has no say."""
    tensors = [peer_logits, *(options.get(name) for name in ("leader", "query", "key", "gate"))]
    return "float64" in [name_of(x) for x in tensors if x is not None]


def decoded(options):
    return {name: decode(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


def numbered(options):
    """Options with the integers of csrc/peer_ensemble.h instead of names."""
    names = {"weights": WEIGHTS, "mix": MIXES}
    return {name: names[name].index(value) if name in names else value for name, value in options.items()}


def check_gradients(tensors, truth, ours, precision, factor, dtype_of=lambda tensor: tensor.dtype):
    for name, tensor in tensors.items():
        if name not in ours:
            continue
        assert ours[name].shape == tensor.shape and ours[name].dtype == dtype_of(tensor)
        close_stored(decode(ours[name]), truth[name], precision, STORED[name_of(ours[name])], factor)


def close_stored(ours, truth, precision, kind, factor):
    """What the dtype cannot hold is infinite, or nearly so."""
    regular = ~(np.abs(truth.value) + factor * precision * truth.scale >= 0.99 * kind[2])
    close(np.where(regular, ours, 0), truth.where(regular), precision, *kind[:2], factor=factor)


def check(peer_logits, target, options, ours, factor=4):
    """Compares results with the oracle. Where the loss is infinite, the gradients are whatever."""
    truth = peer_ensemble_loss(decode(peer_logits), target, **decoded(options))
    double = is_double(peer_logits, options)
    precision = PRECISION["float64" if double else "float32"]
    # Losses are summed in double, so the sums themselves show in double only: n equal terms added in series round n
    # partial sums, which are half the whole on average.
    summed = sum(peer_logits.shape[:2]) / 2 if double else 0
    for name in ("loss", "parts"):
        close(ours[name].astype(np.float64), truth[name], precision, precision, factor=factor + summed)
    tensors = {f"grad_{name}": options[name] for name in ("leader", "query", "key", "gate") if name in options}
    if np.isfinite(truth["parts"].value).all():
        check_gradients({"grad_peer_logits": peer_logits, **tensors}, truth, ours, precision, factor, kept)


def check_mixture(peer_logits, options, ours, factor=4):
    truth = peer_mixture(decode(peer_logits), **decoded(options))
    precision = PRECISION["float64" if is_double(peer_logits, options) else "float32"]
    kind = STORED[name_of(peer_logits)]
    close_stored(decode(ours["mixture"]), truth["mixture"], precision, kind, factor)
    assert ours["mixture"].dtype == peer_logits.dtype
    if "attention" in truth:
        close(ours["attention"].astype(np.float64), truth["attention"], precision, precision, factor=factor)
    tensors = {f"grad_{name}": options[name] for name in ("query", "key") if name in options}
    if "grad_mixture" in options:
        check_gradients({"grad_peer_logits": peer_logits, **tensors}, truth, ours, precision, factor)


def plain_problem(samples=2, peers=3, classes=100, width=8, seed=0, dtype="float32"):
    """OKDDip at the paper's settings."""
    rng = np.random.default_rng(seed)

    def tensor(*shape, spread=1.0):
        return encode((rng.normal(size=shape) * spread).astype(np.float32), dtype)

    options = {
        "leader": tensor(samples, classes, spread=3),
        "query": tensor(samples, peers, width, spread=0.7),
        "key": tensor(samples, peers, width, spread=0.7),
        "weights": "attention",
        "temperature": 3.0,
        "target_eps": 1e-7,
    }
    return tensor(samples, peers, classes, spread=3), rng.integers(0, classes, samples), options


def solve_emulated(peer_logits, target, options, seed=0, **more):
    emulated.module().set_seed(seed)
    return emulated.module().peer_ensemble_loss(peer_logits, target, **numbered(options), **more)


def mix_emulated(peer_logits, options, seed=0, **more):
    emulated.module().set_seed(seed)
    return emulated.module().peer_mixture(peer_logits, **numbered(options), **more)
