"""Every public function that has a gradient, as a function of its float tensors: for what all of them must do alike."""

import inspect

from helpers import draw, labels

import kdkernels as kd

ROWS, CLASSES, WIDTH, PEERS = 6, 5, 4, 3
TARGET, POSITIVE = labels(ROWS, classes=CLASSES), labels(ROWS, classes=ROWS, seed=1)
TARGET[1] = -100
LABELS, TWINS = labels(ROWS, classes=CLASSES, seed=3), labels(ROWS, classes=2)
MASK = labels(ROWS, classes=3, seed=2) > 0
INDEX = labels(ROWS, WIDTH, classes=ROWS)
ORDER = draw(ROWS, CLASSES, seed=9).argsort(1)
SHAPES = {
    "student": (ROWS, CLASSES),
    "teacher": (ROWS, CLASSES),
    "joint_logits": (2 * ROWS, 2 * CLASSES),
    "row_weight": (ROWS,),
    "row_temperature": (ROWS,),
    "confidence": (ROWS,),
    "query": (ROWS, WIDTH),
    "key": (ROWS, WIDTH),
    "teacher_query": (ROWS, WIDTH),
    "teacher_key": (ROWS, WIDTH),
    "logit_bias": (ROWS, ROWS),
    "temperature": (),
    "normalizer": (),
    "peers": (ROWS, PEERS, CLASSES),
    "leader": (ROWS, CLASSES),
    "peer_query": (ROWS, PEERS, WIDTH),
    "peer_key": (ROWS, PEERS, WIDTH),
    "gate": (ROWS, PEERS),
}
POSITIVE_ONES = {"row_weight", "row_temperature", "temperature", "normalizer"}


def kl(student, teacher, row_weight, row_temperature, **o):
    return kd.softened_kl(student, teacher, temperature=row_temperature.detach(), row_weight=row_weight, mask=MASK, **o)


def jsd(student, teacher, **o):
    return kd.softened_kl(student, teacher, divergence="jsd", temperature=2.0, **o)


def skewed(student, teacher, row_weight, **o):
    options = {"divergence": "reverse", "skew": 0.2, "standardize": True, "shared_classes": CLASSES - 1}
    return kd.softened_kl(student, teacher, row_weight=row_weight, **options, **o)


def total_variation(student, teacher, **o):
    return kd.kd_loss(student, teacher, TARGET, divergence="tvd", temperature=2.0, **o)


def cross_entropy(student, teacher, row_weight, row_temperature, **o):
    return kd.soft_cross_entropy(student, teacher, temperature=row_temperature.detach(), row_weight=row_weight, **o)


def hinton(student, teacher, row_weight, row_temperature, **o):
    return kd.kd_loss(student, teacher, TARGET, temperature=row_temperature.detach(), row_weight=row_weight, mask=MASK, **o)


def permuted(student, teacher, row_weight, **o):
    return kd.dkpp_loss(student, teacher, permutation=ORDER, row_weight=row_weight, **o)


def dynamic(student, teacher, row_weight, **o):
    return kd.dynamic_temperature_kl(student, teacher, TARGET, adjust="ps", ce_weight=0.5, row_weight=row_weight, **o)


def virtual(student, **o):
    return kd.virtual_teacher_loss(student, TARGET, **o)


def smoothed(student, **o):
    return kd.label_smoothing_loss(student, TARGET, **o)


def by_teacher(student, teacher, **o):
    return kd.cwtm_loss(student, TARGET, teacher, **o)


def by_confidence(student, confidence, **o):
    return kd.cwtm_loss(student, TARGET, confidence=confidence.sigmoid(), **o)


def joint(joint_logits, **o):
    return kd.joint_cross_entropy(joint_logits, TARGET, transforms=2, **o)


def ranged(student, **o):
    return kd.class_range_cross_entropy(student, TARGET.clamp(max=3), 0, 4, **o)


