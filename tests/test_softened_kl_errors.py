"""One test per message: what is refused, as which exception, in which words."""

import math
import re

import numpy as np
import pytest
import torch

import kdkernels as kd

inf, nan = math.inf, math.nan
FUNCTIONS = ("softened_kl", "soft_cross_entropy", "kd_loss")


def call(function="softened_kl", student=None, teacher=None, target=None, device="cpu", **options):
    student = torch.zeros(2, 3, device=device) if student is None else student
    teacher = torch.zeros(2, 3, device=device) if teacher is None else teacher
    target = torch.zeros(2, dtype=torch.int64, device=device) if target is None else target
    rest = (target,) if function == "kd_loss" else ()
    return getattr(kd, function)(student, teacher, *rest, **options)


def refuses(error, message):
    return pytest.raises(error, match="^" + re.escape(message) + "$")


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def backend(request):
    with kd.backend(request.param):
        yield request.param


@pytest.mark.parametrize("function", FUNCTIONS)
def test_good_arguments_pass(function):
    assert call(function).isfinite()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["student", "teacher"])
def test_not_a_tensor(function, name):
    with refuses(TypeError, f"{function}: {name} must be a torch.Tensor, got list"):
        call(function, **{name: [[0.0, 1.0, 2.0]]})


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["student", "teacher"])
def test_dtype(function, name):
    rule = f"{function}: {name} must be float32, float16, bfloat16 or float64, got"
    with refuses(TypeError, f"{rule} int64; convert it with {name}.float()"):
        call(function, **{name: torch.zeros(2, 3, dtype=torch.int64)})
    with refuses(TypeError, f"{rule} bool; convert it with {name}.float()"):
        call(function, **{name: torch.zeros(2, 3, dtype=torch.bool)})
    with refuses(TypeError, f"{rule} complex64"):
        call(function, **{name: torch.zeros(2, 3, dtype=torch.complex64)})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_shapes(function):
    rule = f"{function}: student [2, 3] and teacher [2, 4] must have equal shapes"
    with refuses(ValueError, f"{rule}; use shared_classes=n where the first n classes of both are the same"):
        call(function, teacher=torch.zeros(2, 4))
    with refuses(ValueError, rule):
        call(function, teacher=torch.zeros(2, 4), dim=0)
    with refuses(ValueError, f"{function}: student [2, 3] and teacher [3] must have equal shapes"):
        call(function, teacher=torch.zeros(3))
    scalar = torch.zeros(())
    with refuses(
        ValueError, f"{function}: student must have at least 1 dimension, the classes, got a scalar"
    ):
        call(function, student=scalar, teacher=scalar)
    empty = torch.zeros(2, 0)
    with refuses(ValueError, f"{function}: at least 1 class is needed, got logits [2, 0] with dim=-1"):
        call(function, student=empty, teacher=empty)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_devices(function):
    with refuses(ValueError, f"{function}: student and teacher must be on one device, got cpu and meta"):
        call(function, teacher=torch.zeros(2, 3, device="meta"))
    with refuses(ValueError, f"{function}: student and mask must be on one device, got cpu and meta"):
        call(function, mask=torch.ones(2, dtype=torch.bool, device="meta"))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_dim(function):
    for dim in (2, -3):
        with refuses(ValueError, f"{function}: dim must be in -2..1 for logits [2, 3], got {dim}"):
            call(function, dim=dim)
    with refuses(TypeError, f"{function}: dim must be an int, got float"):
        call(function, dim=1.0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_temperature(function):
    for value in (0, -1.0, inf, nan):
        with refuses(ValueError, f"{function}: temperature must be finite and > 0, got {value}"):
            call(function, temperature=value)
        with refuses(
            ValueError, f"{function}: temperature must be finite and > 0 in every row, got {float(value)}"
        ):
            call(function, temperature=torch.tensor([1.0, value]))
    with refuses(TypeError, f"{function}: temperature must be a number, got str"):
        call(function, temperature="4")
    with refuses(
        ValueError,
        f"{function}: temperature must have one value per row, [2] for logits [2, 3] with dim=1, got [3]",
    ):
        call(function, temperature=torch.ones(3))
    with refuses(ValueError, f"{function}: student and temperature must be on one device, got cpu and meta"):
        call(function, temperature=torch.ones((), device="meta"))
    with refuses(
        TypeError,
        f"{function}: temperature must be float32, float16, bfloat16 or float64, got int64; "
        "convert it with temperature.float()",
    ):
        call(function, temperature=torch.tensor([1, 2]))
    rule = f"{function}: temperature must be a constant, got a tensor that requires grad; use temperature.detach()"
    for shape in ((), 1, 2):
        learned = torch.ones(shape, requires_grad=True)
        with refuses(ValueError, rule):
            call(function, temperature=learned)
        with torch.no_grad():
            call(function, temperature=learned)


def test_names():
    with refuses(
        ValueError,
        "softened_kl: divergence must be one of 'forward', 'reverse', 'jsd', 'cross_entropy', 'tvd', got 'backward'",
    ):
        call(divergence="backward")
    with refuses(
        ValueError,
        "kd_loss: divergence must be one of 'forward', 'reverse', 'jsd', 'cross_entropy', 'tvd', got None",
    ):
        call("kd_loss", divergence=None)
    for function in FUNCTIONS[:2]:
        with refuses(
            ValueError,
            f"{function}: teacher_kind must be one of 'logits', 'log_probs', 'probs', got 'scores'",
        ):
            call(function, teacher_kind="scores")
    for function in FUNCTIONS:
        rule = f"{function}: reduction must be one of 'none', 'sum', 'batchmean', 'mean', 'elementmean', got"
        with refuses(ValueError, f"{rule} 'max'"):
            call(function, reduction="max")
        with refuses(ValueError, f"{rule} None"):
            call(function, reduction=None)
        with refuses(ValueError, f"{rule} []"):
            call(function, reduction=[])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_shared_classes(function):
    wider = torch.zeros(2, 5)
    assert call(function, teacher=wider, shared_classes=3).isfinite()
    assert call(function, teacher=wider, shared_classes=np.int64(2)).isfinite()
    for bad in (0, -1, 4, 2**40):
        with refuses(
            ValueError,
            f"{function}: shared_classes must be at least 1 and at most the number of classes of student, 3, and of "
            f"teacher, 5, got {bad}",
        ):
            call(function, teacher=wider, shared_classes=bad)
    for bad, name in ((2.0, "float"), (True, "bool"), ("3", "str")):
        with refuses(TypeError, f"{function}: shared_classes must be an int, got {name}"):
            call(function, teacher=wider, shared_classes=bad)
    for teacher in (torch.zeros(3, 5), torch.zeros(3)):
        with refuses(
            ValueError,
            f"{function}: student [2, 3] and teacher {list(teacher.shape)} must have equal shapes but for their classes, "
            "with dim=1",
        ):
            call(function, teacher=teacher, shared_classes=3)
    with refuses(ValueError, f"{function}: student and teacher must be on one device, got cpu and meta"):
        call(function, teacher=torch.zeros(2, 5, device="meta"), shared_classes=3)


@pytest.mark.parametrize("function", ["softened_kl", "kd_loss"])
def test_skew(function):
    for divergence in ("forward", "reverse"):
        for value in (-0.1, 1, 1.0, nan, inf):
            with refuses(ValueError, f"{function}: skew must be in [0, 1), got {value}"):
                call(function, divergence=divergence, skew=value)
        assert call(function, divergence=divergence, skew=np.float32(0.5)).isfinite()
    for divergence in ("jsd", "tvd", "cross_entropy"):
        assert call(function, divergence=divergence, skew=0).isfinite()
        with refuses(
            ValueError,
            f"{function}: skew must be 0 for divergence='{divergence}', got 0.1; "
            "use divergence='forward' or divergence='reverse'",
        ):
            call(function, divergence=divergence, skew=0.1)
    with refuses(TypeError, f"{function}: skew must be a number, got Tensor; use skew.item()"):
        call(function, skew=torch.tensor(0.5))


def test_standardize():
    for function in ("softened_kl", "kd_loss"):
        with refuses(TypeError, f"{function}: standardize must be a bool, got int"):
            call(function, standardize=1)
    for kind in ("probs", "log_probs"):
        with refuses(
            ValueError,
            f"softened_kl: standardize needs the teacher's logits, got teacher_kind='{kind}'; pass logits with "
            "teacher_kind='logits'",
        ):
            call(teacher_kind=kind, standardize=True)


def test_beta():
    for value in (-0.1, 1.5, nan):
        with refuses(ValueError, f"softened_kl: beta must be in [0, 1], got {value}"):
            call(divergence="jsd", beta=value)
    for value in (0, 1.0):
        assert call(beta=value) == 0  # of no meaning to the other divergences
        with refuses(
            ValueError,
            "softened_kl: beta must be in (0, 1) for divergence='jsd', which is 0 everywhere at its ends, "
            f"got {value}; use divergence='forward' or divergence='reverse'",
        ):
            call(divergence="jsd", beta=value)
    with refuses(TypeError, "softened_kl: beta must be a number, got Tensor; use beta.item()"):
        call(beta=torch.tensor(0.5))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_target_eps(function):
    for value in (-1e-7, inf, nan):
        with refuses(ValueError, f"{function}: target_eps must be finite and >= 0, got {value}"):
            call(function, target_eps=value)
    with refuses(TypeError, f"{function}: target_eps must be a number, got bool"):
        call(function, target_eps=True)


@pytest.mark.parametrize("name", ["ce_weight", "kl_weight"])
def test_weights(name):
    for value in (-1, inf, nan):
        with refuses(ValueError, f"kd_loss: {name} must be finite and >= 0, got {value}"):
            call("kd_loss", **{name: value})
    with refuses(TypeError, f"kd_loss: {name} must be a number, got NoneType"):
        call("kd_loss", **{name: None})


def test_label_smoothing():
    for value in (-0.1, 1.1, nan):
        with refuses(ValueError, f"kd_loss: label_smoothing must be in [0, 1], got {value}"):
            call("kd_loss", label_smoothing=value)


def test_target():
    with refuses(TypeError, "kd_loss: target must be a torch.Tensor, got list"):
        call("kd_loss", target=[0, 1])
    with refuses(TypeError, "kd_loss: target must hold integer class labels, got bool"):
        call("kd_loss", target=torch.zeros(2, dtype=torch.bool))
    with refuses(
        ValueError,
        "kd_loss: target of floats holds probabilities of classes and must have the shape of student, [2, 3], got [2]; "
        "convert class labels with target.long()",
    ):
        call("kd_loss", target=torch.zeros(2))
    with refuses(
        ValueError,
        "kd_loss: target must have one value per row, [2] for logits [2, 3] with dim=1, got [2, 3]",
    ):
        call("kd_loss", target=torch.zeros(2, 3, dtype=torch.int64))
    with refuses(TypeError, "kd_loss: ignore_index must be an int, got NoneType"):
        call("kd_loss", ignore_index=None)


def test_labels_out_of_range():
    for bad in (3, -1):
        with refuses(
            ValueError, f"kd_loss: target contains {bad}, valid labels are 0..2 (or ignore_index=-100)"
        ):
            call("kd_loss", target=torch.tensor([0, bad]))
    with refuses(ValueError, "kd_loss: target contains -100, valid labels are 0..2 (or ignore_index=7)"):
        call("kd_loss", target=torch.tensor([7, -100]), ignore_index=7)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_mask(function):
    with refuses(TypeError, f"{function}: mask must be a torch.Tensor, got bool"):
        call(function, mask=True)
    with refuses(TypeError, f"{function}: mask must be bool, got float32; convert it with mask.bool()"):
        call(function, mask=torch.ones(2))
    with refuses(
        ValueError, f"{function}: mask must have one value per row, [3] for logits [2, 3] with dim=0, got [2]"
    ):
        call(function, dim=0, target=torch.zeros(3, dtype=torch.int64), mask=torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_row_weight(function):
    with refuses(TypeError, f"{function}: row_weight must be a torch.Tensor, got float"):
        call(function, row_weight=1.0)
    with refuses(
        TypeError,
        f"{function}: row_weight must be float32, float16, bfloat16 or float64, got bool; "
        "convert it with row_weight.float()",
    ):
        call(function, row_weight=torch.ones(2, dtype=torch.bool))
    with refuses(
        ValueError,
        f"{function}: row_weight must have one value per row, [2] for logits [2, 3] with dim=1, got [3]",
    ):
        call(function, row_weight=torch.ones(3))
