"""One small problem per launch form, dtype and option, for compute-sanitizer: `python -m benchmarks.sanitized`."""

from __future__ import annotations

import torch

import kdkernels as kd
from kdkernels.__main__ import student_losses

# Held in registers; staged in the shared memory of a block, of a cluster of blocks; streamed; each aligned and ragged.
CLASSES = [10, 100, 1000, 1001, 4096, 4099, 32000, 70001, 2**20 + 1]


def main() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for classes in CLASSES:
            student, teacher = (torch.randn(5, classes, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
            target = torch.randint(classes, (5,), device="cuda")
            for divergence in ("forward", "reverse", "jsd"):
                kd.softened_kl(student, teacher, temperature=4.0, divergence=divergence).backward()
            kd.softened_kl(student, teacher, divergence="tvd").backward()
            for divergence in ("forward", "reverse"):
                kd.softened_kl(student, teacher, divergence=divergence, skew=0.1, standardize=True).backward()
            kd.kd_loss(student, teacher[:, : classes - 1], target, shared_classes=classes // 2 + 1).backward()
            mask = torch.tensor([True, False, True, True, False], device="cuda")
            loss = kd.kd_loss(student, teacher, target, label_smoothing=0.1, mask=mask)
            (2 * loss).backward()
            for loss in student_losses(student=student, teacher=teacher, target=target).values():
                loss.backward()
            kd.class_range_cross_entropy(student, classes // 2 + target // 2, classes // 2, classes).backward()
            kd.pseudo_labels(teacher, threshold=torch.rand(classes, device="cuda"))
            if classes % 2 == 0:
                kd.joint_cross_entropy(student[:4], target[:2] // 2, transforms=2).backward()
            for mode, adjust in (("flsw", "ps"), ("cwsm", "lsr")):
                kd.dynamic_temperature_kl(student, teacher, target, mode=mode, adjust=adjust, beta=1e-3).backward()
            narrow, its = (logits.detach()[:, : classes // 2] for logits in (student, teacher))
            heads = [student, narrow.clone().requires_grad_(), student], [teacher.detach(), its, teacher.detach()]
            (2 * kd.multi_head_kl(*heads, weights=torch.ones(3, device="cuda", dtype=dtype))).backward()
        # Peers that stay in shared memory, and peers that come tile by tile.
        for classes in (100, 5003):
            peers, leader = (torch.randn(*sizes, classes, device="cuda", dtype=dtype, requires_grad=True) for sizes in ((5, 3), (5,)))
            query, key = (torch.randn(5, 3, 8, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
            target, gate = torch.randint(classes, (5,), device="cuda"), torch.softmax(torch.randn(5, 3, device="cuda"), -1)
            (2 * kd.okddip_loss(peers, leader, query, key, target)).backward()
            kd.gated_ensemble_loss(gate.requires_grad_(), peers, target).backward()
            kd.leave_one_out_loss(peers, target).backward()
            kd.peer_attention(query, key, peers)[0].sum().backward()
        # Classes strided: one thread per row.
        student, teacher = (torch.randn(2, 19, 7, 5, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
        kd.softened_kl(student, teacher, dim=1, reduction="none").sum().backward()
        target, _ = kd.pseudo_labels(teacher, threshold=0.1, dim=1)
        kd.class_range_cross_entropy(student, target // 2 + 4, 4, 17, ignore_index=-46, dim=1).backward()
        for width in (5, 128, 300, 1500):
            embedding, bank = (torch.randn(rows, width, device="cuda", dtype=dtype) for rows in (5, 40))
            index = torch.randint(40, (5, 600), device="cuda")
            kd.memory_bank_nce(embedding.requires_grad_(), bank, index, temperature=10.0).backward()
        # Within a tile of 128, and beyond it; widths of whole and of broken 16-byte loads.
        for queries, keys, width in ((5, 7, 3), (150, 300, 64), (129, 131, 37)):
            query, key = (torch.randn(n, width, device="cuda", dtype=dtype, requires_grad=True) for n in (queries, keys))
            positive, labels = torch.arange(queries, device="cuda"), torch.arange(keys, device="cuda") % 4
            kd.info_nce(query, key, positive, symmetric=True, temperature=torch.tensor(0.1, device="cuda")).backward()
            kd.similarity_kl(query, key, query.detach().flip(0), key.detach().flip(0)).backward()
            kd.supervised_contrastive(key, labels).backward()
            kd.select_trusted_rows(kd.similarity_rank(query, key, positive), 0.75)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
