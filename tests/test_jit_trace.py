"""torch.jit.trace keeps what it has seen computed, gradients too: refused by every function that has one."""

import pytest
import torch
from all_losses import ALL, leaves
from helpers import draw, labels

import kdkernels as kd


@pytest.mark.filterwarnings("ignore")  # deprecated, and what the checks ask of a shape is said to be constant
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_refused_by_name(backend):
    refused = set()
    for function in ALL.values():
        remedy = "torch.jit.trace .* use torch.compile"
        with kd.backend(backend), pytest.raises(NotImplementedError, match=remedy) as error:
            torch.jit.trace(function, tuple(leaves(function)), check_trace=False)
        refused.add(str(error.value).partition(":")[0])
    # All that have a gradient; and all_losses.py has all of these.
    assert refused == set(kd.functional.__all__) - {"logit_rank", "pseudo_labels", "similarity_rank", "select_trusted_rows"}


@pytest.mark.filterwarnings("ignore")  # as above
def test_ranks_of_another_batch():
    with kd.backend("cpu"):
        rank = torch.jit.trace(kd.logit_rank, (draw(4, 5), labels(4, classes=5)))
        logits, target = draw(7, 6, seed=1), labels(7, classes=6)
        assert torch.equal(rank(logits, target), kd.logit_rank(logits, target))
        rank = torch.jit.trace(kd.similarity_rank, (draw(4, 5), draw(3, 5, seed=1), labels(4, classes=3)))
        given = draw(7, 6), draw(8, 6, seed=1), labels(7, classes=8)
        assert torch.equal(rank(*given), kd.similarity_rank(*given))
