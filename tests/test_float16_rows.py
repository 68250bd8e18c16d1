"""Row losses of float16 logits under a loss scale: the gradient that arrives has the digits that float16 can hold, whatever
the upstream gradient, the reduction and the way through autograd."""

from functools import partial

import pytest
import torch
from all_losses import BY_STUDENT, of_student
from helpers import double, draw, labels, op_arguments

import kdkernels as kd

pytestmark = pytest.mark.numeric

ROWS, CLASSES = 12, 1000
TARGET = labels(ROWS, classes=CLASSES)
TARGET[3] = -100
MASK = labels(ROWS, classes=3, seed=1) > 0
WEIGHT = draw(ROWS, seed=2).abs() * 10.0 ** labels(ROWS, classes=7, seed=3).sub(3)
TEMPERATURE = draw(ROWS, seed=4).abs() + 0.5
ORDER = draw(ROWS, CLASSES, seed=5).argsort(1)
PROBABILITIES = draw(ROWS, CLASSES, seed=6).softmax(1)
UPSTREAMS = (1.0, 65536.0, 3.7)


def by_name(name, s, t, **options):
    return of_student(name, student=s, teacher=t, target=TARGET, mask=MASK, row_weight=WEIGHT, permutation=ORDER, **options)


def virtual(s, t, **options):
    return kd.virtual_teacher_loss(s, TARGET, **options)


LOSSES = {
    **{name: partial(by_name, name) for name in BY_STUDENT},
    "forward": lambda s, t, **o: kd.softened_kl(s, t, temperature=4.0, **o),
    "reverse": lambda s, t, **o: kd.softened_kl(s, t, temperature=20.0, divergence="reverse", **o),
    "jsd": lambda s, t, **o: kd.softened_kl(s, t, divergence="jsd", mask=MASK, **o),
    "one row counts": lambda s, t, **o: kd.softened_kl(s, t, mask=torch.arange(ROWS) == 5, **o),
    "smoothed": lambda s, t, **o: kd.softened_kl(s, t, target_eps=1e-4, **o),
    "weights": lambda s, t, **o: kd.softened_kl(s, t, row_weight=WEIGHT, temperature=TEMPERATURE, **o),
    "log_probs": lambda s, t, **o: kd.softened_kl(s, PROBABILITIES.log().half().to(s.dtype), teacher_kind="log_probs", **o),
    "probs": lambda s, t, **o: kd.soft_cross_entropy(s, PROBABILITIES.half().to(s.dtype), teacher_kind="probs", **o),
    "kd": lambda s, t, **o: kd.kd_loss(s, t, TARGET, mask=MASK, ce_weight=0.1, label_smoothing=0.1, **o),
    "ce alone": lambda s, t, **o: kd.kd_loss(s, t, TARGET, kl_weight=0.0, **o),
    "virtual": virtual,
    "label": lambda s, t, **o: kd.label_smoothing_loss(s, TARGET, **o),
    "joint": lambda s, t, **o: kd.joint_cross_entropy(s, TARGET[:3] % 250, **o),
    "classes": lambda s, t, **o: kd.class_range_cross_entropy(s, 301 + TARGET % 400, 301, 701, **o),
    "cwtm": lambda s, t, **o: kd.cwtm_loss(s, TARGET, t, **o),
    "dkpp": lambda s, t, **o: kd.dkpp_loss(s, t, permutation=ORDER, **o),
    "dynamic": lambda s, t, **o: kd.dynamic_temperature_kl(s, t, TARGET, adjust="ps", ce_weight=1.0, **o),
}
LEARNS_TEACHER = ("forward", "reverse", "jsd", "smoothed", "weights", "kd")


