"""What all public functions accept and refuse alike: numbers, flags, labels, temperatures, layouts, sizes."""

import inspect
import re

import numpy as np
import pytest
import torch
from good_arguments import GOOD, call, doubles
from helpers import assert_same_formula
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import kdkernels as kd
from kdkernels._checks import common

OPTIONS = {name: inspect.signature(getattr(kd, name)).parameters for name in GOOD}
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]
LAYOUTS = {
    "sparse_coo": (torch.Tensor.to_sparse, "to_dense()"),
    "sparse_csr": (lambda tensor: tensor.reshape(len(tensor), -1).to_sparse_csr(), "to_dense()"),
    "nested": (
        lambda tensor: torch.nested.nested_tensor(list(tensor), layout=torch.jagged),
        "values()",
    ),
    "nested strided": (lambda tensor: torch.nested.nested_tensor(list(tensor)), "to_padded_tensor(0.0) and a mask"),
}


def of_kind(kind):
    """(function, option) for the options whose default is of this type."""
    return [(f, name) for f in GOOD for name, p in OPTIONS[f].items() if type(p.default) is kind]


def tensors(kind):
    """(function, argument) for the tensors that `kind` tells of."""
    return [(f, name) for f in GOOD for name, value in GOOD[f].items() if torch.is_tensor(value) and kind(value)]


TEMPERATURES = [(f, name) for f, name in of_kind(float) if name.endswith("temperature")]
LABELS = [(f, name) for f, name in tensors(lambda value: value.dtype is torch.int64) if name == "target"]


def refuses(error, message):
    return pytest.raises(error, match="^" + re.escape(message) + "$")


def equal(ours, expected):
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected):
        assert torch.equal(one, other) and one.dtype is other.dtype


def leaf(value):
    """A copy that requires grad, of a float tensor."""
    return value.clone().requires_grad_() if torch.is_tensor(value) and value.is_floating_point() else value


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    with kd.backend(request.param):
        yield request.param


@pytest.fixture
def unread(monkeypatch):
    """As if the numbers were on a device, or in a graph."""
    monkeypatch.setattr(common, "readable", lambda tensor: False)


def test_every_function_is_here():
    assert set(GOOD) == set(kd.functional.__all__)


# Numbers and flags


@pytest.mark.parametrize("function, name", [*of_kind(float), ("select_trusted_rows", "ratio")], ids=str)
def test_numpy_numbers(backend, function, name):
    default = 0.5 if name == "ratio" else OPTIONS[function][name].default
    for kind in (np.float64, np.float32, np.float16, np.int64, np.uint8):
        value = kind(default)
        if name.endswith("temperature") and value == 0:
            continue
        equal(call(function, **{name: value}), call(function, **{name: value.item()}))
    with refuses(TypeError, f"{function}: {name} must be a number, got ndarray; use {name}.item()"):
        call(function, **{name: np.array(0.5)})
    for bad in (True, np.bool_(True)):
        with refuses(TypeError, f"{function}: {name} must be a number, got {type(bad).__name__}"):
            call(function, **{name: bad})


@pytest.mark.parametrize("function, name", of_kind(int), ids=str)
def test_integers(backend, function, name):
    value = OPTIONS[function][name].default
    for kind in (np.int64, np.int32, np.int8):
        equal(call(function, **{name: kind(value)}), call(function))
    for bad in (1.0, np.float32(1), "1", True, None):
        with refuses(TypeError, f"{function}: {name} must be an int, got {type(bad).__name__}"):
            call(function, **{name: bad})


@pytest.mark.parametrize("function, name", of_kind(bool), ids=str)
def test_flags(backend, function, name):
    for value in (True, False):
        equal(call(function, **{name: np.bool_(value)}), call(function, **{name: value}))
    for bad in (0.5, 1, 0, "no", torch.tensor(True)):
        with refuses(TypeError, f"{function}: {name} must be a bool, got {type(bad).__name__}"):
            call(function, **{name: bad})
    if name != "normalise" and OPTIONS[function][name].default is not None:
        with refuses(TypeError, f"{function}: {name} must be a bool, got NoneType"):
            call(function, **{name: None})


