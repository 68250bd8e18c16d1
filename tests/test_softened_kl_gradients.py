"""What backward may meet: upstream gradients, several passes, shared inputs, learned weights."""

import pytest
import torch
from helpers import assert_same_formula, check, draw, labels, run

import kdkernels as kd

pytestmark = pytest.mark.numeric


def losses(student, teacher):
    target = labels(student.shape[0], classes=student.shape[1], device=student.device)
    return (
        kd.softened_kl(student, teacher, temperature=2.0),
        kd.soft_cross_entropy(student, teacher, temperature=2.0),
        kd.kd_loss(student, teacher, target, temperature=2.0),
        kd.kd_loss(student, teacher, target, temperature=2.0, standardize=True, shared_classes=student.shape[1] - 1),
        kd.softened_kl(student, teacher, divergence="reverse", skew=0.2),
        kd.softened_kl(student, teacher, divergence="tvd"),
    )


@pytest.mark.parametrize("upstream", [1.0, 3.0, -0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_upstream_scalar(machine, upstream, dtype):
    student, teacher = (draw(9, 33, seed=seed, dtype=dtype, device=machine) for seed in (0, 1))
    check(kd.softened_kl, student, teacher, upstream=torch.tensor(upstream, device=machine))


def test_upstream_per_row(machine):
    student, teacher = draw(4, 10, 6, device=machine), draw(4, 10, 6, seed=1, device=machine)
    for upstream in (draw(4, 6, seed=2, device=machine), torch.tensor(2.0, device=machine).expand(4, 6)):
        check(kd.softened_kl, student, teacher, dim=1, reduction="none", upstream=upstream)
    check(kd.softened_kl, student, teacher, dim=1, reduction="none", upstream=draw(6, 4, device=machine).T)


def test_two_backward_passes_over_one_graph(device):
    """The first gives its buffer away; the second must neither scale it again nor return the same memory."""
    student, teacher = (
        draw(8, 10, device=device).requires_grad_(),
        draw(8, 10, seed=1, device=device).requires_grad_(),
    )
    with kd.backend(device):
        for loss in losses(student, teacher):
            loss = 3 * loss
            first = torch.autograd.grad(loss, (student, teacher), retain_graph=True)
            kept = [gradient.clone() for gradient in first]
            second = torch.autograd.grad(loss, (student, teacher), retain_graph=True)
            third = torch.autograd.grad(loss, (student, teacher))
            for a, b, c, unchanged in zip(first, second, third, kept):
                assert len({a.data_ptr(), b.data_ptr(), c.data_ptr()}) == 3
                assert torch.equal(a, unchanged) and torch.equal(b, unchanged) and torch.equal(c, unchanged)
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                torch.autograd.grad(loss, student)


def test_losses_that_share_their_inputs(device):
    student, teacher = (draw(8, 10, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
    student.requires_grad_()
    with kd.backend(device):
        separate = sum(torch.autograd.grad(loss, student)[0] for loss in losses(student, teacher))
        sum(losses(student, teacher)).backward()
    assert_same_formula(student.grad, separate)
    before = student.grad.clone()
    with kd.backend(device):
        losses(student, teacher)[0].backward()  # accumulates
    assert not torch.equal(student.grad, before)


def test_a_gradient_is_computed_only_where_it_is_needed(device):
    student, teacher = (draw(8, 10, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
    with kd.backend(device):
        assert not kd.softened_kl(student, teacher).requires_grad
        teacher.requires_grad_()
        (grad_teacher,) = torch.autograd.grad(kd.softened_kl(student, teacher), teacher)
        with torch.no_grad():
            assert not kd.softened_kl(student, teacher).requires_grad
    _, _, expected = run("reference", kd.softened_kl, student, teacher)
    assert_same_formula(grad_teacher, expected)


def test_gradient_memory_is_the_buffer_of_the_forward_pass():
    """Backward allocates nothing: what it returns was written by the forward pass."""
    student, teacher = draw(64, 1000).requires_grad_(), draw(64, 1000, seed=1)
    with kd.backend("cpu"):
        loss = kd.softened_kl(student, teacher)
        assert allocated_bytes(loss.backward) < student.numel() * 4


def allocated_bytes(function):
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())


def shifted(seed):
    return draw(3, 9, 500, seed=seed)[:, :-1]


def cropped(seed):
    return draw(3, 500, 5, 9, seed=seed)[..., :-1]


@pytest.mark.parametrize("layout, dim", [(shifted, -1), (cropped, 1)])
def test_slices_are_read_in_place(layout, dim):
    """The shift of a language model, and images without their last column: no copy of student or teacher, whether the
    teacher is sliced too or dense."""
    student, teacher = layout(0).requires_grad_(), layout(1)
    gradient = student.numel() * 4
    with kd.backend("cpu"):
        for other in (teacher, teacher.contiguous()):
            used = allocated_bytes(lambda: kd.softened_kl(student, other, dim=dim).backward())
            assert gradient <= used < 1.5 * gradient


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean", "elementmean"])
@pytest.mark.parametrize("function", [kd.softened_kl, kd.kd_loss])
def test_row_weights_that_are_learned(device, function, reduction):
    student, teacher = (draw(8, 10, seed=seed, dtype=torch.float64, device=device) for seed in (0, 1))
    rest = (labels(8, classes=10, device=device),) if function is kd.kd_loss else ()
    mask = labels(8, classes=2, device=device) > 0
    weight = draw(8, seed=2, dtype=torch.float64, device=device)
    weight[~mask] = float("nan")
    options = dict(mask=mask, reduction=reduction)
    results = []
    for backend in (device, "reference"):
        inputs = [tensor.clone().requires_grad_() for tensor in (student, teacher, weight)]
        with kd.backend(backend):
            loss = function(*inputs[:2], *rest, row_weight=inputs[2], **options)
            results.append((loss, *torch.autograd.grad(loss.sum(), inputs)))
    assert_same_formula(*results)
    assert (results[0][3][~mask] == 0).all()
    if rest:
        with kd.backend(device):
            loss, parts = function(
                *inputs[:2], *rest, row_weight=inputs[2], kl_weight=0, return_parts=True, **options
            )
            assert_same_formula(loss, parts["ce"])


@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd", "cross_entropy"])
def test_gradcheck(device, divergence, kind):
    student, teacher = (
        draw(2, 3, 1, seed=seed, scale=1.0, dtype=torch.float64, device=device) for seed in (0, 1)
    )
    if kind != "logits":
        teacher = teacher.softmax(1) if kind == "probs" else teacher.log_softmax(1)

    def loss(student, teacher):
        return kd.softened_kl(
            student,
            teacher,
            temperature=2.0,
            divergence=divergence,
            teacher_kind=kind,
            reduction="none",
            dim=1,
        )

    inputs = (student.requires_grad_(), teacher.requires_grad_())
    with kd.backend(device):
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)


def test_gradcheck_of_kd_loss(device):
    inputs = [draw(3, 3, seed=seed, dtype=torch.float64, device=device).requires_grad_() for seed in (0, 1)]
    target = torch.tensor([0, -100, 2], device=device)
    temperature = torch.tensor([1.0, 2.0, 3.0], device=device)

    def loss(student, teacher):
        return kd.kd_loss(
            student,
            teacher,
            target,
            ce_weight=0.5,
            label_smoothing=0.2,
            mask=target != 2,
            temperature=temperature,
        )

    with kd.backend(device):
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)


def test_second_derivatives_by_create_graph(device):
    """A gradient penalty: the first derivative is the op's, the second the reference's."""
    results = []
    for backend in (device, "reference"):
        student, teacher = (
            draw(6, 7, seed=s, dtype=torch.float64, device=device).requires_grad_() for s in (0, 1)
        )
        with kd.backend(backend):
            loss = 3 * kd.softened_kl(student, teacher, temperature=2.0)
            first = torch.autograd.grad(loss, (student, teacher), create_graph=True)
            second = torch.autograd.grad(
                sum((g**2).sum() for g in first), (student, teacher), retain_graph=True
            )
            again = torch.autograd.grad(loss, (student, teacher))
        results.append((*first, *second, *again))
    assert_same_formula(*results)
