"""multi_head_kl: the compiled op against its reference twin, as a citizen of PyTorch, and every error message."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from helpers import FLOATS, assert_accurate, assert_equal, assert_same_formula, double, draw, threads

import kdkernels as kd

pytestmark = pytest.mark.numeric

inf, nan = math.inf, math.nan
DOUBLE = torch.float64
# The classes of one head each: below a vector, common, joint labels, odd, degenerate.
CLASSES = (7, 100, 400, 1001, 1)


def heads(*rows, classes=CLASSES, dtype=torch.float32, device="cpu", seed=0):
    """[students, teachers]"""
    return [
        [draw(*rows, c, seed=seed + 10 * side + at, dtype=dtype, device=device) for at, c in enumerate(classes)]
        for side in (0, 1)
    ]


def run(backend, students, teachers, upstream=1.0, **options):
    """(loss, heads, gradients)"""
    students = [student.detach().requires_grad_() for student in students]
    with kd.backend(backend):
        loss, parts = kd.multi_head_kl(students, teachers, return_parts=True, **options)
        gradients = torch.autograd.grad(loss, students, torch.full_like(loss, upstream))
    return loss.detach(), parts["heads"], *gradients


def check(students, teachers, **options):
    """The op of the tensors' device errs by roundings alone; returns what it computes."""
    ours = run(students[0].device.type, students, teachers, **options)
    doubles = [[double(tensor) for tensor in tensors] for tensors in (students, teachers)]
    assert_accurate(ours, lambda: run("reference", *doubles, **options))
    assert [gradient.dtype for gradient in ours[2:]] == [student.dtype for student in students]
    return ours


@pytest.mark.parametrize("rows", [0, 1, 3, 64, 257])
def test_sizes(machine, rows):
    check(*heads(rows, device=machine))


@pytest.mark.parametrize("count", [1, 2, 4, 17, 40])
def test_numbers_of_heads(machine, count):
    """More than one launch takes, too."""
    classes = [3 + 5 * (at % 7) for at in range(count)]
    check(*heads(6, classes=classes, device=machine), weights=[0.5 + at for at in range(count)])


@pytest.mark.parametrize("rows", [(), (4,), (2, 3), (2, 1, 3)], ids=str)
def test_dimensions_of_rows(machine, rows):
    ours = check(*heads(*rows, device=machine))
    flat = [[tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors] for tensors in heads(*rows, device=machine)]
    for mine, its in zip(ours, run(machine, *flat), strict=True):
        assert_equal(mine.reshape(its.shape), its)


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=2)), ids=str)
def test_dtypes(machine, dtypes):
    """Of student and teacher in one head, beside a head of float32."""
    students, teachers = heads(33, classes=(100, 20), device=machine)
    students[0], teachers[0] = students[0].to(dtypes[0]), teachers[0].to(dtypes[1])
    loss, parts, *_ = check(students, teachers)
    assert loss.dtype == parts.dtype == (DOUBLE if DOUBLE in dtypes else torch.float32)


@pytest.mark.parametrize("dtypes", list(itertools.permutations(FLOATS, 3)), ids=str)
def test_dtypes_among_heads(machine, dtypes):
    students, teachers = heads(9, classes=(10, 20, 40), device=machine)
    check([s.to(dtype) for s, dtype in zip(students, dtypes)], [t.to(dtypes[0]) for t in teachers])


def test_layouts(machine):
    """Classes apart, every other column, rows of a slice, expanded rows: each head in one of its own."""
    students, teachers = heads(2, 6, classes=(10, 20, 30, 40), device=machine)
    students[0] = students[0].movedim(-1, 0).contiguous().movedim(0, -1)
    students[1] = draw(2, 6, 40, device=machine)[..., ::2]
    students[2] = draw(2, 7, 30, device=machine)[:, :-1]
    teachers[2] = draw(2, 9, 30, device=machine)[:, 3:]
    teachers[3] = draw(40, device=machine).expand(2, 6, 40)
    ours = check(students, teachers)
    plain = [[tensor.contiguous() for tensor in tensors] for tensors in (students, teachers)]
    assert_accurate(ours, lambda: run("reference", *[[double(tensor) for tensor in tensors] for tensors in plain]))


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"denominator": 77}, {"weights": [0.3, 2.0, 0.0, 1.0, 5.0]}], ids=str)
def test_options(machine, options):
    students, teachers = heads(13, device=machine)
    ours = check(students, teachers, **options)
    for name, value in options.items():  # those in host memory are read, or serve as well
        assert_equal(run(machine, students, teachers, **{name: torch.tensor(value, dtype=DOUBLE)}), ours)


