"""pseudo_labels: the op against its twin and against float64, in every layout, dtype and instruction set."""

import itertools
import re
from math import inf, nan

import numpy as np
import pytest
import torch
from helpers import FLOATS, assert_accurate, draw, threads
from host_isa import host, isa  # noqa: F401  a fixture

import kdkernels as kd

pytestmark = pytest.mark.numeric

# Below a vector, at its edges, at those of the blocks in which either kernel sums.
CLASSES = (1, 2, 7, 15, 16, 17, 64, 65, 100, 129, 1001, 5003)


def check(logits, **options):
    """Confidences err by roundings alone, and the labels are those of these confidences."""
    with kd.backend(logits.device.type):
        labels, confidence = kd.pseudo_labels(logits, **options)
    dim = options.get("dim", -1)
    assert labels.dtype is torch.int64 and labels.shape == confidence.shape

    def twin():
        return [kd.reference.pseudo_labels(logits.double(), **options)[1]]

    assert_accurate([confidence], twin, ("confidence",))
    likeliest = logits.double().argmax(dim)
    threshold = options.get("threshold", 0.0)
    least = threshold.to(confidence.dtype)[likeliest] if torch.is_tensor(threshold) else threshold
    assert torch.equal(labels, torch.where(confidence >= least, likeliest, options.get("ignore_index", -100)))
    return labels, confidence


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("rows", [0, 1, 9, 70])
def test_sizes(machine, rows, classes):
    logits = draw(rows, classes, device=machine).round(decimals=1)  # with ties
    check(logits)
    check(logits, threshold=0.3, temperature=2.5, ignore_index=255)
    check(logits.t().contiguous().t(), threshold=0.3)
    check(logits.t(), threshold=0.3, dim=0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(device, dtype):
    logits = draw(3, 19, 75, dtype=dtype, device=device)
    for options in ({}, {"threshold": torch.linspace(0, 1, 19, device=device, dtype=torch.float64)}):
        _, confidence = check(logits, dim=1, **options)
        assert confidence.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        check(logits.movedim(1, -1).contiguous(), **options)


@pytest.mark.parametrize("layout", ["dim=1", "dim=0", "dim=-2", "channels_last", "every other", "slice", "one row"])
def test_layouts(machine, layout):
    logits, dim = draw(2, 10, 4, 26, device=machine), 1
    if layout == "dim=0":
        dim = 0
    if layout == "dim=-2":
        dim = -2
    if layout == "channels_last":
        logits = logits.to(memory_format=torch.channels_last)
    if layout == "every other":
        logits = draw(2, 20, 4, 52, device=machine)[:, ::2, :, ::2]
    if layout == "slice":
        logits = logits[:, :, 1:3, 3:]
    if layout == "one row":
        logits, dim = logits[0, :, 0, 0], 0
    check(logits, threshold=0.6, dim=dim)


def test_every_class_is_found(machine):
    for classes in (16, 100, 300):
        expected = torch.arange(classes, device=machine)
        logits = torch.eye(classes, device=machine)
        for where in (logits, logits.t().contiguous().t()):
            with kd.backend(machine):
                assert torch.equal(kd.pseudo_labels(where)[0], expected)
        # Of equals the lowest, wherever the second is.
        for second in (0, classes // 2, classes - 1):
            twice = logits.clone()
            twice[:, second] = 1
            for where in (twice, twice.t().contiguous().t()):
                with kd.backend(machine):
                    assert torch.equal(kd.pseudo_labels(where)[0], expected.clamp(max=second))


@pytest.mark.parametrize("backend", ["library", "reference"])
@pytest.mark.parametrize("classes", [5, 40, 200])
def test_rows_without_probabilities(machine, backend, classes):
    logits = torch.zeros(6, classes, device=machine)
    logits[0, 1] = logits[1, classes - 1] = nan
    logits[2, 2] = inf
    logits[3] = -inf
    logits[4], logits[4, 3] = -inf, -1e4
    logits[5] = nan
    for where in (logits, logits.t().contiguous().t()):
        with kd.backend(machine if backend == "library" else backend):
            labels, confidence = kd.pseudo_labels(where)
        assert labels.tolist() == [-100, -100, -100, -100, 3, -100]
        assert confidence.isnan().tolist() == [True, True, True, True, False, True] and confidence[4] == 1


def test_extreme_logits(machine):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e30, -1e30, -inf], [3e38, -3e38, 0.0]], device=machine)
    for where in (logits, logits.t().contiguous().t()):
        with kd.backend(machine):
            labels, confidence = kd.pseudo_labels(where, temperature=0.5)
        assert labels.tolist() == [0, 0, 0] and confidence.tolist() == [1.0, 0.5, 1.0]


def test_rising_classes(machine):
    """Sums that are rescaled again and again."""
    logits = torch.linspace(0, 30, 4001, device=machine)
    check(torch.stack([logits, logits.flip(0)]).t(), dim=0)
    check(torch.stack([logits, logits.flip(0)]))


