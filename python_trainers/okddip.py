"""Online distillation: students of one architecture teach each other, and one of them is kept.

D. Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020,
https://arxiv.org/abs/1912.00350; code by the authors: https://github.com/DefangChen/OKDDip. There is no
teacher: m students learn in one run, as branches of one trunk or as networks of their own (``--structure``),
each from the labels and from a target that the others make of their logits z:

    okddip       m - 1 peers and a leader, which is kept. The target of peer a is a mixture of its own,
                 sum_b A_ab z_b, where A = softmax_b(W_L h_a . W_E h_b) attends to features h; the leader's
                 is the peers' mean. --no-leader: m peers
    dml          the mean of the others, or with --pairwise each of them in turn           Zhang et al. 2018
    cl_ilr       the same, and the trunk gets the mean of the branches' gradients         Song and Chai 2018
    one          one mixture for all, by a gate on the trunk's map; its CE is in the loss   Lan et al. 2018
    independent  none: labels alone

    loss = sum of CE(student, label) + kl_weight * w(e) * sum of T^2 KL(target || student)
    w(e) = exp(-5 (1 - min(e, L) / L)^2) in epoch e = 0, 1, ...; L is --rampup-epochs; 1 for dml

    python -m python_trainers.okddip --train-images 50 --out out/okddip
    python -m python_trainers.okddip --train-images 50 --method one --out out/one
    python -m python_trainers.okddip --preset cifar100-okddip-branch-resnet32 --data-root DIR

Not reproduced: from 50 images of digits, each at its best learning rate, the leader gains 0.3 +- 1.7 points
over a network of its seed that learned alone (84.1 +- 3.2 % and 83.8 +- 2.5 %, mean and sample standard
deviation over 8 seeds; ``python -m python_trainers.demo``; docs/results/okddip.md); dml gains 2.0 +- 1.0. Each
peer soon attends to itself alone, whose target costs it nothing; --detach-targets keeps it from that. Seconds
per run on one CPU core.

metrics.jsonl has the terms of the loss and, on the test images, ``test_accuracy`` of the student that is
kept, the last of the m, ``accuracy_1`` to ``accuracy_m``, their mean ``mean_accuracy``, the accuracy of the
peers' mean logits ``ensemble_accuracy`` (of all m students where none is a leader), the ``diversity`` of the
peers (mean L2 distance of their probabilities over all pairs) and how much peer a listens to peer b,
``attention_a_b``, also in attention.png.

Deviations from the paper:
1. Data, networks, recipe: digits, small networks and kd's recipe by default; presets have the authors'.
2. As in the official code peers mix logits; the paper's text mixes probabilities (``--mix probs``).
3. As in the official code the ramp goes by epochs, not steps. By default it takes as large a share of them.
4. The last epoch is reported; the authors report the best on the test set.
5. For the rivals the authors report the mean over all students, here ``mean_accuracy``.
6. dml takes one joint step, and targets have gradients, as in the official code; Zhang et al. take turns.
7. Diversity is taken over all pairs of peers; the code writes three of them out.
8. What branches share is said in docs/models.md; in the code those of DenseNet share their last block too.
9. No teacher beside the peers (table 6) and none of table 5's other attentions.
With two students and a leader the one peer attends to itself alone.
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import kdkernels as kd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from typing_extensions import Unpack

from python_trainers.common.checks import require_at_least, require_not_negative, require_positive
from python_trainers.common.console import run_from_console
from python_trainers.common.data import Batch
from python_trainers.common.errors import require
from python_trainers.common.experiment import Experiment, Objects
from python_trainers.common.learner import Learner
from python_trainers.common.loop import Loss
from python_trainers.common.metrics import means_over
from python_trainers.common.models.peers import Gate, build_peers
from python_trainers.common.options import StudentOptions
from python_trainers.common.plots import stacked_shares
from python_trainers.common.task import Classification
from python_trainers.presets.okddip import PRESETS

RAMP = 80 / 300  # share of the epochs, official code
MOST = 32  # peers that the losses take


@dataclass(frozen=True)
class Args(StudentOptions):
    """Options of the method; where no other source is given, defaults are the official code's."""

    method: Literal["okddip", "dml", "cl_ilr", "one", "independent"] = "okddip"  # see the docstring
    student_model: str = "small_convnet"  # architecture of all students
    structure: Literal["branch", "network"] | None = None  # None: network for dml, branch for the others
    students: int = 4  # m, a leader among them
    leader: bool = True  # okddip; without one, as in table 4, the figure is ensemble_accuracy
    mix: Literal["logits", "probs"] = "logits"  # okddip: what is mixed
    pairwise: bool = False  # dml, cl_ilr: the mean of the KL from each other, not the KL from their mean
    detach_targets: bool = False  # okddip: no gradient through targets, the attention does not learn
    temperature: float = 3.0  # T
    kl_weight: float = 1.0  # alpha
    rampup_epochs: int | None = None  # L, 0: none; None: 80 of 300 epochs or that share, and 0 for dml

    def check(self) -> None:
        super().check()
        require(2 <= self.students <= MOST, f"--students must be 2 to {MOST}, got {self.students}")
        require(
            self.method not in ("cl_ilr", "one") or self.structure != "network",
            f"--method {self.method} needs the trunk that branches share; leave --structure network out",
        )
        require(
            self.method != "one" or self.batch_size >= 2 * self.grad_accum_steps,
            "--method one normalizes its gate over a batch, or each part of it: --batch-size must be >= "
            f"{2 * self.grad_accum_steps}, got {self.batch_size}",
        )
        require_positive(self, "temperature")
        require_not_negative(self, "kl_weight")
        if self.rampup_epochs is not None:
            require_at_least(self, 0, "rampup_epochs")

    def completed(self) -> "Args":
        dml = self.method == "dml"
        structure, rampup = self.structure, self.rampup_epochs
        return replace(
            self,
            structure=structure or ("network" if dml else "branch"),
            rampup_epochs=(0 if dml else round(RAMP * self.epochs)) if rampup is None else rampup,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_from_console(
        "okddip", Args, train, argv, "Online distillation with diverse peers (Chen et al. 2020).", PRESETS
    )


def train(args: Args, **objects: Unpack[Objects]) -> dict[str, Any]:
    """Train all students.

    Objects stand for what ``args`` name (:class:`Objects`): ``student`` is a function that returns a new module
    for each of them; only our own networks branch, others take ``structure="network"``, and okddip reads their
    features. Nobody teaches. Returns what summary.json holds.
    Raises ``TrainerError``, before anything is trained, for options and objects that cannot be used.
    """
    experiment = Experiment("okddip", args, **objects)
    args, method = experiment.args, METHODS[args.method]
    with_leader = args.method == "okddip" and args.leader
    losses = {"loss": "total", **method.losses}
    if with_leader:
        losses["kl_leader"] = "$T^2$ KL, leader"
    experiment.student.require_again("students are several networks of one architecture")
    trained = experiment.train_student(
        learn_together,
        learner=partial(method, args=args, build=experiment.student.build),
        losses=losses,
        accuracies={
            "test_accuracy": "leader" if with_leader else "student that is kept",
            "mean_accuracy": f"mean of {args.students}",
            "ensemble_accuracy": f"{args.students - with_leader} together",
        },
    )
    if args.method == "okddip" and experiment.accelerator.is_main_process:
        plot_attention(experiment.folder / "attention.png", trained.history, args.students - args.leader)
    return trained.summary


def learn_together(model: nn.Module, batch: Batch) -> Loss:
    """The objective: the loss of all students, which they know themselves."""
    return model(batch.pixels, batch.labels)


class Students(Learner):
    """m students; the network is the last of them, the others and what joins them are thrown away."""

    losses: dict[str, str] = {}  # to plot: name of a part -> label

    def __init__(self, network: nn.Module, *, args: Args, build: Callable[[], nn.Module]) -> None:
        peers = build_peers(
            build,
            others=args.students - 1,
            structure=args.structure,
            fork_scale=1 / args.students if args.method == "cl_ilr" else 1.0,
        )
        super().__init__(network, nn.ModuleDict({"peers": peers}))
        self.args = args
        self.ramp = 1.0

    def begin_epoch(self, epoch: int) -> None:
        self.ramp = ramp_up(epoch - 1, self.args.rampup_epochs)

    def forward(self, pixels: Tensor, labels: Tensor) -> Loss:
        return self.loss(*self.beside["peers"](self.network, pixels), labels, self.args.kl_weight * self.ramp)

    def loss(
        self,
        logits: Tensor,  # [N, m, classes]
        features: Tensor,  # [N, m, D]
        trunk: Tensor | None,  # [N, C, H, W] where branches fork
        labels: Tensor,  # [N]
        kl_weight: float,  # of this epoch
    ) -> Loss:
        """A mean over images, so that it averages exactly over the processes' parts of a batch."""
        raise NotImplementedError

    def measure(self, task: Classification, accelerator: Accelerator) -> dict[str, float]:
        """All students are tested in one go."""
        self.eval()

        def figures(pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            with accelerator.autocast():
                logits, features, _ = self.beside["peers"](self.network, pixels)
                return self.figures(logits.float(), features, labels)

        means = {
            split: means_over(images, figures, accelerator, task.batch_size)
            for split, images in task.splits.items()
        }
        return {
            **{f"{split}_accuracy": mean["accuracy"][-1].item() for split, mean in means.items()},
            "mean_accuracy": means["test"]["accuracy"].mean().item(),
            **by_student(means["test"]),
            "ramp": self.ramp,
        }

    def figures(self, logits: Tensor, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Of each image; arguments as those of :meth:`loss`."""
        peers = logits[:, : self.peers]
        return {
            "accuracy": logits.argmax(-1) == labels.unsqueeze(1),
            "ensemble_accuracy": peers.mean(1).argmax(-1) == labels,
            **({"diversity": mean_distance(peers.softmax(-1))} if self.peers > 1 else {}),
        }

    @property
    def peers(self) -> int:
        """P: how many students, the first, are each other's peers."""
        return self.args.students


class DiversePeers(Students):
    """okddip: peers with attention to each other, and a leader who has no part in that."""

    losses = {"ce_peers": "cross entropy, peers", "kl_peers": "$T^2$ KL, peers"}

    def __init__(self, network: nn.Module, *, args: Args, build: Callable[[], nn.Module]) -> None:
        super().__init__(network, args=args, build=build)
        width = network.num_features
        require(width >= 8, f"okddip attends to an eighth of the features, the student has {width}: give it 8 or more")
        for name in ("query", "key"):  # W_L, W_E
            self.beside[name] = nn.Linear(width, width // 8, bias=False)

    @property
    def peers(self) -> int:
        return self.args.students - self.args.leader

    def loss(
        self, logits: Tensor, features: Tensor, trunk: Tensor | None, labels: Tensor, kl_weight: float
    ) -> Loss:
        return kd.okddip_loss(
            logits[:, : self.peers],
            logits[:, -1] if self.args.leader else None,
            *self.query_and_key(features),
            labels,
            temperature=self.args.temperature,
            kl_weight=kl_weight,
            mix=self.args.mix,
            detach_targets=self.args.detach_targets,
            return_parts=True,
        )

    def figures(self, logits: Tensor, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        query, key = self.query_and_key(features)
        _, attention = kd.peer_attention(query, key, logits[:, : self.peers], return_attention=True)
        return {**super().figures(logits, features, labels), "attention": attention}

    def query_and_key(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[N, P, D // 8] each."""
        features = features[:, : self.peers]
        return self.beside["query"](features), self.beside["key"](features)


class LeaveOneOut(Students):
    """dml, cl_ilr: each learns from all others. independent: it does not, but how far they are is logged."""

    losses = {"ce": "cross entropy", "kl": "$T^2$ KL"}

    def loss(
        self, logits: Tensor, features: Tensor, trunk: Tensor | None, labels: Tensor, kl_weight: float
    ) -> Loss:
        return kd.leave_one_out_loss(
            logits,
            labels,
            temperature=self.args.temperature,
            kl_weight=0.0 if self.args.method == "independent" else kl_weight,
            pairwise=self.args.pairwise,
            return_parts=True,
        )


class GatedEnsemble(Students):
    """one: all learn from the ensemble that a gate makes of them."""

    losses = {
        "ce_branches": "cross entropy, branches",
        "ce_ensemble": "cross entropy, ensemble",
        "kl": "$T^2$ KL",
    }

    def __init__(self, network: nn.Module, *, args: Args, build: Callable[[], nn.Module]) -> None:
        super().__init__(network, args=args, build=build)
        self.beside["gate"] = Gate(network.stage_channels[-2], self.args.students)

    def loss(
        self, logits: Tensor, features: Tensor, trunk: Tensor | None, labels: Tensor, kl_weight: float
    ) -> Loss:
        return kd.gated_ensemble_loss(
            self.beside["gate"](trunk),
            logits,
            labels,
            temperature=self.args.temperature,
            kl_weight=kl_weight,
            return_parts=True,
        )


METHODS: dict[str, type[Students]] = {
    "okddip": DiversePeers,
    "dml": LeaveOneOut,
    "cl_ilr": LeaveOneOut,
    "one": GatedEnsemble,
    "independent": LeaveOneOut,
}


def ramp_up(epoch: int, length: int) -> float:
    """w in ``epoch``, from 0: from exp(-5) to 1 in ``length`` epochs."""
    return math.exp(-5 * (1 - epoch / length) ** 2) if epoch < length else 1.0


def mean_distance(probabilities: Tensor) -> Tensor:  # [N, P, classes] -> [N]
    """L2 distance between two peers' probabilities, the mean over all pairs; P >= 2."""
    peers = probabilities.shape[1]
    first, second = torch.triu_indices(peers, peers, offset=1, device=probabilities.device)
    return (probabilities[:, first] - probabilities[:, second]).norm(dim=-1).mean(1)


def by_student(figures: dict[str, Tensor]) -> dict[str, float]:
    """A column for each entry, students counted from 1: ``diversity``, ``accuracy_2``, ``attention_1_3``."""
    return {
        "_".join((name, *(str(student + 1) for student in students))): values[students].item()
        for name, values in figures.items()
        for students in itertools.product(*map(range, values.shape))
    }


def plot_attention(path: Path, history: list[dict[str, float]], peers: int) -> None:
    """Who listens to whom, epoch by epoch."""
    numbers = range(1, peers + 1)
    stacked_shares(
        path,
        {
            f"peer {a} listens to": {
                f"peer {b}": [entry[f"attention_{a}_{b}"] for entry in history] for b in numbers
            }
            for a in numbers
        },
        title="Mean attention on the test images",
    )


if __name__ == "__main__":
    sys.exit(main())
