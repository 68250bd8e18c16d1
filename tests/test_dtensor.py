"""Rows spread over two processes: the loss and the gradients of one process that has all of them."""

from functools import partial

import forks
import pytest
import torch
import torch.distributed as dist
from all_losses import BY_STUDENT, of_student
from helpers import draw, labels

import kdkernels as kd

ROWS, CLASSES, COLUMNS = 5, 7, 3  # one process has a row more than the other
SHAPE = (ROWS, CLASSES, COLUMNS)
DOUBLE = {"dtype": torch.float64}
STUDENT, TEACHER = draw(*SHAPE, **DOUBLE), draw(*SHAPE, seed=1, **DOUBLE)
TARGET, MASK = labels(ROWS, COLUMNS, classes=CLASSES), labels(ROWS, COLUMNS, classes=2, seed=1) > 0
TARGET[:2, 0] = -100  # the processes count different numbers of rows
WEIGHT = draw(ROWS, COLUMNS, seed=2, **DOUBLE).abs()
ORDER = draw(*SHAPE, seed=4).argsort(1)

def by_name(name, s, t, w, y, m, o, **k):
    """With all that it takes of them."""
    given = {"student": s, "teacher": t, "target": y, "row_weight": w, "mask": m, "permutation": o, "return_parts": True}
    return of_student(name, **given, **k)


CASES = {
    **{name: partial(by_name, name) for name in BY_STUDENT},
    "one temperature": lambda s, t, w, y, m, o, **k: kd.softened_kl(s, t, temperature=torch.tensor(2.0), **k),
    "temperatures": lambda s, t, w, y, m, o, **k: kd.soft_cross_entropy(s, t, temperature=w.detach() + 1, mask=m, **k),
    "kd of all": lambda s, t, w, y, m, o, **k: kd.kd_loss(s, t, y, **k),
    "shared classes": lambda s, t, w, y, m, o, **k: kd.kd_loss(
        s, t.narrow(1, 0, 5), y, mask=m, shared_classes=4, divergence="reverse", skew=0.2, standardize=True, **k
    ),
    "kd of labelled rows": lambda s, t, w, y, m, o, **k: kd.kd_loss(
        s, t, y, row_weight=w, mask=m, mask_ignored=True, return_parts=True, **k
    ),
    "kd of probabilities": lambda s, t, w, y, m, o, **k: kd.kd_loss(
        s, t, t.detach().softmax(1), row_weight=w, mask=m, return_parts=True, **k
    ),
    "classes": lambda s, t, w, y, m, o, **k: kd.class_range_cross_entropy(s, y.clamp(max=3), 0, 4, **k),
    "dynamic": lambda s, t, w, y, m, o, **k: kd.dynamic_temperature_kl(
        s, t, y, mask=m, adjust="ps", ce_weight=0.5, return_parts=True, **k
    ),
}


def results(name, reduction, spread):
    """Loss, parts and gradients; `spread` makes what the case gets of each tensor."""
    tensors = [x.clone().requires_grad_() for x in (STUDENT, TEACHER, WEIGHT)]
    leaves = [spread(x) for x in tensors]
    found = CASES[name](*leaves, spread(TARGET), spread(MASK), spread(ORDER), dim=1, reduction=reduction)
    loss, parts = found if isinstance(found, tuple) else (found, {})
    gradients = torch.autograd.grad((loss * (loss.detach() + 1)).sum(), leaves, allow_unused=True)
    return loss, *parts.values(), *gradients


