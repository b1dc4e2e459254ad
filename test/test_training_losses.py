"""Losses against plain arithmetic, and what ignored pixels may not change."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from trainings import tiny_recipe

from dinov3_seg_ros.support.errors import RecipeError
from training.loop.parts import make_loss
from training.losses import (
    CrossEntropySection,
    DiceSection,
    FocalSection,
    LossSection,
    LovaszSection,
    WeightedSum,
    balanced_weights,
)

IGNORE = 255
WEIGHTS = [0.5, 1.0, 2.0]
WITHOUT_CLASS_0 = [
    CrossEntropySection(class_weights=[0.0, 1.0, 2.0]),
    CrossEntropySection(class_weights=[0.0, 1.0, 2.0], label_smoothing=0.1),
    FocalSection(class_weights=[0.0, 1.0, 2.0]),
]
OPTIONS = [
    CrossEntropySection(),
    CrossEntropySection(label_smoothing=0.1),
    CrossEntropySection(class_weights=WEIGHTS),
    CrossEntropySection(class_weights=WEIGHTS, label_smoothing=0.1),
    CrossEntropySection(class_weights="balanced"),
    FocalSection(),
    FocalSection(gamma=0.5, class_weights=WEIGHTS),
    *(
        kind(classes=classes, per_image=per_image, **more)
        for kind, more in ((DiceSection, {"smooth": 1.0}), (LovaszSection, {}))
        for classes in ("present", "all")
        for per_image in (False, True)
    ),
    *WITHOUT_CLASS_0,
]
# Every loss of a recipe is tested, at least as it is by default.
DEFAULTS = [kind() for kind in get_args(get_args(LossSection)[0])]
SECTIONS = [*OPTIONS, *(section for section in DEFAULTS if section not in OPTIONS)]
PER_IMAGE_OR_PIXEL = [section for section in SECTIONS if getattr(section, "per_image", True)]


def identity(section: LossSection) -> str:
    return f"{section.name}-" + "-".join(str(value) for value in section.model_dump(exclude={"name"}).values())


def of_sections(sections: list[LossSection]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("section", sections, ids=identity)


def build(section: LossSection) -> WeightedSum:
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


@of_sections(SECTIONS)
def test_ignored_pixels_change_neither_value_nor_gradient(section):
    logits, target = sample()
    ignored = (target == IGNORE).unsqueeze(1)
    value, gradient = value_and_gradient(build(section), logits, target)
    assert gradient[ignored.expand_as(gradient)].eq(0).all()
    assert gradient.ne(0).any()
    for noise in (100 * torch.randn_like(logits), torch.full_like(logits, 1e30)):
        other_value, other_gradient = value_and_gradient(build(section), torch.where(ignored, noise, logits), target)
        assert value == other_value
        assert torch.equal(gradient, other_gradient)


@of_sections(SECTIONS)
def test_losses_do_not_depend_on_the_ignore_value(section):
    logits, target = sample()
    value, gradient = value_and_gradient(build(section), logits, target)
    for ignore_value in (-1, 3):
        same = logits.clone().requires_grad_()
        relabelled = target.masked_fill(target == IGNORE, ignore_value)
        other = build(section)(same, relabelled, ignore_value)
        other.backward()
        assert other == value
        assert torch.equal(same.grad, gradient)


@of_sections(SECTIONS)
def test_ignored_pixels_do_not_dilute_the_mean(section):
    logits, target = sample()
    columns = [0, 1, 5]
    assert (target[:, :, columns] != IGNORE).all()
    masked = torch.full_like(target, IGNORE)
    masked[:, :, columns] = target[:, :, columns]
    expected = build(section)(logits[..., columns], target[:, :, columns], IGNORE)
    torch.testing.assert_close(build(section)(logits, masked, IGNORE), expected)


@of_sections(SECTIONS)
def test_a_batch_without_labelled_pixels_has_loss_and_gradient_zero(section):
    logits, target = sample()
    value, gradient = value_and_gradient(build(section), logits, torch.full_like(target, IGNORE))
    assert value == 0
    assert gradient.eq(0).all()


@of_sections(WITHOUT_CLASS_0)
def test_pixels_of_a_class_with_weight_zero_count_as_ignored(section):
    logits, target = sample()
    for own in (target, torch.zeros_like(target)):
        value, gradient = value_and_gradient(build(section), logits, own)
        expected, of_ignored = value_and_gradient(build(section), logits, own.masked_fill(own == 0, IGNORE))
        assert value == expected
        assert torch.equal(gradient, of_ignored)


@of_sections(SECTIONS)
def test_an_image_without_labelled_pixels_leaves_the_loss_of_the_others(section):
    logits, target = sample()
    value, gradient = value_and_gradient(build(section), logits[:1], target[:1])
    target[1] = IGNORE
    both, of_both = value_and_gradient(build(section), logits, target)
    torch.testing.assert_close(both, value)
    torch.testing.assert_close(of_both[:1], gradient)
    assert of_both[1].eq(0).all()


@of_sections(SECTIONS)
def test_gradients_equal_finite_differences(section):
    logits, target = sample()
    loss = build(section).losses[0].double()
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss(logits, target, IGNORE), [logits])


@of_sections(PER_IMAGE_OR_PIXEL)
def test_parts_of_a_batch_average_to_the_loss_of_the_batch(section):
    logits, target = sample()
    target[0, :, :3] = IGNORE  # the parts have different counts
    loss = build(section)
    parts = list(zip(logits.split(1), target.split(1), strict=True))
    counts = torch.stack([loss.counts(part, IGNORE) for _, part in parts]).mean(0)
    values = [loss(part_logits, part, IGNORE, counts) for part_logits, part in parts]
    torch.testing.assert_close(torch.stack(values).mean(), loss(logits, target, IGNORE))


@of_sections(OPTIONS[:4])
def test_cross_entropy_equals_torch(section):
    logits, target = sample()
    weights = None if section.class_weights is None else torch.tensor(section.class_weights)
    expected = F.cross_entropy(
        logits, target, weight=weights, ignore_index=IGNORE, label_smoothing=section.label_smoothing
    )
    torch.testing.assert_close(build(section)(logits, target, IGNORE), expected)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_focal_loss_without_focus_is_cross_entropy(class_weights):
    logits, target = sample()
    focal = build(FocalSection(gamma=0.0, class_weights=class_weights))(logits, target, IGNORE)
    plain = build(CrossEntropySection(class_weights=class_weights))(logits, target, IGNORE)
    torch.testing.assert_close(focal, plain)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_two_classes_is_its_closed_form(gamma):
    margin = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    logits = torch.stack([margin, torch.zeros(5)])[None, :, None]
    probability = margin.sigmoid()
    expected = ((1 - probability) ** gamma * -probability.log()).mean()
    loss = WeightedSum([FocalSection(gamma=gamma).build(2, list)], [1.0])
    torch.testing.assert_close(loss(logits, torch.zeros(1, 1, 5, dtype=torch.long), IGNORE), expected)


def test_focal_loss_stays_finite_where_the_answer_is_certain():
    logits, target = torch.tensor([200.0, -200.0]).reshape(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long)
    loss = WeightedSum([FocalSection(gamma=0.5).build(2, list)], [1.0])
    for sign, expected in ((1, 0.0), (-1, 400.0)):
        value, gradient = value_and_gradient(loss, sign * logits, target)
        assert value == expected
        assert gradient.isfinite().all()


@pytest.mark.parametrize("smooth", [0.0, 2.0])
@pytest.mark.parametrize("squared", [True, False])
def test_dice_loss_is_its_closed_form(squared, smooth):
    # Three pixels of classes 0, 0, 1 and an absent class 2.
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3]])
    logits, target = probabilities.log().T.reshape(1, 3, 1, 3), torch.tensor([[[0, 0, 1]]])
    if squared:
        sums = [0.49 + 0.09 + 0.04 + 2, 0.04 + 0.36 + 0.25 + 1, 0.01 + 0.01 + 0.09]
    else:
        sums = [0.7 + 0.3 + 0.2 + 2, 0.2 + 0.6 + 0.5 + 1, 0.1 + 0.1 + 0.3]
    overlaps = [2 * (0.7 + 0.3), 2 * 0.5, 0.0]
    dice = [1 - (overlap + smooth) / (total + smooth) for overlap, total in zip(overlaps, sums, strict=True)]
    for classes, expected in (("present", sum(dice[:2]) / 2), *([("all", sum(dice) / 3)] if smooth else [])):
        loss = build(DiceSection(classes=classes, squared=squared, smooth=smooth))
        assert loss(logits, target, IGNORE).item() == pytest.approx(expected)


def test_dice_over_all_classes_needs_to_be_smooth():
    with pytest.raises(ValidationError, match="classes that no mask shows have no effect with smooth 0; set it to 1"):
        DiceSection(classes="all")


def lovasz_by_definition(errors: list[float], foreground: set[int]) -> float:
    """The Lovász extension as the set function's integral: errors above each level form the set of wrong pixels."""

    def jaccard_loss(wrong: set[int]) -> float:
        missed, false = wrong & foreground, wrong - foreground
        union = len(foreground | false)
        return 1 - (len(foreground) - len(missed)) / union if union else 0.0

    levels = sorted({0.0, *errors})
    return sum(
        (upper - lower) * jaccard_loss({pixel for pixel, error in enumerate(errors) if error >= upper})
        for lower, upper in itertools.pairwise(levels)
    )


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("classes", ["present", "all"])
def test_lovasz_loss_is_the_extension_of_the_jaccard_set_function(classes, per_image):
    logits, target = sample()
    target[0][target[0] == 2] = IGNORE  # absent from one image
    probabilities = logits.softmax(1)
    values = []
    for images in [[0], [1]] if per_image else [[0, 1]]:
        truth = target[images]
        pixels = truth[truth != IGNORE].tolist()
        of_classes = []
        for index in range(3):
            foreground = {pixel for pixel, label in enumerate(pixels) if label == index}
            if not foreground and classes == "present":
                continue
            predicted = probabilities[images, index][truth != IGNORE].tolist()
            errors = [1 - p if pixel in foreground else p for pixel, p in enumerate(predicted)]
            of_classes.append(lovasz_by_definition(errors, foreground))
        values.append(sum(of_classes) / len(of_classes))
    loss = build(LovaszSection(classes=classes, per_image=per_image))(logits, target, IGNORE)
    assert loss.item() == pytest.approx(sum(values) / len(values))


