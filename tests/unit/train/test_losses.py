"""The losses against their formulas and torch's own."""

import math

import pytest
import torch

from fewtune.train.losses import (
    cross_entropy,
    distillation,
    distillation_each,
    relations_apart,
    row_losses,
    states_apart,
    supervised_contrastive,
)


def test_hard_targets_by_formula_and_torch():
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    targets = torch.tensor([1, 0])
    formula = -(scores.exp()[torch.arange(2), targets] / scores.exp().sum(1)).log().mean()
    assert cross_entropy(scores, targets).item() == pytest.approx(formula.item(), abs=1e-6)
    assert torch.equal(cross_entropy(scores, targets), torch.nn.functional.cross_entropy(scores, targets))


def test_soft_targets_by_formula_and_torch():
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(5, 4, generator=generator), torch.rand(5, 4, generator=generator).softmax(1)
    formula = -(targets * scores.log_softmax(1)).sum(1).mean()
    assert cross_entropy(scores, targets).item() == pytest.approx(formula.item(), abs=1e-6)
    assert torch.equal(cross_entropy(scores, targets), torch.nn.functional.cross_entropy(scores, targets))


def test_soft_targets_that_are_sure_are_hard_targets():
    scores, targets = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 2, 1, 0])
    torch.testing.assert_close(cross_entropy(scores, torch.eye(3)[targets]), cross_entropy(scores, targets))


def test_a_yes_or_no_for_each_candidate_by_formula_and_torch():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    formula = -torch.where(targets, scores.sigmoid(), 1 - scores.sigmoid()).log().mean()
    assert cross_entropy(scores, targets).item() == pytest.approx(formula.item(), abs=1e-6)
    assert torch.equal(cross_entropy(scores, targets), torch.nn.functional.binary_cross_entropy_with_logits(scores, targets.float()))
    assert cross_entropy(scores.bfloat16(), targets).dtype == torch.float32


@pytest.mark.parametrize("form", ["hard", "soft", "yes or no"])
def test_rows_losses_by_hand_and_their_mean_is_the_loss(form):
    scores = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    shares = torch.rand(5, 3, generator=torch.Generator().manual_seed(4)).softmax(1)
    targets = {"hard": shares.argmax(1), "soft": shares, "yes or no": shares > 1 / 3}[form]
    given = scores if form == "yes or no" else scores.log_softmax(1)
    found = row_losses(given, targets)
    for row in range(5):
        likely = (scores[row].sigmoid() if form == "yes or no" else scores[row].softmax(0)).tolist()
        one = targets[row].tolist()
        if form == "hard":
            expected = -math.log(likely[one])
        elif form == "soft":
            expected = -sum(aim * math.log(share) for aim, share in zip(one, likely, strict=True))
        else:
            expected = -sum(math.log(share if yes else 1 - share) for yes, share in zip(one, likely, strict=True)) / 3
        assert found[row].item() == pytest.approx(expected)
    assert found.mean().item() == pytest.approx(cross_entropy(scores, targets).item())


def test_gradient_is_probability_minus_target_over_rows():
    scores = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    targets = torch.tensor([[0.2, 0.3, 0.5]] * 4)
    cross_entropy(scores, targets).backward()
    torch.testing.assert_close(scores.grad, (scores.detach().softmax(1) - targets.double()) / 4)


@pytest.mark.parametrize(
    ("given", "computed"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)]
)
def test_half_precision_is_raised_to_float32_and_no_precision_is_lost(given, computed):
    scores = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=given)
    loss = cross_entropy(scores, torch.tensor([1, 0], dtype=torch.int32))
    assert loss.dtype == computed
    assert torch.equal(loss, torch.nn.functional.cross_entropy(scores.to(computed), torch.tensor([1, 0])))


def test_supervised_contrastive_equals_a_double_loop():
    generator = torch.Generator().manual_seed(2)
    embeddings_BD = torch.nn.functional.normalize(torch.randn(7, 4, generator=generator), dim=-1)
    targets = [0, 1, 0, 2, 1, 0, 3]  # rows 3 and 6 have no partner
    losses = []
    for row, target in enumerate(targets):
        partners = [other for other, its in enumerate(targets) if its == target and other != row]
        if partners:
            others = [other for other in range(7) if other != row]
            total = sum(math.exp(float(embeddings_BD[row] @ embeddings_BD[other]) / 0.3) for other in others)
            likely = [float(embeddings_BD[row] @ embeddings_BD[other]) / 0.3 - math.log(total) for other in partners]
            losses.append(-sum(likely) / len(partners))
    found = supervised_contrastive(embeddings_BD, torch.tensor(targets), temperature=0.3)
    assert found.item() == pytest.approx(sum(losses) / 5, abs=1e-5)