@pytest.mark.parametrize("scale", [0.1, 3.0, 1e4])
@pytest.mark.parametrize("classes", [2, 19, 100, 1000])
def test_errs_no_more_than_a_softmax_does(device, classes, scale):
    logits = draw(2000, classes, scale=scale, device=device)
    truth = logits.double().softmax(1).amax(1)

    def error(confidence):
        return ((confidence.double() - truth).abs() / truth).max().item()

    eager = max(error(logits.softmax(1).amax(1)), torch.finfo(torch.float32).eps / 4)  # never 0 but by chance
    for where in (logits, logits.t().contiguous().t()):
        assert error(kd.pseudo_labels(where)[1]) <= 2 * eager


@pytest.mark.parametrize("classes", [2, 19, 100, 1001])
def test_the_same_bits_in_any_batch(machine, classes):
    logits = draw(150, classes, device=machine)
    for rows in (logits, logits.t().contiguous().t()):
        with kd.backend(machine):
            labels, confidence = kd.pseudo_labels(rows, threshold=0.5)
            for some in (slice(0, 2), slice(7, 9), slice(13, 140), slice(70, 150)):
                part = rows[some] if rows.stride(1) == 1 else rows.t()[:, some].contiguous().t()
                for ours, whole in zip(kd.pseudo_labels(part, threshold=0.5), (labels, confidence)):
                    assert torch.equal(ours, whole[some])
            with threads(1):
                assert torch.equal(kd.pseudo_labels(rows, threshold=0.5)[1], confidence)


def test_the_threshold_itself_is_enough(machine):
    logits = torch.zeros(2, 10, device=machine)
    tenth = torch.tensor(0.1).item()  # the probability in float32
    with kd.backend(machine):
        for threshold in (0.1, tenth, torch.full((10,), 0.1, device=machine)):
            assert kd.pseudo_labels(logits, threshold=threshold)[0].tolist() == [0, 0]
        assert kd.pseudo_labels(logits, threshold=0.1001)[0].tolist() == [-100, -100]
        assert kd.pseudo_labels(logits[:, :1], threshold=1.0)[0].tolist() == [0, 0]


def host_problems():
    rng = np.random.default_rng(0)
    for shape, dtype in itertools.product([(2, 19, 150), (70, 7, 1), (3, 130, 33), (5, 1000, 1)], ("f4", "f2", "f8")):
        logits = (3 * rng.normal(size=shape)).round(1).astype(dtype)
        yield logits
        yield np.moveaxis(np.moveaxis(logits, 1, 2).copy(), 2, 1)  # classes are neighbours
        yield np.moveaxis(np.moveaxis(logits, 0, 2).copy(), 2, 0)  # the outer rows are
        yield logits.repeat(2, 2)[:, :, ::2]


def compare(found, logits, temperature, threshold):
    labels, confidence = found
    rows = np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1]).astype(np.float64)
    weights = np.exp((rows - rows.max(1, keepdims=True)) / temperature)
    truth, likeliest = 1 / weights.sum(1), rows.argmax(1)
    precision = np.finfo(confidence.dtype).eps / 2
    # The exponent of a class is rounded, and so are its power and the sums of blocks.
    size = 1 + np.abs(rows - rows.max(1, keepdims=True)) / temperature
    noise = (weights * size).sum(1) * truth + 4 + np.sqrt(rows.shape[1])
    assert (np.abs(confidence - truth) <= 4 * precision * truth * noise).all()
    least = threshold.astype(confidence.dtype)[likeliest] if isinstance(threshold, np.ndarray) else threshold
    np.testing.assert_array_equal(labels, np.where(confidence >= least, likeliest, -7))


def test_every_instruction_set(isa):
    for logits in host_problems():
        for threshold in (0.25, np.linspace(0, 0.5, logits.shape[1])):
            options = {"threshold": threshold, "temperature": 1.5, "ignore_index": -7, "dim": 1}
            compare(host.pseudo_labels(logits, **options), logits, 1.5, threshold)


def test_emulated():
    """The CUDA kernel, in a thread per row, several rows per warp, a warp and a block per row."""
    import emulated

    long = np.random.default_rng(1).normal(size=(2, 9001, 1)).astype("f4").round(1)
    for number, logits in enumerate([*host_problems(), long]):
        emulated.module().set_seed(number)
        for threshold in (0.25, np.linspace(0, 0.5, logits.shape[1])):
            options = {"threshold": threshold, "temperature": 1.5, "ignore_index": -7, "dim": 1}
            compare(emulated.module().pseudo_labels(logits, **options, sm=90 if number % 2 else 75), logits, 1.5, threshold)
    broken = np.zeros((6, 40, 1), "f4")
    broken[0, 1], broken[1, 39], broken[2, 2], broken[3], broken[4], broken[5] = nan, nan, inf, -inf, -inf, nan
    broken[4, 3] = -1e4
    for where in (broken, np.moveaxis(np.moveaxis(broken, 0, 2).copy(), 2, 0)):
        labels, confidence = emulated.module().pseudo_labels(where, dim=1)
        assert labels.tolist() == [-100, -100, -100, -100, 3, -100]
        assert np.isnan(confidence).tolist() == [True, True, True, True, False, True] and confidence[4] == 1