def cases(mesh):
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    def spread(along):
        """Dimension 0, or the last, of tensors and of rows; None: all of them everywhere."""
        return lambda x: distribute_tensor(x, mesh, [Replicate() if along is None else Shard(along % x.dim())])

    for name in CASES:
        for reduction in ("none", "sum", "batchmean", "elementmean"):
            expected = results(name, reduction, lambda x: x)
            for along in (0, -1, None):
                ours = results(name, reduction, spread(along))
                for a, b in zip(ours, expected, strict=True):
                    assert (a is None) == (b is None)
                    if a is not None:
                        assert isinstance(a, DTensor)
                        torch.testing.assert_close(a.full_tensor(), b)
                gradient = ours[-3]
                assert gradient.placements == spread(along)(STUDENT).placements

    sharded = [spread(0)(x) for x in (STUDENT, TEACHER)]
    ranks = kd.logit_rank(sharded[0], spread(0)(TARGET.clamp(min=0)), dim=1)
    assert torch.equal(ranks.full_tensor(), kd.logit_rank(STUDENT, TARGET.clamp(min=0), dim=1))

    # A sum divided by what is given needs no counting; the number may be a DTensor, too.
    for name, number in (("softened_kl", 9.0), ("kd_loss", torch.tensor(9)), ("cwtm_loss", spread(None)(torch.tensor(9.0)))):
        given = {"student": STUDENT, "teacher": TEACHER, "target": TARGET, "mask": MASK}
        ours = of_student(name, **{at: spread(0)(x) for at, x in given.items()}, denominator=number, dim=1)
        expected = of_student(name, **given, denominator=9.0, dim=1)
        torch.testing.assert_close(ours.full_tensor(), expected)

    # A teacher that is spread otherwise is spread again.
    ours = kd.softened_kl(sharded[0], spread(-1)(TEACHER), dim=1).to_local()
    torch.testing.assert_close(ours, kd.softened_kl(STUDENT, TEACHER, dim=1))

    def refused(error, message, call):
        with pytest.raises(error, match=message):
            call()

    classes = "softened_kl: student must not be sharded along its classes.*vocab_group"
    refused(ValueError, classes, lambda: kd.softened_kl(*sharded, dim=0))
    target, average = spread(0)(TARGET), {"dim": 1, "reduction": "average"}
    refused(ValueError, "kd_loss: reduction must be one of", lambda: kd.kd_loss(*sharded, target, **average))
    refused(ValueError, "dkpp_loss: permutation must be given with a DTensor", lambda: kd.dkpp_loss(*sharded, dim=1))
    refused(TypeError, "kd_loss: target must be a DTensor as student is", lambda: kd.kd_loss(*sharded, TARGET, dim=1))
    square = dist.init_device_mesh("cpu", (2, 1))
    given = STUDENT, TEACHER, TARGET
    student, teacher, target = (distribute_tensor(x, square, [Shard(0), Shard(x.dim() - 1)]) for x in given)
    ours = kd.kd_loss(student, teacher, target, dim=1).full_tensor()
    torch.testing.assert_close(ours, kd.kd_loss(*given, dim=1))
    several = "cwtm_loss: group must be given where rows are sharded along several"
    refused(ValueError, several, lambda: kd.cwtm_loss(student, target, teacher, dim=1))
    flat = spread(0)(draw(4, 3))
    refused(NotImplementedError, "info_nce: query is a DTensor", lambda: kd.info_nce(flat, flat))
    plain = flat.to_local()
    refused(NotImplementedError, "softened_kl: teacher is a DTensor", lambda: kd.softened_kl(plain, flat))
    refused(TypeError, "kd_loss: target must be a torch.Tensor", lambda: kd.kd_loss(flat, flat, [0, 1, 2, 0]))
    refused(TypeError, "softened_kl: dim must be an int", lambda: kd.softened_kl(flat, flat, dim="classes"))
    # What fits the rows of one process alone is refused on both: else that one would wait for the other.
    part = torch.ones(sharded[0].to_local().shape[0], COLUMNS)
    own = "softened_kl: row_weight must be a DTensor as student is"
    refused(TypeError, own, lambda: kd.softened_kl(*sharded, row_weight=part, dim=1))
    longer = spread(0)(torch.ones(ROWS + 1, COLUMNS, dtype=torch.bool))
    shape = r"softened_kl: mask must have the shape of student, .* or one value per row, \[5, 3\], got \[6, 3\]"
    refused(ValueError, shape, lambda: kd.softened_kl(*sharded, mask=longer, dim=1))
    # One row, or logits that are one row: a temperature of all rows is told from one of each.
    for row, T in ((draw(1, 3), torch.tensor([2.0])), (draw(3), torch.tensor(2.0))):
        spread_row = spread(None)(row)
        ours = kd.softened_kl(spread_row, spread_row + spread_row, temperature=T).to_local()
        torch.testing.assert_close(ours, kd.softened_kl(row, 2 * row, temperature=2.0))


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = dist.init_device_mesh("cpu", (2,))
    for backend in ("cpu", "reference"):
        with kd.backend(backend):
            cases(mesh)
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_are_one(tmp_path):
    forks.two(worker, str(tmp_path))