def test_without_any_partner_the_contrastive_loss_is_zero_and_moves_nothing():
    embeddings_BD = torch.eye(3).requires_grad_()
    loss = supervised_contrastive(embeddings_BD, torch.tensor([0, 1, 2]), temperature=0.1)
    loss.backward()
    assert loss.item() == 0 and embeddings_BD.grad is not None and bool((embeddings_BD.grad == 0).all())


def test_partners_have_a_label_in_common_where_rows_have_several():
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=-1)
    targets = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    partners = {0: [1, 2], 1: [0], 2: [0]}  # rows without a label have none, not even each other
    total = 0.0
    for row, found in partners.items():
        others = torch.stack([embeddings[row] @ embeddings[other] / 0.1 for other in range(5) if other != row]).logsumexp(0)
        total += sum((others - embeddings[row] @ embeddings[other] / 0.1).item() for other in found) / len(found)
    assert supervised_contrastive(embeddings, targets, temperature=0.1).item() == pytest.approx(total / 3, rel=1e-5)
    one_label_each = torch.tensor([0, 1, 0, 1, 2])
    torch.testing.assert_close(
        supervised_contrastive(embeddings, torch.eye(3, dtype=torch.bool)[one_label_each], temperature=0.1),
        supervised_contrastive(embeddings, one_label_each, temperature=0.1),
    )


def test_distillation_is_the_divergence_times_the_squared_temperature():
    scores, shares = torch.tensor([[1.0, -0.5, 0.2], [0.0, 2.0, 1.0]]), torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    for temperature in (1.0, 2.0, 5.0):
        teacher = shares ** (1 / temperature) / (shares ** (1 / temperature)).sum(1, keepdim=True)
        student = (scores / temperature).softmax(1)
        wanted = temperature**2 * (teacher * (teacher / student).log()).sum(1).mean()
        torch.testing.assert_close(distillation(scores, shares, torch.full((2,), temperature)), wanted)


def test_a_hard_row_at_temperature_1_is_learned_by_its_cross_entropy():
    scores, soft = torch.tensor([[1.0, -0.5], [0.3, 0.1]]), torch.tensor([[0.0, 1.0], [0.8, 0.2]])
    mixed = distillation(scores, soft, torch.tensor([1.0, 2.0]))
    hard, other = cross_entropy(scores[:1], torch.tensor([1])), distillation(scores[1:], soft[1:], torch.tensor([2.0]))
    torch.testing.assert_close(mixed, (hard + other) / 2)


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn():
    shares = torch.tensor([[0.7, 0.2, 0.1]])
    scores = shares.log().requires_grad_()
    loss = distillation(scores, shares, torch.tensor([3.0]))
    loss.backward()
    assert abs(loss.item()) < 1e-6 and scores.grad.abs().max() < 1e-6


def test_distillation_of_labels_judged_each_for_itself_by_formula():
    generator = torch.Generator().manual_seed(3)
    scores, odds, warm = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator), 2.5
    p, q = (odds / warm).sigmoid(), (scores / warm).sigmoid()
    formula = warm**2 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean() / 3
    found = distillation_each(scores, odds.sigmoid(), torch.full((4,), warm))
    assert found.item() == pytest.approx(formula.item(), rel=1e-4)


def test_states_are_apart_where_tokens_are_real():
    student, teacher = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    teacher[0, 2] = teacher[1, 1:] = 99.0
    assert states_apart(student, teacher, mask).item() == 4.0
    assert states_apart(teacher, teacher, mask).item() == 0.0


def test_relations_by_the_papers_formula_with_other_widths_and_heads():
    """Wang et al. 2021, eq. 2 and 5: softmax of the scaled products of each head, row by row, KL summed over the others, then means."""
    generator = torch.Generator().manual_seed(5)
    student, teacher, lengths, heads = torch.randn(2, 4, 6, generator=generator), torch.randn(2, 4, 12, generator=generator), (4, 2), 3
    mask = (torch.arange(4) < torch.tensor(lengths)[:, None]).long()
    total, tokens = 0.0, 0
    for row, length in enumerate(lengths):
        tokens += length
        for head in range(heads):
            related = []
            for vectors in (teacher, student):
                size = vectors.shape[-1] // heads
                own = vectors[row, :length, head * size : (head + 1) * size]
                related.append((own @ own.T / math.sqrt(size)).softmax(-1))
            total += (related[0] * (related[0] / related[1]).log()).sum().item() / heads
    assert relations_apart(student, teacher, mask, heads=heads).item() == pytest.approx(total / tokens, rel=1e-5)
    assert relations_apart(teacher, teacher, mask, heads=heads).item() == pytest.approx(0.0, abs=1e-6)