def test_torch(device):
    logits = draw(4, 6, 10, device=device)
    with kd.backend(device):
        expected = kd.pseudo_labels(logits, threshold=0.5)
        compiled = torch.compile(kd.pseudo_labels, fullgraph=True, backend="aot_eager")
        for ours in (compiled(logits, threshold=0.5), torch.vmap(lambda each: kd.pseudo_labels(each, threshold=0.5))(logits)):
            assert all(map(torch.equal, ours, expected))
        by_last = torch.vmap(lambda each: kd.pseudo_labels(each, threshold=0.5, dim=1), in_dims=2, out_dims=1)
        assert all(map(torch.equal, by_last(logits.movedim(1, 2)), expected))
        assert not any(each.requires_grad for each in kd.pseudo_labels(logits.requires_grad_()))


def test_thresholds_that_vmap_maps(device):
    logits, thresholds = draw(4, 6, 10, device=device), torch.linspace(0, 1, 40, device=device).view(4, 10)
    with kd.backend(device):
        each = [kd.pseudo_labels(one, threshold=own) for one, own in zip(logits, thresholds)]
        expected = [torch.stack(parts) for parts in zip(*each)]
        mapped = torch.vmap(lambda one, own: kd.pseudo_labels(one, threshold=own))(logits, thresholds)
        assert all(map(torch.equal, mapped, expected))
        shared = torch.vmap(lambda own: kd.pseudo_labels(logits[0], threshold=own))(thresholds)
        assert torch.equal(shared[0][0], expected[0][0]) and shared[0].shape == (4, 6)


@pytest.mark.parametrize("thresholds", [None, torch.linspace(0, 1, 5)])
def test_opcheck(thresholds):
    op = torch.ops.kdkernels.pseudo_labels.default
    for logits, dim in ((draw(4, 5), 1), (draw(5, 4, 3, dtype=torch.float16), 0)):
        torch.library.opcheck(op, (logits, thresholds, 0.3, 2.0, -100, dim))


def test_is_what_losses_leave_out(device):
    logits = draw(3, 10, 8, device=device)
    labels, confidence = kd.pseudo_labels(logits, threshold=0.5, ignore_index=255, dim=1)
    kept = confidence >= 0.5
    ours = kd.label_smoothing_loss(logits, labels, smoothing=0.0, ignore_index=255, dim=1)
    torch.testing.assert_close(ours, -confidence[kept].log().mean())


def refuses(error, message):
    return pytest.raises(error, match="^pseudo_labels: " + re.escape(message) + "$")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_errors(backend):
    logits = torch.zeros(2, 5)
    with kd.backend(backend):
        rule = "logits must be float32, float16, bfloat16 or float64, got int64; convert it with logits.float()"
        with refuses(TypeError, rule):
            kd.pseudo_labels(logits.long())
        with refuses(ValueError, "at least 1 class is needed, got logits [2, 0] with dim=-1"):
            kd.pseudo_labels(logits[:, :0])
        for bad in (-0.1, 1.1, nan):
            with refuses(ValueError, f"threshold must be in [0, 1], got {bad}"):
                kd.pseudo_labels(logits, threshold=bad)
        for bad in (-0.5, 1.5, nan):
            with refuses(ValueError, f"threshold must be in [0, 1] for every class, got {bad}"):
                kd.pseudo_labels(logits, threshold=torch.tensor([0.0, bad, 0.0, 1.0, 0.5]))
        for shape in ((4,), (), (1,), (2, 5)):
            rule = "threshold must be a number or have one value per class, [5] for logits [2, 5] with dim=1, "
            with refuses(ValueError, f"{rule}got {list(shape)}"):
                kd.pseudo_labels(logits, threshold=torch.ones(shape))
        rule = "threshold must be float32, float16, bfloat16 or float64, got int64; convert it with threshold.float()"
        with refuses(TypeError, rule):
            kd.pseudo_labels(logits, threshold=torch.ones(5, dtype=torch.int64))
        with refuses(ValueError, "logits and threshold must be on one device, got cpu and meta"):
            kd.pseudo_labels(logits, threshold=torch.ones(5, device="meta"))
        for bad in (0.0, -1.0, inf):
            with refuses(ValueError, f"temperature must be finite and > 0, got {bad}"):
                kd.pseudo_labels(logits, temperature=bad)
        with refuses(TypeError, "ignore_index must be an int, got float"):
            kd.pseudo_labels(logits, ignore_index=255.0)