def test_each_head_is_a_loss_of_its_own(machine):
    """To the bit: the same rows in the same engine."""
    students, teachers = heads(13, device=machine)
    loss, parts, *gradients = run(machine, students, teachers, temperature=4.0)
    for at, (student, teacher) in enumerate(zip(students, teachers)):
        student = student.requires_grad_()
        alone = kd.softened_kl(student, teacher, temperature=4.0)
        assert_equal((parts[at], gradients[at]), (alone.detach(), *torch.autograd.grad(alone, student)))


def test_extreme_logits(machine):
    students, teachers = heads(8, classes=(37, 12, 5), device=machine)
    students[0], teachers[0] = students[0] * 1e4, teachers[0] * 1e4
    students[1][3, 4] = teachers[1][3, 4] = -inf
    teachers[1][4, 1] = -inf
    teachers[2] = students[2].clone()
    _, parts, *gradients = check(students, teachers)
    assert parts[2] == 0 and not gradients[2].any()
    students[1][5, 0] = -inf  # which the teacher finds possible
    assert check(students, teachers)[1][1] == inf
    students[2][6] = nan
    assert check(students, teachers)[0].isnan()


def test_a_head_of_weight_0_adds_nothing(machine):
    students, teachers = heads(8, classes=(37, 12), device=machine)
    students[0][2, 3], students[0][3] = -inf, nan
    loss, parts, silent, _ = check(students, teachers, weights=[0.0, 1.0])
    assert loss == parts[1] and parts[0].isnan() and not silent.any()


def test_results_do_not_depend_on_threads(machine):
    students, teachers = heads(257, classes=(100, 400, 3), device=machine)
    with threads(1):
        expected = run(machine, students, teachers)
    for count in (2, 3, 7):
        with threads(count):
            assert_equal(run(machine, students, teachers), expected)


# Derivatives


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("upstream", [1.0, 3.0, -0.5, 0.0, 65536.0])
def test_upstream_gradients(device, dtype, upstream):
    """Of more heads than are scaled at once."""
    students, teachers = heads(9, classes=(10, 20, 30, 40, 50, 60), dtype=dtype, device=device)
    with kd.backend("reference"):
        twin = lambda: run("reference", *map(doubled, (students, teachers)), upstream=upstream)  # noqa: E731
    assert_accurate(run(device, students, teachers, upstream=upstream), twin)


def doubled(tensors):
    return [double(tensor) for tensor in tensors]


def test_float16_keeps_small_gradients(device):
    """In units of its row, whatever the loss scale."""
    students, teachers = heads(64, classes=(1000, 30), dtype=torch.float16, device=device)
    for upstream in (1.0, 65536.0):
        ours = run(device, students, teachers, upstream=upstream, denominator=1e4)
        assert_accurate(ours, lambda: run("reference", *map(doubled, (students, teachers)), upstream=upstream, denominator=1e4))


def test_students_that_need_no_gradient(device):
    students, teachers = heads(5, classes=(3, 4, 5), dtype=DOUBLE, device=device)
    students[1].requires_grad_()
    with kd.backend(device):
        loss = kd.multi_head_kl(students, teachers)
        (gradient,) = torch.autograd.grad(loss, students[1])
        with torch.no_grad():
            assert not kd.multi_head_kl(students, teachers).requires_grad
    assert_same_formula((loss.detach(), gradient), (run(device, students, teachers)[0], run(device, students, teachers)[3]))


def test_a_tensor_that_is_student_twice(device):
    student, teacher = (draw(5, 4, seed=seed, dtype=DOUBLE, device=device) for seed in (0, 1))
    student.requires_grad_()
    with kd.backend(device):
        loss = kd.multi_head_kl([student, student], [teacher, teacher], weights=[1.0, 2.0])
        ours = torch.autograd.grad(loss, student)
        expected = torch.autograd.grad(3 * kd.softened_kl(student, teacher, temperature=3.0), student)
    assert_same_formula(ours, expected)


def test_backward_twice(device):
    students, teachers = heads(5, classes=(3, 4), dtype=DOUBLE, device=device)
    students = [student.requires_grad_() for student in students]
    with kd.backend(device):
        loss = kd.multi_head_kl(students, teachers)
        first = torch.autograd.grad(loss, students, retain_graph=True)
        kept = [gradient.clone() for gradient in first]
        second = torch.autograd.grad(3 * loss, students)
    assert_equal(first, tuple(kept))
    assert_same_formula([3 * gradient for gradient in first], list(second))


