"""One test per message of the similarity losses: what is refused, as which exception, in which words."""

import math
import re

import pytest
import torch
from helpers import assert_equal, draw

import kdkernels as kd

inf, nan = math.inf, math.nan
PAIRS = ("similarity_kl", "similarity_rank", "info_nce")


def call(function, **changed):
    """With good arguments, but for those changed."""
    good = {
        "similarity_kl": dict(
            student_query=draw(4, 3), student_key=draw(5, 3), teacher_query=draw(4, 2), teacher_key=draw(5, 2)
        ),
        "similarity_rank": dict(query=draw(4, 3), key=draw(5, 3), positive=torch.arange(4)),
        "select_trusted_rows": dict(rank=torch.arange(4), ratio=0.5),
        "info_nce": dict(query=draw(4, 3), key=draw(5, 3)),
        "supervised_contrastive": dict(features=draw(4, 3), labels=torch.zeros(4, dtype=torch.int64)),
    }[function]
    return getattr(kd, function)(**{**good, **changed})


def names(function):
    return ("student_query", "student_key") if function == "similarity_kl" else ("query", "key")


def refuses(error, message):
    return pytest.raises(error, match="^" + re.escape(message) + "$")


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def backend(request):
    with kd.backend(request.param):
        yield request.param


@pytest.mark.parametrize("function", [*PAIRS, "select_trusted_rows", "supervised_contrastive"])
def test_good_arguments_pass(function):
    assert call(function).isfinite().all()


@pytest.mark.parametrize("function", [*PAIRS, "supervised_contrastive"])
def test_features(function):
    query = "features" if function == "supervised_contrastive" else names(function)[0]
    with refuses(TypeError, f"{function}: {query} must be a torch.Tensor, got list"):
        call(function, **{query: [[0.0]]})
    rule = f"{function}: {query} must be float32, float16, bfloat16 or float64, got"
    with refuses(TypeError, f"{rule} int64; convert it with {query}.float()"):
        call(function, **{query: torch.zeros(4, 3, dtype=torch.int64)})
    for shape in ((4,), (4, 3, 1), (4, 0), ()):
        with refuses(
            ValueError,
            f"{function}: {query} must be [rows, width] with at least 1 column, got {list(shape)}",
        ):
            call(function, **{query: torch.zeros(shape)})


@pytest.mark.parametrize("function", PAIRS)
def test_pairs(function):
    query, key = names(function)
    with refuses(ValueError, f"{function}: {query} [4, 3] and {key} [5, 2] must have equal widths"):
        call(function, **{key: draw(5, 2)})
    with refuses(ValueError, f"{function}: {query} and {key} must be on one device, got cpu and meta"):
        call(function, **{key: torch.zeros(5, 3, device="meta")})
    with refuses(ValueError, f"{function}: at least 1 key is needed, got {key} [0, 3]"):
        call(function, **{key: torch.zeros(0, 3)})


def test_student_and_teacher():
    with refuses(
        ValueError,
        "similarity_kl: student_query [4, 3] and teacher_query [6, 2] must have as many rows as each other",
    ):
        call("similarity_kl", teacher_query=draw(6, 2))
    with refuses(
        ValueError,
        "similarity_kl: student_key [5, 3] and teacher_key [4, 2] must have as many rows as each other",
    ):
        call("similarity_kl", teacher_key=draw(4, 2))
    with refuses(
        ValueError, "similarity_kl: student_query and teacher_query must be on one device, got cpu and meta"
    ):
        meta = torch.zeros(5, 2, device="meta")
        call("similarity_kl", teacher_query=meta[:4], teacher_key=meta)
    with refuses(
        ValueError, "similarity_kl: teacher_query [4, 2] and teacher_key [5, 3] must have equal widths"
    ):
        call("similarity_kl", teacher_key=draw(5, 3))


@pytest.mark.parametrize("function", ["similarity_kl", "info_nce", "supervised_contrastive"])
def test_options(function):
    for value in (0, -1.0, inf, nan):
        with refuses(ValueError, f"{function}: temperature must be finite and > 0, got {value}"):
            call(function, temperature=value)
    with refuses(TypeError, f"{function}: temperature must be a number, got str"):
        call(function, temperature="1")
    with refuses(
        ValueError,
        f"{function}: reduction must be one of 'none', 'sum', 'batchmean', 'mean', 'elementmean', got 'max'",
    ):
        call(function, reduction="max")


@pytest.mark.parametrize("function", ["similarity_kl", "info_nce", "supervised_contrastive"])
def test_temperature_tensors(function):
    for value in (0.0, -1.0, inf, nan):
        message = f"{function}: temperature must be finite and > 0, got {value}"
        with refuses(ValueError, message):
            call(function, temperature=torch.tensor(value))
        if function == "info_nce":
            with refuses(ValueError, message):
                call(function, temperature=torch.nn.Parameter(torch.tensor(value)))
    for shape in ((2,), (1, 1), (0,)):
        with refuses(ValueError, f"{function}: temperature must be a number or a tensor of shape [] or [1], got {list(shape)}"):
            call(function, temperature=torch.ones(shape))
    rows = "features" if function == "supervised_contrastive" else names(function)[0]
    with refuses(ValueError, f"{function}: {rows} and temperature must be on one device, got cpu and meta"):
        call(function, temperature=torch.ones((), device="meta"))
    with refuses(
        TypeError,
        f"{function}: temperature must be float32, float16, bfloat16 or float64, got int64; "
        "convert it with temperature.float()",
    ):
        call(function, temperature=torch.tensor(1))


