"""Names of options and their integers in the compiled ops: the enums of csrc/row_loss.h and csrc/similarity.h."""

TEACHER_KINDS = {"logits": 0, "log_probs": 1, "probs": 2}
DIVERGENCES = {"forward": 0, "reverse": 1, "jsd": 2, "cross_entropy": 3}
REDUCTIONS = {"none": 0, "sum": 1, "batchmean": 2, "mean": 2, "elementmean": 3}
TEMPERATURE_MODES = {"const": 0, "flsw": 1, "cwsm": 2}
ADJUSTMENTS = {"none": 0, "ps": 1, "lsr": 2}
STATISTICS = {"confidence": 0, "flsw": 1, "cwsm": 2, "rank": 3}
BANK_REDUCTIONS = {name: REDUCTIONS[name] for name in ("none", "sum", "batchmean", "mean")}
NORMALIZATIONS = {None: False, "l1": True}
CONVENTIONS = {"paper": 0, "others": 1}  # no op asks: it is told the two probabilities
KEY_TARGETS = {"positive": 0, "labels": 1, "teacher": 2}
PEER_MIXES = {"logits": 0, "probs": 1}
