"""One helper per rule on the arguments of the public functions. They run once, before any kernel.

ValueError for values, shapes and devices, TypeError for dtypes and types; a message tells the name, the rule,
what was got, and the remedy where that is not plain. Good arguments cost a few comparisons: what is most usual is
accepted first, in one call, since a small batch takes hardly longer than its checks. Where more is accepted than
an op takes, the helper returns what the op takes: a NumPy scalar as Python's, labels of any integer dtype as int64.
Values inside a tensor are looked at only where no device has to be waited for: see `readable`.
"""

from .bank import (
    bank_index,
    bank_rows,
    contrast_index,
    features_of_width,
    index_range,
    memory_bank,
    normalizer,
)
from .common import (
    at_least_one,
    denominator,
    flag,
    float_tensor,
    integer,
    not_negative,
    number,
    one_of,
    one_temperature,
    positive,
    process_group,
    same_device,
    unit_interval,
)
from .heads import head_weights, heads
from .peer_ensemble import (
    gate,
    leader,
    peer_features,
    peer_terms,
    peers,
    sample_labels,
)
from .rows import (
    class_dimension,
    class_range,
    class_span,
    confidence,
    host_generator,
    joint_labels,
    label_range,
    labels,
    labels_or_probabilities,
    logits_alone,
    mixture_weight,
    normalization,
    pair,
    permutation,
    permutes_classes,
    row_mask,
    row_tensor,
    row_weight,
    same_shape,
    several_classes,
    shared_classes,
    skew,
    standardized,
    temperature,
    threshold,
)
from .similarity import (
    as_many_rows,
    bias_of_one_direction,
    diagonal,
    feature_mask,
    feature_weight,
    features,
    indices,
    logit_bias,
    positive_range,
    queries_and_keys,
    ranks,
)
