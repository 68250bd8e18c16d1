"""Names of options and their integers in the compiled ops: the enums of the headers in csrc/, which tests/test_enums.py
compares with these."""

TEACHER_KINDS = {"logits": 0, "log_probs": 1, "probs": 2}
DIVERGENCES = {"forward": 0, "reverse": 1, "jsd": 2, "cross_entropy": 3, "tvd": 4}
REDUCTIONS = {"none": 0, "sum": 1, "batchmean": 2, "mean": 2, "elementmean": 3}
STATISTICS = {"confidence": 1, "flsw": 2, "cwsm": 3, "rank": 4}
TEMPERATURE_MODES = {"const": 0, "flsw": STATISTICS["flsw"], "cwsm": STATISTICS["cwsm"]}
ADJUSTMENTS = {"none": 0, "ps": 1, "lsr": 2}
BANK_REDUCTIONS = {name: REDUCTIONS[name] for name in ("none", "sum", "batchmean", "mean")}
NORMALIZATIONS = {None: False, "l1": True}
CONVENTIONS = {"paper": 0, "others": 1}  # not an option of an op, which takes the two probabilities
KEY_TARGETS = {"positive": 0, "labels": 1, "teacher": 2}
PEER_MIXES = {"logits": 0, "probs": 1}


# By the argument of the ops that takes the integer.
OPTIONS = {
    "teacher_kind": TEACHER_KINDS,
    "divergence": DIVERGENCES,
    "reduction": REDUCTIONS,
    "mode": TEMPERATURE_MODES,
    "adjust": ADJUSTMENTS,
    "key_target": KEY_TARGETS,
    "mix": PEER_MIXES,
}


def name_of(option: str, code: int) -> str:
    return next(name for name, known in OPTIONS[option].items() if known == code)
