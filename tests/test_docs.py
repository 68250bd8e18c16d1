"""README.md and docs/: links lead somewhere, files that a page names exist, and the README's example holds."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_formula

ROOT = Path(__file__).parents[1]
if not all((ROOT / name).exists() for name in ("README.md", "docs", "kdkernels", "python_trainers")):
    pytest.skip("pages and sources are not beside the tests", allow_module_level=True)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_before_and_after_are_the_same_loss():
    before, after = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[:2]
    torch.manual_seed(0)
    teacher, target = torch.randn(8, 10, dtype=torch.float64), torch.randint(10, (8,))
    found = []
    for code in (before, after):
        student = torch.linspace(-2, 2, 80, dtype=torch.float64).view(8, 10).requires_grad_()
        names = {"torch": torch, "F": F, "student": student, "teacher": teacher, "target": target, "T": 4.0}
        exec(code, names)
        found.append((names["loss"], *torch.autograd.grad(names["loss"], student)))
    assert_same_formula(*found)


def test_the_readme_shows_the_means_that_the_demo_prints():
    demo = re.search(r"^    mean +([\d. ]+)$", (ROOT / "docs" / "trainers.md").read_text(), re.MULTILINE)[1].split()
    undistilled, distilled, teacher_free, online, born_again, rotations, _together = demo
    shown = dict(re.findall(r"`kd-train ([^`]+)` \| ([\d.]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert shown == {
        "kd --kl-weight 0": undistilled,
        "kd": distilled,
        "tf_kd": teacher_free,
        "okddip": online,
        "born_again": born_again,
        "sskd": rotations,
    }
