"""`python -m kdkernels`: prints build_info() and checks each loaded library against the reference. Exit code 0 or 1."""

import inspect
import sys
from typing import Any

import torch

import kdkernels as kd


def report(info: dict, indent: str = "") -> None:
    for name, value in info.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            report(value, indent + "  ")
        else:
            print(f"{indent}{name:<16}{value}")


def student_losses(**given: Any) -> dict[str, torch.Tensor]:
    """One call of each function of a student's rows that needs no other arguments."""
    found = {}
    for name in kd.functional.__all__:
        function = getattr(kd, name)
        parameters = inspect.signature(function).parameters
        needed = {each for each, its in parameters.items() if its.default is its.empty}
        if "student" in needed and needed <= given.keys():
            found[name] = function(**{each: value for each, value in given.items() if each in parameters})
    return found


def losses(student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
    """One per function and kind of target."""
    peers, label = torch.stack([student, teacher], 1)[..., :10], target % 10
    query, key = peers[..., :4], peers[..., 4:8]
    trusted = kd.select_trusted_rows(kd.similarity_rank(teacher[2:], teacher[:2], target[2:] // 4), 0.5)
    generator = torch.Generator().manual_seed(0)
    return [
        *student_losses(student=student, teacher=teacher, target=target, generator=generator).values(),
        kd.softened_kl(student, teacher, divergence="tvd", shared_classes=90),
        kd.softened_kl(student, teacher, divergence="reverse", skew=0.1, standardize=True),
        kd.dynamic_temperature_kl(student, teacher, target, adjust="ps"),
        kd.joint_cross_entropy(student, target[:2]),
        kd.class_range_cross_entropy(student, target + 20, 20, 50),
        kd.label_smoothing_loss(student, kd.pseudo_labels(teacher, threshold=0.1)[0]),
        kd.multi_head_kl([student, student[:, 3:60]], [teacher, teacher[:, 3:60]], weights=[1.0, 0.5]),
        kd.similarity_kl(student[2:], student[:2], teacher[2:], teacher[:2], mask=trusted),
        kd.info_nce(student, teacher, symmetric=True),
        kd.supervised_contrastive(student, target // 2),
        kd.okddip_loss(peers, student[:, :10], query, key, label),
        kd.gated_ensemble_loss(student[:, :2], peers, label),
        kd.leave_one_out_loss(peers, label),
        kd.leave_one_out_loss(peers, label, pairwise=True),
        (kd.peer_attention(query, key, peers).square().sum(1) * kd.mean_probabilities(peers)).sum(),
        kd.memory_bank_nce(student, teacher, torch.stack([kd.logit_rank(teacher[:, :8], target), target], 1), temperature=9.0),
    ]


def loss_and_gradient(device: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 100, generator=generator).to(device) for _ in range(2))
    target = torch.arange(8, device=device)
    student.requires_grad_()
    with kd.backend(name):
        loss = torch.stack(losses(student, teacher, target))
        loss.sum().backward()
    return loss.detach(), student.grad


def check(device: str) -> bool:
    """The library of this device gives the loss and the gradient of the reference."""
    ours, expected = loss_and_gradient(device, device), loss_and_gradient(device, "reference")
    agree = all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(ours, expected))
    print(f"self-check of the {device} library: {'passed' if agree else f'FAILED, {ours} against {expected}'}")
    return agree


def main() -> int:
    info = kd.build_info()
    report(info)
    print()
    devices = [name for name in ("cpu", "cuda") if name in info["libraries"]]
    if "cuda" in devices and not torch.cuda.is_available():
        devices.remove("cuda")
        print("self-check of the cuda library: left out, no GPU in sight")
    if not devices:
        print("no compiled library to check: the PyTorch reference runs")
    return 0 if all([check(device) for device in devices]) else 1


if __name__ == "__main__":
    sys.exit(main())
