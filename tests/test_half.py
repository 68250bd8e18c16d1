"""csrc/half.h against NumPy: every float16 and bfloat16, and the rounding of floats next to every tie."""

import platform
import subprocess

import emulated
import numpy as np
import pytest

ALL = np.arange(1 << 16, dtype=np.uint16)
LOWEST, HIGHEST = np.float32(-np.inf), np.float32(np.inf)


def bfloat16_to_float(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float_to_bfloat16(values):
    """Round to nearest even by way of exact float64 distances; not the bit trick of half.h."""
    below = (values.view(np.uint32) >> 16).astype(np.uint16)
    lower, upper = (bfloat16_to_float(bits).astype(np.float64) for bits in (below, below + np.uint16(1)))
    upper = np.where(np.isinf(upper), np.copysign(2.0**128, upper), upper)  # where the next number would stand
    down, up = np.abs(values - lower), np.abs(upper - values)
    return below + ((up < down) | ((up == down) & (below % 2 == 1)))


def same_floats(ours, theirs):
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    keep = ~np.isnan(ours)
    np.testing.assert_array_equal(ours[keep].view(np.uint32), theirs[keep].view(np.uint32))


@pytest.mark.parametrize(
    "convert, reference",
    [
        ("half_to_float", lambda bits: bits.view(np.float16).astype(np.float32)),
        ("bfloat16_to_float", bfloat16_to_float),
    ],
)
def test_every_value_to_float(convert, reference):
    same_floats(getattr(emulated.module(), convert)(ALL), reference(ALL))


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_every_value_survives_the_round_trip(name):
    values = getattr(emulated.module(), f"{name}_to_float")(ALL)
    back = getattr(emulated.module(), f"float_to_{name}")(values)
    keep = ~np.isnan(values)
    np.testing.assert_array_equal(back[keep], ALL[keep])
    assert np.isnan(getattr(emulated.module(), f"{name}_to_float")(back[~keep])).all()


def around_ties(values):
    """Between all neighbouring finite values: the middle, and the next floats below and above it."""
    values = np.unique(values[np.isfinite(values)])
    middle = (values[:-1].astype(np.float64) + values[1:]) / 2
    middle = middle.astype(np.float32)
    return np.concatenate([middle, np.nextafter(middle, LOWEST), np.nextafter(middle, HIGHEST)])


def random_floats():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    return bits.view(np.float32)


LIMITS = np.array([0, 65504, 65519.996, 65520, 65536, 1e-8, 2**-25, 2**-24, 3.4028235e38, 1e-45, np.inf], np.float32)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_rounding(name):
    ties = around_ties(getattr(emulated.module(), f"{name}_to_float")(ALL))
    values = np.concatenate([ties, random_floats(), LIMITS, -LIMITS])
    ours = getattr(emulated.module(), f"float_to_{name}")(values)
    nan = np.isnan(values)
    if name == "half":
        theirs = values.astype(np.float16).view(np.uint16)
    else:
        theirs = np.where(np.isinf(values), values.view(np.uint32) >> 16, float_to_bfloat16(values))
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(getattr(emulated.module(), f"{name}_to_float")(ours[nan])).all()


LOOP = """
#include "half.h"
void convert(const {source}* __restrict from, {result}* __restrict to, int64_t count) {{
  for (int64_t i = 0; i < count; ++i) to[i] = kd::{function}(from[i]);
}}
"""


@pytest.mark.parametrize(
    "function, source, result",
    [
        ("half_to_float", "uint16_t", "float"),
        ("float_to_half", "float", "uint16_t"),
        ("bfloat16_to_float", "uint16_t", "float"),
        ("float_to_bfloat16", "float", "uint16_t"),
    ],
)
@pytest.mark.parametrize("isa", [[], ["-mavx2"], ["-mavx512f"]])
def test_loops_are_vectorised(function, source, result, isa):
    if "g++" not in emulated.COMPILER or platform.machine() != "x86_64":
        pytest.skip("asks g++ for x86-64 what it vectorised")
    command = [emulated.COMPILER, "-std=c++17", "-O3", *isa, f"-I{emulated.ROOT}/csrc", "-fopt-info-vec-optimized"]
    code = LOOP.format(function=function, source=source, result=result)
    compiler = subprocess.run(
        [*command, "-x", "c++", "-", "-S", "-o", "/dev/null"], input=code, capture_output=True, text=True, check=True
    )
    assert "loop vectorized" in compiler.stderr