def test_gradcheck(device):
    students, teachers = heads(3, classes=(3, 4), dtype=DOUBLE, device=device)
    students = [student.requires_grad_() for student in students]

    def loss(*students):
        return kd.multi_head_kl(students, teachers, weights=[1.0, 0.5])

    with kd.backend(device):
        assert torch.autograd.gradcheck(loss, students)
        assert torch.autograd.gradgradcheck(loss, students)


def arguments(students, teachers, *, weights=None, denominator=None):
    """Of the op, as its schema has them."""
    wanted = [student.requires_grad for student in students]
    return students, teachers, weights, denominator, 3.0, 0.0, [1.0, 0.5], wanted


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float16, torch.float32), (DOUBLE, torch.bfloat16)], ids=str)
def test_opcheck(device, dtypes):
    students, teachers = heads(3, classes=(3, 4), device=device)
    op = torch.ops.kdkernels.multi_head_kl
    for wanted in ((True, True), (False, True), (False, False)):
        given = [student.to(dtype).requires_grad_(want) for student, dtype, want in zip(students, dtypes, wanted)]
        dtype = DOUBLE if DOUBLE in dtypes else torch.float32
        numbers = {"weights": torch.ones(2, dtype=dtype, device=device), "denominator": torch.tensor(7.0, dtype=DOUBLE, device=device)}
        for tensors in ({}, numbers):
            torch.library.opcheck(op.default, arguments(given, teachers, **tensors))
    flat = arguments(given, teachers)
    scalars = [torch.tensor(number, dtype=DOUBLE) for number in (3.0, 0.0, 1.0, 0.5)]
    torch.library.opcheck(op.open, (*flat[:4], *scalars[:2], scalars[2:], flat[-1]))


def test_registered_autograd_is_the_one_of_the_function(device):
    """Who calls the op itself, as a compiled graph does, gets the gradients of the reference, asked for or not."""
    students, teachers = heads(3, classes=(3, 4), dtype=DOUBLE, device=device)
    students = [student.requires_grad_() for student in students]
    expected = run("reference", students, teachers, weights=[1.0, 0.5])
    for wanted in ([True, True], [False, True], [False, False]):
        *given, _ = arguments(students, teachers)
        loss, parts, stored, _ = torch.ops.kdkernels.multi_head_kl(*given, wanted)
        kept = [gradient.clone() for gradient in stored]
        ours = torch.autograd.grad(3 * loss, students)
        assert_same_formula((loss, parts, *ours), (*expected[:2], *[3 * gradient for gradient in expected[2:]]))
        assert_equal(stored, kept)


# Compilation and transforms


@pytest.mark.parametrize("backend", ["library", "reference"])
def test_compile(device, backend):
    backend = device if backend == "library" else backend

    def step(students, teachers, **options):
        loss, parts = kd.multi_head_kl(students, teachers, return_parts=True, **options)
        return 2 * loss**2, parts["heads"]

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    weights = torch.tensor([1.0, 0.5, 0.0], dtype=DOUBLE, device=device)
    for rows, options in ((5, {}), (7, {}), (7, {"weights": weights}), (6, {"denominator": torch.tensor(9, device=device)})):
        students, teachers = heads(rows, classes=(3, 4, 5), dtype=DOUBLE, device=device)
        students = [student.requires_grad_() for student in students]
        found = []
        for function in (compiled, step):
            with kd.backend(backend):
                loss, parts = function(students, teachers, **options)
                found.append((loss.detach(), parts, *torch.autograd.grad(loss, students)))
        assert_same_formula(*found)


def test_compile_by_inductor(device):
    """With what stands before it in a network: a projection per head."""

    def step(features, weights, teachers):
        return kd.multi_head_kl([features @ weight for weight in weights], teachers)

    features = draw(6, 8, dtype=DOUBLE, device=device)
    weights = [draw(8, c, seed=c, scale=0.3, dtype=DOUBLE, device=device).requires_grad_() for c in (3, 5)]
    _, teachers = heads(6, classes=(3, 5), dtype=DOUBLE, device=device)
    found = []
    with kd.backend(device):
        for function in (torch.compile(step, fullgraph=True), step):
            loss = function(features, weights, teachers)
            found.append((loss.detach(), *torch.autograd.grad(loss, weights)))
    assert_same_formula(*found)


def both(device, function, *tensors):
    """The same transform over the op and over the reference."""
    with kd.backend(device):
        ours = function(*tensors)
    with kd.backend("reference"):
        assert_same_formula(ours, function(*tensors))