def test_numpy_options_of_crd():
    sizes = dict(student_dim=np.int64(3), teacher_dim=np.int32(4), n_data=np.int64(9), negatives=np.uint8(2))
    crd = kd.nn.CRDLoss(**sizes, temperature=np.float32(0.5), momentum=np.float32(0.5), eps=np.float64(0))
    assert type(crd.negatives) is int and type(crd.temperature) is float
    student, teacher, index = torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 8], dtype=torch.uint8)
    assert crd(student, teacher, index, index.new_zeros(2, 3)).isfinite()
    with refuses(TypeError, "CRDLoss: return_parts must be a bool, got int"):
        crd(student, teacher, index, return_parts=1)


# Labels and indices


@pytest.mark.parametrize("function, name", tensors(lambda value: value.dtype is torch.int64), ids=str)
def test_integer_dtypes(backend, function, name):
    for dtype in INTEGERS:
        equal(call(function, **{name: GOOD[function][name].to(dtype)}), call(function))


@pytest.mark.parametrize("function", [f for f, name in of_kind(int) if name == "ignore_index" and "target" in GOOD[f]])
def test_ignored_labels_of_narrow_dtypes(backend, function):
    """As values: in uint8 itself, -100 would be 156."""
    narrow = torch.tensor([0, 255, 2, 255], dtype=torch.uint8)
    wide = torch.tensor([0, -100, 2, -100])
    equal(call(function, target=narrow, ignore_index=255), call(function, target=wide))
    wraps = torch.tensor([0, 156, 2, 1], dtype=torch.uint8)
    with refuses(
        ValueError, f"{function}: target contains 156, valid labels are 0..2 (or ignore_index=-100)"
    ):
        call(function, target=wraps)


@pytest.mark.parametrize("function, name", LABELS, ids=str)
def test_labels_that_keep_the_class_dimension(backend, function, name):
    equal(call(function, target=GOOD[function]["target"].unsqueeze(1)), call(function))
    logits = [key for key in ("student", "teacher", "logits") if key in GOOD[function]]
    if not logits:
        return
    images = {key: GOOD[function][key].view(2, 2, 1, 3).permute(0, 3, 1, 2) for key in logits}  # [B, C, H, W]
    target = GOOD[function]["target"].view(2, 2, 1)
    equal(
        call(function, **images, target=target.unsqueeze(1), dim=1),
        call(function, **images, target=target, dim=1),
    )
    one = {key: GOOD[function][key][0] for key in logits}  # [C]
    equal(call(function, **one, target=target[0, 0]), call(function, **one, target=target[0, 0, 0]))


# Temperatures


@pytest.mark.parametrize("function, name", TEMPERATURES, ids=str)
def test_temperature_of_one_number(backend, function, name):
    value = OPTIONS[function][name].default + 0.5
    expected = call(function, **{name: value})
    for tensor in (torch.tensor(value), torch.tensor([value]), torch.tensor(value, dtype=torch.float64)):
        equal(call(function, **{name: tensor}), expected)
        equal(call(function, **{name: torch.nn.Parameter(tensor, requires_grad=False)}), expected)
    for bad in (0.0, -1.0, torch.inf, torch.nan):
        with refuses(ValueError, f"{function}: {name} must be finite and > 0, got {bad}"):
            call(function, **{name: torch.tensor(bad)})


@pytest.mark.parametrize("function, name", TEMPERATURES, ids=str)
def test_temperature_that_is_not_looked_at(backend, unread, function, name):
    """In float64: one number as a tensor, or as itself, differs by roundings."""
    good = doubles(GOOD[function])

    def run(temperature, **options):
        learned = {key: tree_map(leaf, value) for key, value in good.items() if key != "teachers"}  # which are constants
        outputs = call(function, **{**good, **learned, name: temperature}, **options)
        if not outputs[0].requires_grad:
            return outputs
        leaves = [each for each in tree_leaves(learned) if torch.is_tensor(each) and each.requires_grad]
        gradients = torch.autograd.grad(outputs[0].sum(), leaves, allow_unused=True)
        return [*outputs, *[each for each in gradients if each is not None]]

    value = OPTIONS[function][name].default + 0.5
    modes = [{}] if "mode" not in OPTIONS[function] else [dict(mode=mode) for mode in ("const", "flsw", "cwsm")]
    for options in modes:
        for reduction in ("batchmean", "none") if "reduction" in OPTIONS[function] else (None,):
            options = options if reduction is None else {**options, "reduction": reduction}
            for shape in ((), (1,)):
                ours = run(torch.full(shape, value), **options)
                for one, other in zip(ours, run(torch.tensor(value).item(), **options), strict=True):
                    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    if function != "info_nce":  # which may learn it
        outputs = call(function, **{name: torch.tensor(-1.0)})
        assert next(each for each in outputs if each.is_floating_point()).isnan().all()