def test_lovasz_loss_of_certain_answers_is_one_minus_their_mean_iou():
    target = torch.tensor([[[0, 0, 0, 1, 1, 2]]])
    predicted = torch.tensor([[[0, 0, 1, 1, 1, 0]]])
    logits = 200.0 * F.one_hot(predicted, 3).movedim(-1, 1)
    assert build(LovaszSection())(logits, target, IGNORE).item() == pytest.approx(1 - (2 / 4 + 2 / 3 + 0) / 3)


def test_lovasz_loss_keeps_its_precision_over_many_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 300, 400, generator=generator)
    target = torch.randint(0, 2, (1, 300, 400), generator=generator)
    loss = LovaszSection().build(2, list)
    single, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    for version in (single, exact):
        loss(version, target, IGNORE).backward()
    torch.testing.assert_close(single.grad.double(), exact.grad, rtol=1e-4, atol=0)


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


def test_a_recipes_losses_have_its_weights_and_balance_the_classes_of_all_images(tmp_path):
    logits, target = sample()
    losses = [{"name": "cross_entropy", "class_weights": "balanced", "weight": 2.0}, {"name": "dice", "weight": 0.5}]
    pixels = np.array([[10, 0, 30], [0, 20, 30], [0, 0, 0], [0, 10, 0]])  # of four images
    loss = make_loss(tiny_recipe(tmp_path, losses=losses), 3, lambda: pixels)
    weights = balanced_weights(torch.tensor([10, 30, 60]))
    expected = 2 * F.cross_entropy(logits, target, weight=weights, ignore_index=IGNORE)
    expected += 0.5 * build(DiceSection())(logits, target, IGNORE)
    torch.testing.assert_close(loss(logits, target, IGNORE), expected)


def test_balanced_weights_favour_rare_classes_and_have_mean_one():
    weights = balanced_weights(torch.tensor([900, 100, 0]))
    torch.testing.assert_close(weights[1] / weights[0], torch.tensor(3.0))
    assert weights[2] == 0
    assert weights.sum() == pytest.approx(2.0)


@pytest.mark.parametrize("kind", [CrossEntropySection, FocalSection])
def test_class_weights_of_a_wrong_number_are_refused(kind):
    with pytest.raises(RecipeError, match=r"2 values.*3 classes"):
        kind(class_weights=[1.0, 2.0]).build(3, list)
