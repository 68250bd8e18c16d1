"""The examples of docs/similarity.md run."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs" / "similarity.md").read_text()


def test_examples_run():
    names = {}
    examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(example, names)
    assert names["student"].grad.any() and names["log_scale"].grad.any() and names["views"].grad.any()
    assert names["trusted"].any() and callable(names["step"])