@pytest.mark.parametrize("function, name", TEMPERATURES, ids=str)
def test_temperatures_that_vmap_maps(backend, function, name):
    good, values = doubles(GOOD[function]), [0.5, 3.0]
    ours = torch.vmap(lambda value: call(function, **{**good, name: value})[0])(torch.tensor(values))
    expected = [call(function, **{**good, name: value})[0] for value in values]
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("function, name", TEMPERATURES, ids=str)
def test_temperature_of_a_device(function, name):
    """On meta, where looking at a number is an error."""
    on_meta = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), GOOD[function])
    with kd.backend("reference"):
        assert call(function, **on_meta, **{name: torch.ones((), device="meta")})[0].is_meta


@pytest.mark.parametrize("function, name", TEMPERATURES, ids=str)
def test_temperature_that_requires_grad(backend, function, name):
    learned = torch.tensor(2.0, requires_grad=True)
    if function == "info_nce":
        for shape in ((), (1,)):
            loss = call(function, temperature=learned.reshape(shape))[0]
            assert torch.autograd.grad(loss, learned)[0] != 0
        return
    rule = f"{name} must be a constant, got a tensor that requires grad; use {name}.detach()"
    with refuses(ValueError, f"{function}: {rule}"):
        call(function, **{name: learned})
    with torch.no_grad():
        equal(call(function, **{name: learned}), call(function, **{name: 2.0}))


# One function of each way in which a tensor temperature reaches its loss.
@pytest.mark.parametrize(
    "function",
    ["kd_loss", "dkpp_loss", "dynamic_temperature_kl", "gated_ensemble_loss", "memory_bank_nce", "similarity_kl"],
)
def test_graphs(function):
    given = {**doubles(GOOD[function]), "temperature": torch.tensor(2.0)}
    if "target" in given:
        given["target"] = given["target"].to(torch.uint8).unsqueeze(1)
    compiled = torch.compile(lambda: call(function, **given), fullgraph=True, backend="eager")
    for one, other in zip(compiled(), call(function, **{**given, "temperature": 2.0}), strict=True):
        assert_same_formula(one, other)


# Layouts and sizes


@pytest.mark.filterwarnings("ignore:.*beta state:UserWarning", "ignore:.*prototype stage:UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("function, name", tensors(lambda value: True), ids=str)
def test_layouts(function, name, layout):
    convert, remedy = LAYOUTS[layout]
    kind = layout.partition(" ")[0]
    good = GOOD[function][name]
    if good.dim() < 2 and kind != "sparse_coo":
        good = torch.stack([good, good])
    with refuses(TypeError, f"{function}: {name} must be a dense tensor, got a {kind} one; use {name}.{remedy}"):
        call(function, **{name: convert(good)})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_logits():
    quantized = torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.quint8)
    with refuses(
        TypeError,
        "softened_kl: student must be float32, float16, bfloat16 or float64, got quint8; "
        "convert it with student.dequantize()",
    ):
        call("softened_kl", student=quantized)


@pytest.mark.parametrize("function", [f for f in GOOD if GOOD[f].keys() & {"student", "logits"}])
def test_most_classes_of_rows(backend, function):
    wide = torch.zeros(1).expand(1, 2**24 + 1)
    tensors = {key: wide for key in ("student", "teacher", "logits") if key in GOOD[function]}
    with refuses(
        ValueError,
        f"{function}: at most 16777216 classes are possible, got logits [1, 16777217] with dim=-1",
    ):
        call(function, **tensors)


def test_most_classes_of_joint_logits(backend):
    joint_logits = torch.zeros(1).expand(4, 2**24 + 4)
    with refuses(
        ValueError,
        "joint_cross_entropy: at most 16777216 classes are possible, got logits [4, 16777220] with dim=1",
    ):
        call("joint_cross_entropy", joint_logits=joint_logits, target=torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("function", [f for f in GOOD if GOOD[f].keys() & {"peer_logits", "branch_logits"}])
def test_most_classes_of_peers(backend, function):
    name = "branch_logits" if "branch_logits" in GOOD[function] else "peer_logits"
    with refuses(
        ValueError, f"{function}: at most 16777216 classes are possible, got {name} [1, 2, 16777217]"
    ):
        call(function, **{name: torch.zeros(1).expand(1, 2, 2**24 + 1)})
