"""Names of options and their integers in the compiled ops: the enums of csrc/softened_kl.h."""

TEACHER_KINDS = {"logits": 0, "log_probs": 1, "probs": 2}
DIVERGENCES = {"forward": 0, "reverse": 1, "jsd": 2, "cross_entropy": 3}
REDUCTIONS = {"none": 0, "sum": 1, "batchmean": 2, "mean": 2, "elementmean": 3}
