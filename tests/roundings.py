"""What the rounding of an arithmetic can do to a result, found without asking how PyTorch rounds on this machine.

The twin runs in float64: once for the truth, then with every result of an operation moved at random by as much as one
rounding of float32 (of float64, where that is the arithmetic) would move it. How far that takes the loss and the gradients
is the unit in which the error of a compiled op is counted. Parker 1997, "Monte Carlo arithmetic".
"""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DRAWS = 2
# Rounded relative to their result.
POINTWISE = set("add sub rsub mul div reciprocal pow sqrt rsqrt exp expm1 log log1p logaddexp sigmoid sigmoid_backward".split())


def growth(count):
    """Roundings of a sum of `count` terms in a few accumulators, in units of one rounding of the sum of their sizes."""
    return 2 + count**0.5 / 4


def of_sum(result, terms, *_, **__):
    return terms.abs().sum() * growth(terms.numel())


def of_sum_along(result, terms, dims, keepdim=False, **__):
    dims = range(terms.dim()) if not dims else dims
    return terms.abs().sum(dims, keepdim=keepdim) * growth(max(terms.numel(), 1) / max(result.numel(), 1))


def of_mean(result, terms, *where, **how):
    return (of_sum_along if where and where[0] else of_sum)(result, terms, *where, **how) * (
        result.numel() / max(terms.numel(), 1)
    )


def of_product(result, a, b):
    return a.abs().matmul(b.abs()) * growth(a.shape[-1])


def of_norm(result, *_, **__):
    return result.abs() * 4


def of_log_softmax(result, *_):
    return result.abs()


def of_softmax(result, *_):
    return result * result.log().abs().nan_to_num(0, 0, 0)


def of_logsumexp(result, *_):
    return result.abs() + 1


def of_log_softmax_backward(result, gradient, output, dim, *_):
    return gradient.abs() + output.exp() * gradient.abs().sum(dim, keepdim=True)


def of_softmax_backward(result, gradient, output, dim, *_):
    return output * (gradient.abs() + (gradient * output).abs().sum(dim, keepdim=True))


# Rounded relative to numbers that may cancel.
SIZES = {
    ("sum", "default"): of_sum,
    ("sum", "dim_IntList"): of_sum_along,
    ("mean", "default"): of_mean,
    ("mean", "dim"): of_mean,
    ("mm", "default"): of_product,
    ("bmm", "default"): of_product,
    ("linalg_vector_norm", "default"): of_norm,
    ("logsumexp", "default"): of_logsumexp,
    ("_log_softmax", "default"): of_log_softmax,
    ("_softmax", "default"): of_softmax,
    ("_log_softmax_backward_data", "default"): of_log_softmax_backward,
    ("_softmax_backward_data", "default"): of_softmax_backward,
}


class Rounded(TorchDispatchMode):
    """Float64 as if its results were rounded to `precision`, half a unit of 1, up or down at random."""

    def __init__(self, precision, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.pool = 1 + precision * (2 * torch.randint(2, (4099,), generator=generator, dtype=torch.float64) - 1)
        self.at = 0

    def factors(self, like):
        """1 up or down."""
        count, self.at = like.numel(), self.at + 1237
        drawn = self.pool.roll(self.at % len(self.pool))
        if count > len(drawn):
            drawn = drawn.repeat(-(-count // len(drawn)))
        return drawn[:count].view(like.shape).to(like.device)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if not (torch.is_tensor(result) and result.dtype is torch.float64):
            return result
        name, overload = function._schema.name.removeprefix("aten::"), function._overloadname
        if (name, overload) in SIZES:
            if not arguments[0].is_floating_point():
                return result  # counted
            size = SIZES[name, overload](result, *arguments, **(options or {})).nan_to_num(0, 0, 0)
            moved = result + size * (self.factors(result) - 1)
            if "softmax" not in name or "backward" in name:
                return moved
            # The sum of a row's exponentials and its logarithm, up to log C, err for all of its classes alike.
            size = 2 + math.log(max(result.shape[arguments[1]], 1))
            of_rows = size * (self.factors(result.sum(arguments[1], keepdim=True)) - 1)
            return moved + (of_rows if name == "_log_softmax" else result * of_rows)
        if name.rstrip("_") in POINTWISE:
            return result.mul_(self.factors(result)) if name.endswith("_") else result * self.factors(result)
        return result  # moved, chosen or compared


def estimate(call, precision):
    """[(truth, how far roundings take its numbers)] of each tensor that `call` gives, computing in float64."""
    truth = call()
    noise = [torch.zeros((), dtype=torch.float64)] * len(truth)
    for seed in range(DRAWS):
        with Rounded(precision, seed):
            moved = call()
        noise = [torch.maximum(most, _largest(a - b)) for most, a, b in zip(noise, moved, truth)]
    return [(value, most.item()) for value, most in zip(truth, noise)]


def _largest(difference):
    difference = difference.detach().double().abs().nan_to_num(0, 0, 0)
    return difference.max().cpu() if difference.numel() else torch.zeros((), dtype=torch.float64)