@pytest.mark.parametrize("function", ["similarity_rank", "info_nce"])
def test_positives(function):
    with refuses(TypeError, f"{function}: positive must be a torch.Tensor, got list"):
        call(function, positive=[0, 1, 2, 3])
    with refuses(TypeError, f"{function}: positive must hold integers, got float32"):
        call(function, positive=torch.zeros(4))
    with refuses(
        ValueError, f"{function}: positive must have one value per row of query [4, 3], got [5]"
    ):
        call(function, positive=torch.zeros(5, dtype=torch.int64))
    with refuses(ValueError, f"{function}: query and positive must be on one device, got cpu and meta"):
        call(function, positive=torch.zeros(4, dtype=torch.int64, device="meta"))
    for bad in (5, -1, 2**40):
        with refuses(ValueError, f"{function}: positive contains {bad}, valid keys are 0..4"):
            call(function, positive=torch.tensor([0, bad, 1, 2]))


def test_positives_of_masked_queries_are_not_looked_at():
    mask = torch.tensor([True, False, True, True])
    positive = torch.tensor([0, 7, 2, 3])
    for symmetric in (False, True):
        expected = call("info_nce", mask=mask, symmetric=symmetric, positive=torch.arange(4))
        ours = call("info_nce", mask=mask, symmetric=symmetric, positive=positive)
        assert_equal(ours, expected)


def test_diagonal():
    with refuses(
        ValueError,
        "info_nce: without positive, key j is that of query j and at least as many keys as queries are needed, "
        "got 4 queries and 3 keys; give positive",
    ):
        call("info_nce", key=draw(3, 3))
    with refuses(
        ValueError,
        "info_nce: symmetric without positive needs as many keys as queries, got 4 queries and 5 keys; "
        "give positive",
    ):
        call("info_nce", symmetric=True)


def test_logit_bias():
    for shape in ((4,), (5, 4), (4, 5, 1), (1, 4, 5)):
        with refuses(
            ValueError,
            f"info_nce: logit_bias must be broadcastable to [queries, keys], [4, 5], got {list(shape)}",
        ):
            call("info_nce", logit_bias=torch.zeros(shape))
    with refuses(
        TypeError,
        "info_nce: logit_bias must be float32, float16, bfloat16 or float64, got bool; "
        "use torch.where(logit_bias, 0.0, -torch.inf), which removes the keys of False",
    ):
        call("info_nce", logit_bias=torch.ones(4, 5, dtype=torch.bool))
    with refuses(TypeError, "info_nce: logit_bias must be a torch.Tensor, got float"):
        call("info_nce", logit_bias=1.0)
    with refuses(ValueError, "info_nce: query and logit_bias must be on one device, got cpu and meta"):
        call("info_nce", logit_bias=torch.zeros(5, device="meta"))


def test_labels():
    function = "supervised_contrastive"
    with refuses(TypeError, f"{function}: labels must hold integers, got float32"):
        call(function, labels=torch.zeros(4))
    with refuses(
        ValueError, f"{function}: labels must have one value per row of features [4, 3], got [3]"
    ):
        call(function, labels=torch.zeros(3, dtype=torch.int64))
    with refuses(ValueError, f"{function}: features and labels must be on one device, got cpu and meta"):
        call(function, labels=torch.zeros(4, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("function", ["similarity_kl", "info_nce", "supervised_contrastive"])
def test_mask(function):
    rows = "features" if function == "supervised_contrastive" else names(function)[0]
    with refuses(TypeError, f"{function}: mask must be a torch.Tensor, got bool"):
        call(function, mask=True)
    with refuses(TypeError, f"{function}: mask must be bool, got float32; convert it with mask.bool()"):
        call(function, mask=torch.ones(4))
    with refuses(ValueError, f"{function}: mask must have one value per row of {rows} [4, 3], got [5]"):
        call(function, mask=torch.ones(5, dtype=torch.bool))


def test_row_weight():
    with refuses(
        ValueError,
        "similarity_kl: row_weight must have one value per row of student_query [4, 3], got [4, 1]",
    ):
        call("similarity_kl", row_weight=torch.ones(4, 1))
    with refuses(
        TypeError,
        "similarity_kl: row_weight must be float32, float16, bfloat16 or float64, got bool; "
        "convert it with row_weight.float()",
    ):
        call("similarity_kl", row_weight=torch.ones(4, dtype=torch.bool))


def test_select_trusted_rows():
    function = "select_trusted_rows"
    for ratio in (-0.1, 1.5, nan):
        with refuses(ValueError, f"{function}: ratio must be in [0, 1], got {ratio}"):
            call(function, ratio=ratio)
    with refuses(TypeError, f"{function}: rank must hold integers, got bool"):
        call(function, rank=torch.zeros(4, dtype=torch.bool))
    with refuses(ValueError, f"{function}: rank must have one dimension, got [4, 1]"):
        call(function, rank=torch.zeros(4, 1, dtype=torch.int64))


@pytest.mark.parametrize("function", ["info_nce", "supervised_contrastive"])
def test_group(function):
    with refuses(TypeError, f"{function}: group must be a torch.distributed.ProcessGroup, got int"):
        call(function, group=1)
