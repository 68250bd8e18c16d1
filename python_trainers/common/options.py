"""Options every trainer has."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """What to read, where to write, which seed."""

    dataset: str = "digits"  # digits: 1,797 real 8x8 images that come with scikit-learn
    data_root: Path | None = None  # folder of the data sets that do not come with a package
    out: Path | None = None  # folder to write; None: out/METHOD, or out/METHOD-smoke
    seed: int = 0  # of the few images, the first weights and the batches; the test images are always the same
    smoke: bool = False  # a few epochs only, to see that everything works

    def folder(self, method: str) -> Path:
        """Where the run of ``method`` is written."""
        return self.out or Path("out", f"{method}-smoke" if self.smoke else method)
