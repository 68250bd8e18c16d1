"""Which images a contrastive loss sets an image against."""

import torch
from torch import Tensor

from python_trainers.common.errors import require

# Up to so many images negatives are drawn without replacement, which takes a random key per image and row.
# Beyond, repeats are few (of 16,384 out of 100,001, one in thirteen), and keys would cost more than the loss.
DISTINCT_UP_TO = 100_000


class Contrasts:
    """Draws, for images of a training set, one positive each and negatives from the other classes.

    On the labels' device, from torch's global generator there.
    """

    def __init__(
        self,
        labels: Tensor,  # [n] int64 in [0, classes), of the training set
        classes: int,
        negatives: int | None,  # K; None: 16,384, or what the largest class leaves if that is less
        *,
        relax: bool,  # the positive is any image of the same class; False: the image itself
    ) -> None:
        counts = labels.bincount(minlength=classes)
        others = len(labels) - int(counts.max())
        require(others > 0, f"negatives come from other classes, all {len(labels)} images are of one class")
        self.negatives = min(16384, others) if negatives is None else negatives
        self.distinct = self.negatives <= others and len(labels) <= DISTINCT_UP_TO
        self._labels = labels
        self._relax = relax
        self._by_class = labels.argsort(stable=True)  # images of class 0, of class 1, ...
        self._counts = counts
        self._starts = counts.cumsum(0) - counts  # where each class begins there

    def draw(self, index: Tensor) -> Tensor:
        """int64 [B, K + 1] for the images ``index`` [B]: the positive, then the negatives.

        Negatives of a row are distinct if no class is too large for that and the images are not too many.
        """
        label = self._labels[index]
        start, count = self._starts[label].unsqueeze(1), self._counts[label].unsqueeze(1)
        if self.distinct:
            # The largest of random keys: a uniform choice; the own class has none to compete with.
            keys = torch.rand(len(index), len(self._labels), device=index.device)
            keys.masked_fill_(self._labels == label.unsqueeze(1), -1)
            negatives = keys.topk(self.negatives, sorted=False).indices
        else:
            place = uniform(len(self._labels) - count, self.negatives)
            negatives = self._by_class[place + (place >= start) * count]
        positive = index.unsqueeze(1)
        if self._relax:
            positive = self._by_class[start + uniform(count, 1)]
        return torch.cat([positive, negatives], dim=1)


def uniform(high: Tensor, columns: int) -> Tensor:
    """Uniform int64 in [0, ``high``) per row: ``high`` [B, 1] to [B, columns]."""
    # The remainder of 62 bits: no value is favoured by more than high / 2^62.
    return torch.randint(2**62, (len(high), columns), device=high.device) % high