def gradients(function, tensors, upstream):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    loss = function(*tensors)
    found = torch.autograd.grad(loss, tensors, torch.full_like(loss, upstream), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def assert_precise(ours, truth, dim=-1):
    """Two roundings to float16, each of 2^-11, the last perhaps of a subnormal number; and the float32 arithmetic, whose
    errors go with the largest number of a row. Beyond the largest float16 only infinity is left."""
    assert ours.dtype == torch.float16 and ours.shape == truth.shape
    largest = truth.abs().amax(dim, keepdim=True)
    allowed = 2.02 * 2.0**-11 * truth.abs() + 2.0**-25 + 2.0**-19 * largest
    error = (ours.double() - truth).abs()
    fits = truth.abs() < 65504
    assert (error <= allowed)[fits].all(), (error / allowed)[fits].max()
    assert (ours[~fits].abs() >= 65472).all()


def compare(function, *tensors, upstream=1.0, backend="auto"):
    with kd.backend(backend):
        ours = gradients(function, tensors, upstream)
    with kd.backend("reference"):
        truth = gradients(function, [double(tensor) for tensor in tensors], upstream)
    assert len(ours) == len(truth)
    for a, b in zip(ours, truth):
        assert_precise(a, b)


def logits(*shape, seed=0, scale=1.0, device="cpu"):
    return draw(*shape, seed=seed, scale=scale, dtype=torch.float16, device=device)


def test_a_vocabulary_under_a_loss_scale(machine):
    student, teacher = logits(32, 32000, device=machine), logits(32, 32000, seed=1, device=machine)
    truth = (student.double().softmax(1) - teacher.double().softmax(1)) / 32
    for upstream in UPSTREAMS:
        with kd.backend(machine):
            (ours,) = gradients(lambda s: kd.softened_kl(s, teacher), [student], upstream)
        assert_precise(ours, truth * upstream)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name):
    student, teacher = logits(ROWS, CLASSES), logits(ROWS, CLASSES, seed=1)
    for upstream in UPSTREAMS:
        if name in LEARNS_TEACHER:
            compare(LOSSES[name], student, teacher, upstream=upstream)
        compare(lambda s: LOSSES[name](s, double(teacher) if s.dtype == torch.float64 else teacher), student, upstream=upstream)


@pytest.mark.parametrize("isa", kd._loader.host.available_isas() if kd._loader.host else ())
@pytest.mark.parametrize("classes", [1, 2, 17, 100])
def test_small_rows_of_every_layout(isa, classes):
    usual = torch.ops.kdkernels.cpu_isa()
    torch.ops.kdkernels.set_cpu_isa(isa)
    try:
        for student, dim in ((logits(5, classes), 1), (logits(5, classes, 3), 1), (logits(classes, 5), 0)):
            teacher = logits(*student.shape, seed=1)
            for divergence in ("forward", "jsd"):
                compare_along(lambda s, t: kd.softened_kl(s, t, dim=dim, divergence=divergence), student, teacher, dim)
    finally:
        torch.ops.kdkernels.set_cpu_isa(usual)


def compare_along(function, student, teacher, dim):
    ours = gradients(function, (student, teacher), 4096.0)
    with kd.backend("reference"):
        truth = gradients(function, (student.double(), teacher.double()), 4096.0)
    for a, b in zip(ours, truth):
        assert_precise(a, b, dim)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean"])
@pytest.mark.parametrize("name", ["forward", "kd", "label", "dkpp"])
def test_every_reduction(name, reduction):
    student, teacher = logits(ROWS, CLASSES), logits(ROWS, CLASSES, seed=1)
    function = LOSSES[name]
    compare(lambda s: function(s, teacher.to(s.dtype), reduction=reduction), student, upstream=1024.0)


def test_learned_row_weights():
    student, teacher = logits(ROWS, CLASSES), logits(ROWS, CLASSES, seed=1)

    def loss(s):
        weight = WEIGHT.clone().requires_grad_()
        return kd.softened_kl(s, teacher.to(s.dtype), row_weight=weight)

    compare(loss, student, upstream=1024.0)


def again(s, t, upstream):
    loss = kd.softened_kl(s, t, temperature=2.0)
    torch.autograd.grad(loss, s, torch.full_like(loss, 3.0), retain_graph=True)
    return torch.autograd.grad(loss, s, torch.full_like(loss, upstream))[0]


