"""Row losses whose student and teacher have different numbers of classes, of which the first are the same: padded
vocabularies."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal, assert_same_formula, draw, labels

import kdkernels as kd

OURS, THEIRS, SHARED = 9, 12, 7


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def backend(request):
    with kd.backend(request.param):
        yield request.param


def problem(dtype=torch.float64, rows=(5, 3)):
    """Logits [5, classes, 3] and labels, some of them beyond the shared classes, one ignored."""
    student, teacher = draw(5, OURS, 3, dtype=dtype), draw(5, THEIRS, 3, seed=1, dtype=dtype)
    target = labels(*rows, classes=OURS)
    target[0] = torch.tensor([8, -100, 7])
    return student, teacher, target


def narrowed(*logits):
    return [each.narrow(1, 0, SHARED) for each in logits]


def gradients(function, student, teacher):
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = function(student, teacher)
    found = torch.autograd.grad(loss.square().sum(), (student, teacher), allow_unused=True)
    return loss.detach(), *[each for each in found if each is not None]


MASK = labels(5, 3, classes=3, seed=2) > 0
REDUCTIONS = ["none", "sum", "batchmean", "elementmean"]
OF_A_TEACHER = {
    "forward": lambda s, t, **o: kd.softened_kl(s, t, temperature=2.0, mask=MASK, **o),
    "reverse": lambda s, t, **o: kd.softened_kl(s, t, divergence="reverse", skew=0.1, **o),
    "jsd": lambda s, t, **o: kd.softened_kl(s, t, divergence="jsd", **o),
    "tvd": lambda s, t, **o: kd.softened_kl(s, t, divergence="tvd", **o),
    "standardize": lambda s, t, **o: kd.softened_kl(s, t, standardize=True, **o),
    "probs": lambda s, t, **o: kd.softened_kl(s, t.softmax(1), teacher_kind="probs", **o),
    "target_eps": lambda s, t, **o: kd.softened_kl(s, t, target_eps=0.01, **o),
    "soft_cross_entropy": lambda s, t, **o: kd.soft_cross_entropy(s, t, mask=MASK, **o),
    "dkpp_loss": lambda s, t, **o: kd.dkpp_loss(s, t, permutation=draw(5, SHARED, 3, seed=3).argsort(1), **o),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", OF_A_TEACHER)
def test_is_the_loss_of_those_classes_alone(name, reduction):
    student, teacher, _ = problem()
    if name == "probs":
        teacher = teacher.narrow(1, 0, SHARED)  # a softmax over all would have other probabilities
    function, options = OF_A_TEACHER[name], {"dim": 1, "reduction": reduction}
    ours = gradients(lambda s, t: function(s, t, shared_classes=SHARED, **options), student, teacher)
    # Sliced inside of the function, so that the gradients have the shape of the logits.
    expected = gradients(lambda s, t: function(*narrowed(s, t), **options), student, teacher)
    assert_same_formula(ours, expected)


def test_equal_widths_that_share_all_classes():
    student, teacher = draw(4, 37), draw(4, 37, seed=1)
    for divergence in ("forward", "reverse", "jsd"):
        options = dict(divergence=divergence, temperature=3.0, reduction="none")
        ours = kd.softened_kl(student, teacher, shared_classes=37, **options)
        assert_equal(ours, kd.softened_kl(student, teacher, **options))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kd_loss_has_a_hard_term_of_all_classes(reduction):
    student, teacher, target = problem()
    options = {"dim": 1, "reduction": reduction, "mask": MASK, "temperature": 2.0}

    def ours(s, t):
        return kd.kd_loss(s, t, target, shared_classes=SHARED, kl_weight=0.7, ce_weight=0.4, **options)

    def expected(s, t):
        soft = kd.softened_kl(*narrowed(s, t), **options)
        how = {"elementmean": "batchmean"}.get(reduction, reduction)
        return 0.7 * soft + 0.4 * kd.label_smoothing_loss(s, target, smoothing=0.0, dim=1, reduction=how)

    assert_same_formula(gradients(ours, student, teacher), gradients(expected, student, teacher))
    _, parts = kd.kd_loss(student, teacher, target, shared_classes=SHARED, dim=1, return_parts=True)
    assert_same_formula(parts["ce"], F.cross_entropy(student, target))
    assert_same_formula(parts["kl"], kd.softened_kl(*narrowed(student, teacher), temperature=4.0, dim=1))


@pytest.mark.parametrize("adjust", ["none", "ps", "lsr"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_dynamic_temperatures(reduction, adjust):
    """Rows whose label is beyond the shared classes are not adjusted, and have their cross entropy."""
    student, teacher, target = problem()
    options = {"dim": 1, "reduction": reduction, "adjust": adjust}

    def ours(s, t):
        return kd.dynamic_temperature_kl(s, t, target, shared_classes=SHARED, ce_weight=0.4, **options)

    def expected(s, t):
        known = target.where(target < SHARED, -100)
        soft = kd.dynamic_temperature_kl(*narrowed(s, t), known, **options)
        how = {"elementmean": "batchmean"}.get(reduction, reduction)
        return soft + 0.4 * kd.label_smoothing_loss(s, target, smoothing=0.0, dim=1, reduction=how)

    assert_same_formula(gradients(ours, student, teacher), gradients(expected, student, teacher))
    loss, parts = kd.dynamic_temperature_kl(
        student, teacher, target, shared_classes=SHARED, ce_weight=0.4, return_parts=True, **options
    )
    assert_same_formula(parts["kl"] + 0.4 * parts["ce"], loss)
    target[1, 0] = OURS
    with pytest.raises(ValueError, match=r"target contains 9, valid labels are 0\.\.8"):
        ours(student, teacher)


@pytest.mark.parametrize("normalize", [True, False])
def test_confidences_are_of_the_shared_classes(normalize):
    student, teacher, target = problem()
    confidence = teacher.narrow(1, 0, SHARED).softmax(1).amax(1)
    ours = kd.cwtm_loss(student, target, teacher, shared_classes=SHARED, normalize=normalize, dim=1)
    assert_same_formula(ours, kd.cwtm_loss(student, target, confidence=confidence, normalize=normalize, dim=1))
    target[1, 0] = OURS
    with pytest.raises(ValueError, match=r"target contains 9, valid labels are 0\.\.8"):
        kd.cwtm_loss(student, target, teacher, shared_classes=SHARED, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_classes_beyond_are_not_looked_at(dtype):
    student, teacher, _ = problem(dtype)
    expected = gradients(lambda s, t: kd.softened_kl(s, t, shared_classes=SHARED, dim=1), student, teacher)
    for logits, first in ((student, SHARED), (teacher, SHARED)):
        logits[:, first:] = torch.nan
    ours = gradients(lambda s, t: kd.softened_kl(s, t, shared_classes=SHARED, dim=1), student, teacher)
    assert_equal(ours, expected)
    assert all((gradient[:, SHARED:] == 0).all() for gradient in ours[1:])


def test_mapped_over_problems():
    student, teacher, target = problem()
    ours = torch.vmap(lambda s, t, y: kd.kd_loss(s, t, y, shared_classes=SHARED, dim=0))(student, teacher, target)
    expected = [kd.kd_loss(*each, shared_classes=SHARED, dim=0) for each in zip(student, teacher, target)]
    assert_same_formula(ours, torch.stack(expected))
