"""The examples of docs/peer_ensemble.md run."""

import re
from pathlib import Path

import torch

TEXT = (Path(__file__).parents[1] / "docs" / "peer_ensemble.md").read_text()


def test_examples_run():
    torch.manual_seed(0)
    names = {}
    examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, names)
    assert names["to_query"].weight.grad.any() and names["to_key"].weight.grad.any()
    assert names["leader_logits"].grad.any() and names["classifiers"][2].weight.grad.any()
    assert names["gate"][0].weight.grad.any()
    assert names["parts"].keys() == {"ce_peers", "ce_leader", "kl_peers", "kl_leader"}
    assert names["prediction"].shape == (8,)