def twice_differentiable(s, t, upstream):
    loss = kd.softened_kl(s, t, temperature=2.0)
    return torch.autograd.grad(loss, s, torch.full_like(loss, upstream), create_graph=True)[0].detach()


def batched(s, t, upstream):
    loss = kd.softened_kl(s, t, temperature=2.0)
    return torch.autograd.grad(loss, s, torch.full((2,), upstream), is_grads_batched=True)[0][1]


def functional(s, t, upstream):
    return torch.func.grad(lambda s: kd.softened_kl(s, t, temperature=2.0) * upstream)(s.detach())


def mapped(s, t, upstream):
    first = torch.func.grad(lambda s, t: kd.softened_kl(s, t, temperature=2.0, reduction="sum") * upstream / ROWS)
    return torch.vmap(first)(s.detach().view(3, ROWS // 3, -1), t.view(3, ROWS // 3, -1)).view_as(s)


def mapped_loss(s, t, upstream):
    losses = torch.vmap(lambda s, t: kd.softened_kl(s, t, temperature=2.0))(s.view(3, 4, -1), t.view(3, 4, -1))
    return torch.autograd.grad(losses, s, torch.full_like(losses, upstream / 3))[0]


def compiled(s, t, upstream):
    loss = torch.compile(lambda s, t: kd.softened_kl(s, t, temperature=2.0), fullgraph=True, backend="aot_eager")(s, t)
    return torch.autograd.grad(loss, s, torch.full_like(loss, upstream))[0]


WAYS = (again, twice_differentiable, batched, functional, mapped, mapped_loss, compiled)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_through_autograd(way):
    student, teacher = logits(ROWS, CLASSES).requires_grad_(), logits(ROWS, CLASSES, seed=1)
    z, t = student.detach().double() / 2, teacher.double() / 2
    truth = 2.0 * (z.softmax(1) - t.softmax(1)) / ROWS
    for upstream in UPSTREAMS:
        assert_precise(way(student, teacher, upstream), truth * upstream)


def test_second_derivatives_have_the_scale_of_the_first():
    student, teacher = logits(ROWS, 10).requires_grad_(), logits(ROWS, 10, seed=1)

    def second(s, t):
        (first,) = torch.autograd.grad(kd.softened_kl(s, t) * 64.0, s, create_graph=True)
        return torch.autograd.grad(first.double().square().sum(), s)[0]

    ours, truth = second(student, teacher), second(student.detach().double().requires_grad_(), teacher.double())
    assert (ours - truth).abs().max() <= 2.0**-8 * truth.abs().max()  # a handful of roundings of either factor


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_nothing_overflows_on_the_way(divergence):
    """Logits, weights and temperatures at the ends of what they may be: what the upstream gradient makes small is finite."""
    student, teacher = logits(4, 50, scale=2e4).clamp(-6e4, 6e4), logits(4, 50, seed=1, scale=2e4).clamp(-6e4, 6e4)
    student[0, 0], teacher[0, 1] = 6e4, -6e4
    weight = torch.tensor([1e-30, 1.0, 1e6, 1e20])

    def loss(s, t):
        return kd.softened_kl(s, t, divergence=divergence, temperature=20.0, row_weight=weight, reduction="none")

    ours = gradients(loss, (student, teacher), 1e-25)
    with kd.backend("reference"):
        truth = gradients(loss, (student.double(), teacher.double()), 1e-25)
    for a, b in zip(ours, truth):
        assert a.isfinite().all()
        assert ((a - b).abs() <= 2.0**-25 + 2.0**-8 * b.abs()).all()


def test_other_dtypes_are_stored_in_units_of_one():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        student, teacher = draw(4, 10, dtype=dtype), draw(4, 10, seed=1, dtype=dtype)
        op = torch.ops.kdkernels.softened_kl.default
        options = dict(temperature=1.0, kl_weight=1.0, reduction=2, dim=1, grad_student=True, grad_teacher=True)
        *_, unit_student, unit_teacher = op(*op_arguments(op, student=student, teacher=teacher, **options))
        assert unit_student is None and unit_teacher is None
