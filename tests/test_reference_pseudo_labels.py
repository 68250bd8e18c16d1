"""The twin of pseudo_labels against softmax and max."""

from math import inf, nan

import pytest
import torch
from helpers import assert_same_formula, draw

from kdkernels import reference

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_is_the_largest_of_a_softmax(temperature):
    logits = draw(6, 10, 3, dtype=torch.float64)
    confidence, likeliest = (logits / temperature).softmax(1).max(1)
    labels, ours = reference.pseudo_labels(logits, temperature=temperature, dim=1)
    assert torch.equal(labels, likeliest)
    assert_same_formula(ours, confidence)
    for threshold in (0.3, 0.9):
        labels, ours = reference.pseudo_labels(logits, threshold=threshold, temperature=temperature, ignore_index=255, dim=1)
        assert torch.equal(labels, torch.where(confidence < threshold, 255, likeliest))
        assert_same_formula(ours, confidence)


def test_a_threshold_for_each_class():
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    for threshold, expected in (([0.8, 0.8], [0, 1]), ([0.95, 0.8], [-100, 1]), ([0.8, 0.95], [0, -100])):
        labels, _ = reference.pseudo_labels(logits, threshold=torch.tensor(threshold))
        assert labels.tolist() == expected


def test_the_threshold_itself_is_enough():
    logits = torch.zeros(1, 2)
    for threshold in (0.5, torch.tensor([0.5, 1.0], dtype=torch.float64)):
        assert reference.pseudo_labels(logits, threshold=threshold)[0] == 0
    assert reference.pseudo_labels(logits, threshold=0.5000001)[0] == -100
    assert reference.pseudo_labels(torch.zeros(3, 1), threshold=1.0)[0].tolist() == [0, 0, 0]


def test_of_equal_logits_the_lowest_class():
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-inf, 0.0, 0.0]])
    assert reference.pseudo_labels(logits)[0].tolist() == [1, 0, 1]


def test_rows_without_probabilities():
    logits = torch.tensor([[1.0, nan, 3.0], [0.0, inf, 0.0], [-inf, -inf, -inf], [-inf, 1e4, -1e4], [nan, nan, nan]])
    labels, confidence = reference.pseudo_labels(logits)
    assert labels.tolist() == [-100, -100, -100, 1, -100]
    assert confidence.isnan().tolist() == [True, True, True, False, True] and confidence[3] == 1


def test_has_no_gradient():
    logits = draw(3, 4).requires_grad_()
    assert not any(each.requires_grad for each in reference.pseudo_labels(logits))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits.detach(), torch.ones(3, 4))
        _, confidence = reference.pseudo_labels(dual, temperature=2.0)
        assert torch.autograd.forward_ad.unpack_dual(confidence).tangent is None
