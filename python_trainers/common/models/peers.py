"""Students of one architecture that learn together: on networks of their own, or as branches of one trunk.

    "network"   images -> whole network of student i -> features and logits
    "branch"    images -> stem and all stages but the last, once for all
                       -> last stage, pool and head of student i -> features and logits

A branch is a :class:`Network` whose images are the trunk's map. One student is a whole network in either
case: it is tested, saved and deployed as any other. :class:`Peers` holds the others, and nothing of that one.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from python_trainers.common.errors import require
from python_trainers.common.models.names import kind
from python_trainers.common.models.network import Classifier, GlobalAveragePool, Network

Structure = Literal["branch", "network"]


class Peers(nn.Module):
    """The students that learn beside a network and are thrown away after training."""

    def __init__(
        self,
        others: Sequence[Classifier],  # whole networks, or branches of the network they learn beside
        structure: Structure,
        *,
        fork_scale: float = 1.0,  # factor of the gradient that the trunk gets; CL-ILR: 1 / students
    ) -> None:
        super().__init__()
        self.others = nn.ModuleList(others)
        self.structure = structure
        self.fork_scale = fork_scale

    def forward(
        self,
        network: Classifier,  # for branches a Network
        images: Tensor,  # [N, channels, height, width]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits [N, m, classes] and features [N, m, D] of all m students, and the trunk's map [N, C, H, W].

        ``network`` comes last of the m. Without a trunk the map is None.
        """
        if self.structure == "network":
            trunk = None
            pairs = [student.with_features(images) for student in (*self.others, network)]
        else:
            *shared, last = network.stage_modules
            trunk = network.stem(images)
            for stage in shared:
                trunk = stage(trunk)
            fork = scale_gradient(trunk, self.fork_scale)
            pairs = [branch.with_features(fork) for branch in self.others]
            features = network.pool(last(fork))
            pairs.append((features, network.head(features)))
        features, logits = (torch.stack(values, dim=1) for values in zip(*pairs, strict=True))
        return logits, features, trunk


def build_peers(
    build: Callable[[], Classifier],  # a freshly initialised network of the kind they learn beside
    *,
    others: int,
    structure: Structure,
    fork_scale: float = 1.0,
) -> Peers:
    """``others`` freshly initialised students to learn beside a network that ``build`` has made.

    Each draws weights of its own from torch's global generator. Raises ``TrainerError`` for branches of a
    network that has no two stages.
    """
    require(others >= 1, f"others must be >= 1, got {others}")
    students = [build() for _ in range(others)]
    if structure == "branch":
        students = [branch_of(student) for student in students]
    return Peers(students, structure, fork_scale=fork_scale)


def branch_of(network: Classifier) -> Network:
    """Last stage, pool and head of ``network``; takes the map of the stage before."""
    name = kind(network)
    require(
        isinstance(network, Network),
        f"branches share the stages of our own networks, {name} is another's: give students networks of their own "
        "(--structure network)",
    )
    stages = len(network.stage_modules)
    require(
        stages >= 2,
        f"{name} has {stages} stage, branches share all but the last of two or more; take another network or "
        "students with networks of their own (--structure network)",
    )
    return Network(
        stem=nn.Identity(),
        stages=network.stage_modules[-1:],
        stage_channels=network.stage_channels[-1:],
        pool=network.pool,
        head=network.head,
    )


class Gate(nn.Module):
    """Shares of the students in their ensemble: softmax(ReLU(BatchNorm(Linear(mean of the trunk's map)))).

    From Lan et al. 2018 (ONE), https://arxiv.org/abs/1806.04606.
    """

    def __init__(
        self,
        channels: int,  # of the trunk's map: network.stage_channels[-2]
        students: int,
    ) -> None:
        super().__init__()
        self.pool = GlobalAveragePool()
        self.linear = nn.Linear(channels, students)
        self.norm = nn.BatchNorm1d(students)

    def forward(self, trunk: Tensor) -> Tensor:  # [N, channels, H, W] -> [N, students], sums of 1
        return F.relu(self.norm(self.linear(self.pool(trunk)))).softmax(dim=1)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """``x`` with its gradient times ``scale``, any shape.

    Where a trunk forks into m branches, 1 / m makes the sum of their gradients a mean (Song, Chai 2018,
    CL-ILR, https://arxiv.org/abs/1805.11761).
    """
    return _ScaleGradient.apply(x, scale)