def test_func_derivatives(device):
    students, teachers = heads(3, classes=(3, 4), dtype=DOUBLE, device=device)

    def square(one, other):
        return kd.multi_head_kl([one, other], teachers, weights=[1.0, 0.5]) ** 2

    first = torch.func.grad(square, (0, 1))
    both(device, first, *students)
    both(device, torch.func.grad(lambda *s: sum(g.square().sum() for g in first(*s)), (0, 1)), *students)
    both(device, torch.func.jacrev(square, (0, 1)), *students)


@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0, 0), (1, None, -1, 0, None), (None, 0, None, 0, None), (None, None, 0, 0, 0)], ids=str)
def test_vmap(device, in_dims):
    drawn = [sum(heads(4, classes=(3, 5), dtype=DOUBLE, device=device, seed=100 * seed), []) for seed in range(3)]
    tensors = [each[0] if at is None else torch.stack(each, at) for each, at in zip(zip(*drawn), in_dims)]
    weights = [draw(2, seed=seed, dtype=DOUBLE, device=device).abs() for seed in range(3)]
    tensors.append(weights[0] if in_dims[4] is None else torch.stack(weights))

    def loss(one, other, first, second, weights):
        return kd.multi_head_kl([one, other], [first, second], weights=weights, return_parts=True)

    def square(*tensors):
        return loss(*tensors)[0] ** 2

    both(device, torch.vmap(loss, in_dims), *tensors)
    both(device, torch.vmap(torch.func.grad(square, (0, 1)), in_dims), *tensors)
    both(device, torch.func.grad(lambda *t: torch.vmap(square, in_dims)(*t).sum(), (0, 1)), *tensors)


