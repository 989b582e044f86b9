"""Losses: scores and targets → one number to minimise. Knows tensors; nothing of models, labels or the loop.

Dimensions: B rows, or N where they are all; T positions, R heads of relations, C candidates, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(scores_BC: Tensor, targets: Tensor) -> Tensor:
    """The mean over rows of the cross-entropy between the targets and softmax of the scores, at least in float32.

    `targets` are hard (whole numbers of shape B: the right candidate's index), soft (floats of shape B × C: a distribution a row), or a
    yes or no for each candidate (truth values of shape B × C): then the mean over all of them of the cross-entropy with its sigmoid.

    >>> round(cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item(), 4)
    1.3863
    >>> round(cross_entropy(torch.zeros(1, 2), torch.tensor([[True, False]])).item(), 4)
    0.6931
    """
    precision = torch.promote_types(scores_BC.dtype, torch.float32)
    if targets.dtype == torch.bool:
        return torch.nn.functional.binary_cross_entropy_with_logits(scores_BC.to(precision), targets.to(precision))
    aims = targets.to(precision) if targets.is_floating_point() else targets.long()
    return torch.nn.functional.cross_entropy(scores_BC.to(precision), aims)


def negative_log_likelihood(log_BC: Tensor, targets_B: Tensor) -> Tensor:
    """The mean over rows of -log p of the right candidate, of which `log_BC` says how likely the model finds each: the loss of a language
    model on the right answer, which wrong ones have no part in.

    >>> round(negative_log_likelihood(torch.tensor([[-1.0, -9.0], [-0.5, -0.25]]), torch.tensor([0, 1])).item(), 4)
    0.625
    """
    return -log_BC.float().gather(1, targets_B[:, None]).mean()


def distillation(scores_BC: Tensor, shares_BC: Tensor, temperature_B: Tensor) -> Tensor:
    """The mean over rows of T² · KL(teacher ‖ student), both softened by the row's temperature T (Hinton et al. 2015, section 2).

    `shares_BC` are the teacher's probabilities at temperature 1; T² makes up for gradients that shrink with 1 / T². A row whose share is
    all one candidate's is a hard label: with T = 1 its part is the cross-entropy.

    >>> student, soft, hard = torch.zeros(1, 2), torch.tensor([[0.9, 0.1]]), torch.tensor([[1.0, 0.0]])
    >>> round(distillation(student, soft, torch.tensor([2.0])).item(), 4), round(distillation(student, hard, torch.tensor([1.0])).item(), 4)
    (0.5232, 0.6931)
    """
    precision = torch.promote_types(scores_BC.dtype, torch.float32)
    temperature_B1 = temperature_B.to(precision)[:, None]
    teacher_BC = (shares_BC.to(precision).log() / temperature_B1).log_softmax(-1).exp()
    student_BC = (scores_BC.to(precision) / temperature_B1).log_softmax(-1)
    parts_B = torch.nn.functional.kl_div(student_BC, teacher_BC, reduction="none").sum(-1)
    return (temperature_B1[:, 0] ** 2 * parts_B).mean()


def distillation_each(scores_BC: Tensor, shares_BC: Tensor, temperature_B: Tensor) -> Tensor:
    """`distillation` where each candidate is judged for itself: the mean over rows and candidates of T² · KL of the two softened answers
    yes and no.

    >>> round(distillation_each(torch.zeros(1, 1), torch.tensor([[0.9]]), torch.tensor([2.0])).item(), 4)
    0.5232
    """
    yes_no_BC2 = torch.stack([shares_BC, 1 - shares_BC], -1).clamp(min=0.0)
    scores_BC2 = torch.stack([scores_BC, torch.zeros_like(scores_BC)], -1)
    return distillation(scores_BC2.flatten(0, 1), yes_no_BC2.flatten(0, 1), temperature_B.repeat_interleave(scores_BC.shape[1]))


def states_apart(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over real tokens, where `mask_BT` is 1, and numbers of the squared distance of two states (Jiao et al. 2020, eq. 8).

    >>> states_apart(torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2), torch.tensor([[1, 0]])).item()
    5.0
    """
    apart_BT = (student_BTD.float() - teacher_BTD.float()).square().mean(-1)
    return apart_BT[mask_BT.bool()].mean()


def relations_apart(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor, *, heads: int) -> Tensor:
    """The mean over real tokens and heads of KL(teacher ‖ student) of what each token's vector has to do with those of the others: softmax
    of the scaled products of queries with queries, say, or values with values (Wang et al. 2021, section 3.1).

    The vectors of all attention heads stand side by side and are cut anew into `heads` heads of relations, so that student and teacher
    may have other numbers of heads and other widths.

    >>> tokens = torch.eye(2)[None]
    >>> round(relations_apart(torch.zeros(1, 2, 2), tokens * 2**0.25, torch.ones(1, 2), heads=1).item(), 4)
    0.1109
    """
    teacher_BRTT, student_BRTT = (_related(each, mask_BT, heads) for each in (teacher_BTD, student_BTD))
    seen_B11T = mask_BT.bool()[:, None, None]
    apart_BRTT = (teacher_BRTT.exp() * (teacher_BRTT - student_BRTT)).masked_fill(~seen_B11T, 0.0)
    return apart_BRTT.sum(-1).mean(1)[mask_BT.bool()].mean()


def _related(vectors_BTD: Tensor, mask_BT: Tensor, heads: int) -> Tensor:
    """Log-probabilities_BRTT of each token's relations to the real ones."""
    vectors_BRTE = vectors_BTD.float().reshape(*vectors_BTD.shape[:2], heads, -1).transpose(1, 2)
    scores_BRTT = vectors_BRTE @ vectors_BRTE.transpose(-1, -2) * vectors_BRTE.shape[-1] ** -0.5
    seen_BRTT: Tensor = scores_BRTT.masked_fill(~mask_BT.bool()[:, None, None], torch.finfo(torch.float32).min)
    return seen_BRTT.log_softmax(-1)


def row_losses(log_NC: Tensor, targets: Tensor) -> Tensor:
    """losses_N of each row for itself, of which `cross_entropy` is the mean.

    `log_NC` are log-probabilities; log-odds where `targets` are truth values.

    >>> row_losses(torch.tensor([[-0.5, -1.0], [-2.0, -0.25]]), torch.tensor([0, 1])).tolist()
    [0.5, 0.25]
    """
    if targets.dtype == torch.bool:
        return torch.nn.functional.binary_cross_entropy_with_logits(log_NC, targets.to(log_NC.dtype), reduction="none").mean(1)
    if targets.is_floating_point():
        return -(targets.to(log_NC.dtype) * log_NC).sum(1)
    return -log_NC.gather(1, targets[:, None])[:, 0]


def supervised_contrastive(embeddings_BD: Tensor, targets_B: Tensor, *, temperature: float) -> Tensor:
    """The mean over rows of how unlikely their partners of the same target are among all others (Khosla et al. 2020, eq. 2, L_out).

    Where targets_BC say yes or no to each candidate, partners have one in common. `embeddings_BD` have unit length. A row without a
    partner counts for nothing; without any, the loss is 0 and has no gradient.

    >>> far = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> round(supervised_contrastive(far, torch.tensor([0, 0, 1, 1]), temperature=0.1).item(), 4)
    0.0001
    """
    itself_BB = torch.eye(len(targets_B), dtype=torch.bool, device=targets_B.device)
    alike_BB = targets_B[:, None] == targets_B if targets_B.ndim == 1 else targets_B.float() @ targets_B.float().T > 0
    partners_BB = alike_BB & ~itself_BB
    similar_BB = (embeddings_BD.float() @ embeddings_BD.float().T / temperature).masked_fill(itself_BB, float("-inf"))
    log_BB = similar_BB.log_softmax(1).masked_fill(~partners_BB, 0.0)
    count_B = partners_BB.sum(1)
    loss_B = -log_BB.sum(1) / count_B.clamp(min=1)
    return loss_B.sum() / (count_B > 0).sum().clamp(min=1)