def similarity(query, key, teacher_query, teacher_key, row_weight, **o):
    return kd.similarity_kl(query, key, teacher_query, teacher_key, row_weight=row_weight, mask=MASK, **o)


def contrast(query, key, temperature, logit_bias, **o):
    return kd.info_nce(query, key, POSITIVE, temperature=temperature, logit_bias=logit_bias, mask=MASK, **o)


def products(query, key, temperature, **o):
    return kd.info_nce(query, key, temperature=temperature, normalize=False, symmetric=True, **o)


def supervised(query, **o):
    return kd.supervised_contrastive(query, TWINS, temperature=0.5, mask=MASK, **o)


def bank(query, key, normalizer, **o):
    return kd.memory_bank_nce(query, key, INDEX, normalizer=normalizer, temperature=1.0, **o)


def heads(student, teacher, query, teacher_query):
    teachers = [teacher.detach(), teacher_query.detach()]
    return kd.multi_head_kl([student, query], teachers, weights=[1.0, 0.5])


def led(peers, leader, peer_query, peer_key):
    return kd.okddip_loss(peers, leader, peer_query, peer_key, LABELS)


def gated(gate, peers):
    return kd.gated_ensemble_loss(gate, peers, LABELS)


def others(peers):
    return kd.leave_one_out_loss(peers, LABELS)


def attention(peer_query, peer_key, peers):
    return kd.peer_attention(peer_query, peer_key, peers)


def mean(peers):
    return kd.mean_probabilities(peers)


# The functions of a student's rows that ask for no more than a teacher and labels.
BY_STUDENT = {}
for _name in kd.functional.__all__:
    _parameters = inspect.signature(getattr(kd, _name)).parameters.values()
    _needed = {its.name for its in _parameters if its.default is its.empty}
    if "student" in _needed and _needed <= {"student", "teacher", "target"}:
        BY_STUDENT[_name] = [its.name for its in _parameters]


def of_student(name, /, **tensors):
    """One of these with those of the tensors and options that it takes."""
    return getattr(kd, name)(**{each: value for each, value in tensors.items() if each in BY_STUDENT[name]})


def with_defaults(name):
    """One that no function above calls."""

    def taught(student, teacher, row_weight, **o):
        return of_student(name, student=student, teacher=teacher, target=TARGET, row_weight=row_weight, mask=MASK, **o)

    def alone(student, **o):
        return of_student(name, student=student, target=TARGET, **o)

    function = taught if "teacher" in BY_STUDENT[name] else alone
    function.__name__ = name
    return function


BY_ROWS = (kl, jsd, skewed, total_variation, cross_entropy, hinton, permuted, dynamic, virtual, smoothed, by_teacher, by_confidence)
BY_ROWS += (joint, ranged)
BY_ROWS += (similarity, contrast, products, supervised, bank)
_called = {name for function in BY_ROWS for name in function.__code__.co_names}
BY_ROWS += tuple(with_defaults(name) for name in BY_STUDENT if name not in _called)
OTHERS = (heads, led, gated, others, attention, mean)
ALL = {function.__name__: function for function in BY_ROWS + OTHERS}

# What is a constant by contract, whether it requires grad or not; a temperature per row would be refused if it did.
CONSTANT = {"row_temperature", "teacher_query", "teacher_key", "logit_bias", "confidence", "normalizer"}


def is_constant(function, name):
    if function in (permuted, dynamic, by_teacher, heads) and name == "teacher":
        return True
    return name in CONSTANT or (function is bank and name == "key")


def tensors(function, **options):
    """Name -> tensor of each of its arguments; `options` of helpers.draw."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    drawn = {name: draw(*SHAPES[name], seed=seed, scale=1.0, **options) for seed, name in enumerate(names)}
    return {name: x.abs() + 0.5 if name in POSITIVE_ONES else x for name, x in drawn.items()}


def leaves(function, **options):
    """The same, of which all that are no constants require grad."""
    return [x.requires_grad_(not is_constant(function, name)) for name, x in tensors(function, **options).items()]
