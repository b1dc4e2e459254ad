"""Losses against plain arithmetic, and what ignored pixels may not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dinov3_seg_ros.errors import RecipeError
from training.losses import CrossEntropySection, WeightedSum, balanced_weights

IGNORE = 255
SECTIONS = [
    CrossEntropySection(),
    CrossEntropySection(label_smoothing=0.1),
    CrossEntropySection(class_weights=[0.5, 1.0, 2.0]),
    CrossEntropySection(class_weights=[0.5, 1.0, 2.0], label_smoothing=0.1),
    CrossEntropySection(class_weights="balanced"),
]


def build(section: CrossEntropySection) -> WeightedSum:
    return WeightedSum([section.build(3, lambda: torch.tensor([10, 20, 30]))], [section.weight])


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, generator=generator)
    target = torch.randint(0, 3, (2, 4, 6), generator=generator)
    target[:, 1:3, 2:5] = IGNORE
    return logits, target


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target, IGNORE)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("section", SECTIONS)
def test_ignored_pixels_change_neither_value_nor_gradient(section):
    logits, target = sample()
    ignored = (target == IGNORE).unsqueeze(1)
    value, gradient = value_and_gradient(build(section), logits, target)
    other_value, other_gradient = value_and_gradient(build(section), logits + 100 * torch.randn(1) * ignored, target)
    assert value == other_value
    assert torch.equal(gradient, other_gradient)
    assert gradient[ignored.expand_as(gradient)].eq(0).all()
    assert gradient.ne(0).any()


@pytest.mark.parametrize("section", SECTIONS)
def test_ignored_pixels_do_not_dilute_the_mean(section):
    logits, target = sample()
    columns = [0, 1, 5]
    assert (target[:, :, columns] != IGNORE).all()
    masked = torch.full_like(target, IGNORE)
    masked[:, :, columns] = target[:, :, columns]
    expected = build(section)(logits[..., columns], target[:, :, columns], IGNORE)
    torch.testing.assert_close(build(section)(logits, masked, IGNORE), expected)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_batch_without_labelled_pixels_has_loss_and_gradient_zero(section):
    logits, target = sample()
    value, gradient = value_and_gradient(build(section), logits, torch.full_like(target, IGNORE))
    assert value == 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("section", SECTIONS[:4])
def test_cross_entropy_equals_torch(section):
    logits, target = sample()
    weights = None if section.class_weights is None else torch.tensor(section.class_weights)
    expected = F.cross_entropy(
        logits, target, weight=weights, ignore_index=IGNORE, label_smoothing=section.label_smoothing
    )
    torch.testing.assert_close(build(section)(logits, target, IGNORE), expected)


def test_losses_are_computed_in_float32_at_the_target_size_and_weighted():
    logits, _ = sample()
    target = torch.randint(0, 3, (2, 9, 11))
    parts = [CrossEntropySection().build(3, list), CrossEntropySection(label_smoothing=0.3).build(3, list)]
    with torch.autocast("cpu", torch.bfloat16):
        value = WeightedSum(parts, [0.5, 2.0])(logits.bfloat16(), target, IGNORE)
    full = F.interpolate(logits.bfloat16().float(), size=(9, 11), mode="bilinear", align_corners=False)
    assert value.dtype == torch.float32
    expected = 0.5 * F.cross_entropy(full, target) + 2.0 * F.cross_entropy(full, target, label_smoothing=0.3)
    torch.testing.assert_close(value, expected)


def test_balanced_weights_favour_the_rare_and_have_mean_one_over_the_present():
    weights = balanced_weights(torch.tensor([900, 100, 0]))
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(3.0))
    assert weights[2] == 0
    assert weights.sum() == pytest.approx(2.0)


def test_class_weights_of_a_wrong_number_are_refused():
    with pytest.raises(RecipeError, match=r"2 values.*3 classes"):
        CrossEntropySection(class_weights=[1.0, 2.0]).build(3, list)
