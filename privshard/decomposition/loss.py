"""The training loss: cross entropy on labels, and what a teacher says about the same images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation_loss(
    logits_BC: Tensor, labels_B: Tensor, teacher_BC: Tensor | None, *, weight: float, temperature: float
) -> Tensor:
    """mean CE(z, y) + weight T^2 KL(softmax(t / T) || softmax(z / T)); without a teacher the first term alone.

    Test: tests/decomposition/test_loss.py.
    """
    loss = F.cross_entropy(logits_BC.float(), labels_B)
    if teacher_BC is None:
        return loss
    student = F.log_softmax(logits_BC.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC.float() / temperature, dim=1)
    return loss + weight * temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