def test_vmap_of_the_op_itself(device):
    students, teachers = heads(2, 4, classes=(3, 5), dtype=torch.float16, device=device)
    op, options = torch.ops.kdkernels.multi_head_kl, (None, None, 3.0, 0.0, [1.0, 0.5], [True, False])

    def each(students, teachers):
        return op(students, teachers, *options)

    loss, parts, gradients, units = torch.vmap(each, (0, None))(students, [teacher[0] for teacher in teachers])
    assert loss.shape == (2,) and parts.shape == (2, 2) and units.shape == (2, 1, 4)
    for at in range(2):
        alone = each([student[at] for student in students], [teacher[0] for teacher in teachers])
        assert_equal((loss[at], parts[at], gradients[0][at], units[at, 0]), (*alone[:2], alone[2][0], alone[3][0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_nothing(device, dtype):
    students, teachers = heads(9, classes=(10, 20), device=device)
    expected = run(device, students, teachers)
    with torch.autocast(device, dtype):
        assert_equal(run(device, students, teachers), expected)


def test_inference_mode(device):
    with torch.inference_mode():
        _, teachers = heads(4, classes=(3, 5), dtype=DOUBLE, device=device)
    students, usual = heads(4, classes=(3, 5), dtype=DOUBLE, device=device)
    assert_equal(run(device, students, teachers), run(device, students, usual))


# What is refused


def refuses(error, message):
    return pytest.raises(error, match="^" + re.escape("multi_head_kl: " + message) + "$")


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with kd.backend(request.param):
        yield request.param


A, B = torch.zeros(4, 3), torch.zeros(4, 5)


@pytest.mark.parametrize(
    "students, teachers, error, message",
    [
        (A, A, TypeError, "students must be a list of tensors, one per head, got Tensor"),
        ([A], A, TypeError, "teachers must be a list of tensors, one per head, got Tensor"),
        ([], [], ValueError, "students must have at least 1 head, got an empty list"),
        ([A], (), ValueError, "teachers must have at least 1 head, got an empty tuple"),
        ([A, B], [A], ValueError, "students and teachers must have one tensor per head each, got 2 and 1"),
        ([A, B], [A, A], ValueError, "students[1] [4, 5] and teachers[1] [4, 3] must have equal shapes"),
        (
            [A, B[:2]],
            [A, B[:2]],
            ValueError,
            "students[0] [4, 3] and students[1] [2, 5] must have the same rows, all dimensions but the last",
        ),
        (
            [A, B[None]],
            [A, B[None]],
            ValueError,
            "students[0] [4, 3] and students[1] [1, 4, 5] must have the same rows, all dimensions but the last",
        ),
        ([A, A[0, 0]], [A, A[0, 0]], ValueError, "students[1] must be [..., C] with at least 1 class, got []"),
        ([A[:, :0]], [A[:, :0]], ValueError, "students[0] must be [..., C] with at least 1 class, got [4, 0]"),
        (
            [A, A.long()],
            [A, A],
            TypeError,
            "students[1] must be float32, float16, bfloat16 or float64, got int64; convert it with students[1].float()",
        ),
        ([A], [None], TypeError, "teachers[0] must be a torch.Tensor, got NoneType"),
        ([A.to("meta"), B], [A.to("meta"), B], ValueError, "students[0] and students[1] must be on one device, got meta and cpu"),
        ([A], [A.to("meta")], ValueError, "students[0] and teachers[0] must be on one device, got cpu and meta"),
        (
            [A, B],
            [A, B.clone().requires_grad_()],
            ValueError,
            "teachers[1] must be a constant, got a tensor that requires grad; use teachers[1].detach()",
        ),
        (
            [torch.zeros(1).expand(1, 2**24 + 1)],
            [torch.zeros(1).expand(1, 2**24 + 1)],
            ValueError,
            "at most 16777216 classes are possible, got students[0] [1, 16777217]",
        ),
    ],
)
def test_heads_that_are_refused(backend, students, teachers, error, message):
    with refuses(error, message):
        kd.multi_head_kl(students, teachers)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"weights": [1.0]}, ValueError, "weights must have one number per head, 2, got 1"),
        ({"weights": torch.ones(3)}, ValueError, "weights must have one number per head, [2], got [3]"),
        ({"weights": torch.ones(2, 1)}, ValueError, "weights must have one number per head, [2], got [2, 1]"),
        ({"weights": [1.0, -2.0]}, ValueError, "weights[1] must be finite and >= 0, got -2.0"),
        ({"weights": torch.tensor([nan, 1.0])}, ValueError, "weights[0] must be finite and >= 0, got nan"),
        ({"weights": [inf, 1.0]}, ValueError, "weights[0] must be finite and >= 0, got inf"),
        ({"weights": [1.0, "1"]}, TypeError, "weights[1] must be a number, got str"),
        ({"weights": 1.0}, TypeError, "weights must be a list of numbers or a tensor, one per head, got float"),
        (
            {"weights": torch.ones(2, dtype=torch.int64)},
            TypeError,
            "weights must be float32, float16, bfloat16 or float64, got int64; convert it with weights.float()",
        ),
        (
            {"weights": torch.ones(2, requires_grad=True)},
            ValueError,
            "weights must be a constant, got a tensor that requires grad; use weights.detach()",
        ),
        ({"denominator": 0}, ValueError, "denominator must be finite and > 0, got 0"),
        ({"denominator": torch.tensor(True)}, TypeError, "denominator must hold a float or an integer, got bool"),
        ({"denominator": torch.ones(2)}, ValueError, "denominator must be a number or a tensor of shape [] or [1], got [2]"),
        ({"denominator": "1"}, TypeError, "denominator must be a number, got str"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0.0"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and > 0, got -1.0"),
        ({"temperature": torch.ones(4)}, ValueError, "temperature must be a number or a tensor of shape [] or [1], got [4]"),
        ({"return_parts": 1}, TypeError, "return_parts must be a bool, got int"),
    ],
)
def test_options_that_are_refused(backend, options, error, message):
    with refuses(error, message):
        kd.multi_head_kl([A, B], [A, B], **options)


def test_teachers_that_require_grad_where_nothing_does(backend):
    with torch.no_grad():
        assert kd.multi_head_kl([A], [A.clone().requires_grad_()]) == 0


def test_numpy_numbers_and_tuples(backend):
    students, teachers = heads(3, classes=(3, 4), dtype=DOUBLE)
    expected = kd.multi_head_kl(students, teachers, weights=[0.5, 2.0])
    for weights in ((0.5, 2), [np.float32(0.5), np.int64(2)]):
        assert kd.multi_head_kl(tuple(students), tuple(teachers), weights=weights) == expected


@pytest.mark.parametrize("bad", [{"weights": [1.0, -1.0]}, {"denominator": 0.0}, {"denominator": -2.0}], ids=str)
def test_tensors_that_are_not_read_make_the_loss_nan(device, bad):
    """In a graph; on a device as well."""
    students, teachers = heads(3, classes=(3, 4), dtype=DOUBLE, device=device)
    given = {name: torch.tensor(value, dtype=DOUBLE, device=device) for name, value in bad.items()}
    compiled = torch.compile(lambda: kd.multi_head_kl(students, teachers, **given), fullgraph=True, backend="eager")
    for name in (device, "reference"):
        with kd.backend(name):
            assert compiled().isnan()
