"""Published masks follow the class list, and unlabelled pixels have confidence 0."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dinov3_seg_ros.bundle.loading import load_bundle
from dinov3_seg_ros.decode import upsample_argmax_confidence
from dinov3_seg_ros.frames.classes import ClassesSection
from dinov3_seg_ros.frames.output_classes import (
    ClassList,
    OutputClasses,
    check_class_list,
    confidence_threshold,
    load_class_list,
)
from dinov3_seg_ros.frames.overlay import blend_overlay
from dinov3_seg_ros.options import PublishOptions
from dinov3_seg_ros.segmenter import HeadSegmentation
from dinov3_seg_ros.support.errors import ParameterError
from dinov3_seg_ros.support.resources import resource_path
from dinov3_seg_ros.support.timing import StageTimes

ROOM = ClassesSection(names=["floor", "wall", "chair", "table"], palette=[(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)])


def numbered_classes(count):
    return ClassesSection(names=[f"c{i}" for i in range(count)], palette=[(i % 256, 0, 0) for i in range(count)])


def head_result(labels, confidence=200, dtype=np.uint8):
    labels = np.asarray(labels, dtype)
    return SimpleNamespace(labels=labels, confidence=np.broadcast_to(np.uint8(confidence), labels.shape).copy())


def head_of(probabilities):
    """The result of a head that gives these probabilities of each class to the pixels of one row."""
    logits = np.log(np.maximum(probabilities, 1e-6)).astype(np.float32).T[None, :, None]
    width = len(probabilities)
    return HeadSegmentation(logits, (1, width), (0, 0, 1, width), StageTimes())


class LabelsOnly:
    """Labels of a head whose confidence must not be decoded."""

    labels = np.array([[0, 1]], np.uint8)

    @property
    def confidence(self):
        pytest.fail("the confidence was decoded without need")


def test_without_a_class_list_the_arrays_are_passed_on_uncopied():
    head = head_result([[0, 3]])
    classes = OutputClasses.of(ROOM)
    labels, confidence = classes.labels_and_confidence(head)
    assert labels is head.labels
    assert confidence is head.confidence
    assert classes.labels(LabelsOnly()) is LabelsOnly.labels
    assert (classes.names, classes.palette[3]) == (("floor", "wall", "chair", "table"), (4, 4, 4))


def test_a_class_list_filters_merges_and_numbers_in_its_order():
    chosen = ClassList(classes={"obstacle": ["table", "chair"], "floor": ["floor"]}, palette={"floor": (9, 8, 7)})
    classes = OutputClasses.of(ROOM, chosen)
    labels, confidence = classes.labels_and_confidence(head_of(np.eye(4)))
    assert labels.tolist() == [[1, 255, 0, 0]]
    assert confidence.tolist() == [[255, 0, 255, 255]]
    assert classes.names == ("obstacle", "floor")
    assert classes.palette == ((4, 4, 4), (9, 8, 7)), "a merged class has the colour of the first that it stands for"


OBSTACLES = ClassList(classes={"floor": ["floor"], "obstacle": ["wall", "chair", "table"]})
SOME_OBSTACLES = ClassList(classes={"obstacle": ["chair", "wall"], "floor": ["floor"]})


@pytest.mark.parametrize(
    ("chosen", "probabilities", "label", "confidence"),
    [
        (OBSTACLES, (0.22, 0.40, 0.38, 0.0), 1, 199),
        (OBSTACLES, (0.30, 0.25, 0.25, 0.20), 1, 178),
        (OBSTACLES, (0.55, 0.15, 0.15, 0.15), 0, 140),
        (SOME_OBSTACLES, (0.30, 0.20, 0.20, 0.30), 0, 102),
        (SOME_OBSTACLES, (0.10, 0.20, 0.20, 0.50), 255, 0),
        (ClassList(classes=["floor"]), (0.40, 0.30, 0.30, 0.0), 0, 102),
    ],
)
def test_a_merged_class_is_as_probable_as_its_classes_together(chosen, probabilities, label, confidence):
    classes = OutputClasses.of(ROOM, chosen)
    found = classes.labels_and_confidence(head_of([probabilities]))
    assert tuple(array.item() for array in found) == (label, pytest.approx(confidence, abs=1))
    least = found[1].item()
    assert classes.labels(head_of([probabilities])).item() == label
    assert classes.labels(head_of([probabilities]), least).item() == label
    assert classes.labels(head_of([probabilities]), least + 1).item() == 255


def test_300_classes_merged_into_two_give_an_8_bit_mask():
    logits = np.zeros((1, 300, 1, 1), np.float32)
    logits[0, 7] = 5.0  # 0.33 of all, the rest 0.67
    names = numbered_classes(300).names
    chosen = ClassList(classes={"seven": ["c7"], "rest": [name for name in names if name != "c7"]})
    classes = OutputClasses.of(numbered_classes(300), chosen)
    labels = classes.labels(HeadSegmentation(logits, (2, 2), (0, 0, 1, 1), StageTimes()))
    assert (labels.dtype, labels.tolist()) == (np.uint8, [[1, 1], [1, 1]])


def test_a_plain_list_of_names_keeps_these_classes():
    assert OutputClasses.of(ROOM, ClassList(classes=["wall"])).labels(head_result([[0, 1]])).tolist() == [[255, 0]]


def test_a_class_list_that_changes_nothing_needs_no_lookup():
    assert OutputClasses.of(ROOM, ClassList(classes=list(ROOM.names))).lookup is None


@pytest.mark.parametrize(("probability", "least"), [(0.0, 0), (0.5, 128), (0.4, 102), (0.31, 79), (1.0, 255)])
def test_pixels_below_the_threshold_lose_label_and_confidence(probability, least):
    head = head_result([[0] * 256])
    head.confidence = np.arange(256, dtype=np.uint8)[None]
    labels, confidence = OutputClasses.of(ROOM).labels_and_confidence(head, confidence_threshold(probability))
    kept = np.arange(256) >= least
    assert np.array_equal(labels[0], np.where(kept, 0, 255))
    assert np.array_equal(confidence[0], np.where(kept, np.arange(256), 0))


@pytest.mark.parametrize("probability", [0.31, 0.4, 0.62, 0.8])
def test_a_pixel_at_the_threshold_keeps_its_label(probability):
    probabilities = np.array([probability, *[(1 - probability) / 4] * 4])
    logits = np.broadcast_to(np.log(probabilities).astype(np.float32).reshape(1, 5, 1, 1), (1, 5, 2, 2))
    labels, confidence = upsample_argmax_confidence(logits, (4, 6))
    head = SimpleNamespace(labels=labels[0], confidence=confidence[0])
    classes = OutputClasses.of(numbered_classes(5))
    assert (classes.labels(head, confidence_threshold(probability)) == 0).all()
    assert (classes.labels(head, confidence_threshold(probability + 0.005)) == 255).all()


def test_a_one_pixel_mask_is_compared_with_the_threshold():
    classes = OutputClasses.of(ROOM)
    labels, confidence = classes.labels_and_confidence(head_result([[3]], confidence=10), threshold=11)
    assert (labels.tolist(), confidence.tolist()) == ([[255]], [[0]])
    labels, confidence = classes.labels_and_confidence(head_result([[3]], confidence=11), threshold=11)
    assert (labels.tolist(), confidence.tolist()) == ([[3]], [[11]])


def test_few_classes_chosen_from_300_give_an_8_bit_mask():
    head = head_result([[0, 299]], dtype=np.uint16)
    all_of_them = OutputClasses.of(numbered_classes(300))
    head.confidence[0, 0] = 10
    assert all_of_them.labels(head, threshold=11).tolist() == [[65535, 299]]
    few = OutputClasses.of(numbered_classes(300), ClassList(classes=["c299"]))
    assert few.labels(head).dtype == np.uint8
    labels, confidence = few.labels_and_confidence(head)
    assert (labels.tolist(), confidence.tolist()) == ([[255, 0]], [[0, 200]])


def test_one_class_list_gives_several_heads_the_same_ids():
    other = ClassesSection(names=["person", "floor"], palette=[(5, 5, 5), (6, 6, 6)])
    chosen = ClassList(classes=["person", "floor"])
    check_class_list(chosen, {"rooms": ROOM, "people": other})
    assert OutputClasses.of(ROOM, chosen).labels(head_result([[0]])).item() == 1
    assert OutputClasses.of(other, chosen).labels(head_result([[1]])).item() == 1


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (ClassList(classes=["floor", "flor"]), "names 'flor', which no bundle has"),
        (ClassList(classes=["floor"], palette={"wall": (0, 0, 0)}), "colours 'wall', which is not published"),
        (ClassList(palette={"sky": (0, 0, 0)}), "colours 'sky'"),
    ],
)
def test_a_name_that_no_head_has_is_refused(chosen, message):
    with pytest.raises(ParameterError, match=message):
        check_class_list(chosen, {"rooms": ROOM})


def test_a_class_list_that_would_leave_a_head_without_a_class_is_refused():
    free_space = ClassesSection(names=["free", "occupied"], palette=[(5, 5, 5), (6, 6, 6)])
    of_bundles = {"rooms": ROOM, "free_space": free_space}
    with pytest.raises(ParameterError, match=r"no class of the bundle 'free_space'.*at least one of: free, occupied"):
        check_class_list(ClassList(classes={"ground": ["floor"]}), of_bundles)
    check_class_list(ClassList(classes={"ground": ["floor", "free"]}), of_bundles)
    check_class_list(ClassList(palette={"floor": (1, 2, 3)}), of_bundles)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [floor, floor]", "classes: .*named twice"),
        ("classes: {a: [floor], b: [floor]}", "'floor' is published as two classes"),
        ("classes: {a: []}", "classes.a: "),
        ("classes: []", "classes: "),
        ("palette: {floor: [1, 2, 256]}", "palette.floor.2"),
        ("klasses: [floor]", "klasses: "),
        ("classes: [", "is not YAML"),
        ("classes: {a: [floor], b: [wall], a: [door]}", "is not YAML: 'a' stands there twice; remove one"),
        ("classes:\n  a: [floor]\n  a: [wall]", "is not YAML: 'a' stands there twice; remove one line 3"),
        ("- floor", "the file: "),
        pytest.param(5000 * "[", "is not YAML: it is nested too deeply", id="deep"),
    ],
)
def test_a_bad_class_list_is_refused_naming_the_place(tmp_path, text, message):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message):
        load_class_list(path)
    with pytest.raises(ParameterError, match="cannot be read"):
        load_class_list(tmp_path / "nowhere.yaml")
    with pytest.raises(ParameterError, match="cannot be read"):
        load_class_list("~no such user/classes.yaml")


def test_a_class_list_may_merge_mappings(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text("palette: {<<: {floor: [1, 2, 3], wall: [4, 5, 6]}, wall: [7, 8, 9]}")
    assert load_class_list(path).palette == {"floor": (1, 2, 3), "wall": (7, 8, 9)}


def test_the_class_list_in_config_fits_the_demo():
    chosen = load_class_list(resource_path("config/classes/navigation.yaml"))
    classes = load_bundle(resource_path("weights/demo")).manifest.classes
    check_class_list(chosen, {"demo": classes})
    assert OutputClasses.of(classes, chosen).names == ("floor", "obstacle", "person")


@pytest.mark.parametrize(
    ("palette", "chosen", "expected"),
    [
        ([(1, 1, 1), (2, 2, 2)], None, (0, 0, 0)),
        ([(0, 0, 0), (2, 2, 2)], None, (255, 255, 255)),
        ([(0, 0, 0), (255, 255, 255)], None, (255, 255, 254)),
        ([(0, 0, 0), (2, 2, 2)], (9, 8, 7), (9, 8, 7)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_colour_mask_has_one_colour_for_unlabelled(palette, chosen, expected, dtype):
    section = ClassesSection(names=["floor", "wall"], palette=palette)
    classes = OutputClasses.of(section, ClassList(unlabelled_colour=chosen))
    coloured = classes.coloured(np.array([[0, 1, np.iinfo(dtype).max, 7]], dtype))
    assert coloured.dtype == np.uint8
    assert [tuple(colour) for colour in coloured[0]] == [*palette, expected, expected]


@pytest.mark.parametrize("names", [True, False])
def test_an_overlay_follows_the_options(names):
    rgb, labels = np.full((120, 160, 3), 90, np.uint8), np.full((120, 160), 2, np.uint8)
    found = OutputClasses.of(ROOM).overlay(rgb, labels, PublishOptions(overlay_alpha=0.8, overlay_names=names))
    assert np.array_equal(found, blend_overlay(rgb, labels, ROOM.palette, 0.8, ROOM.names if names else None))


def test_classes_of_other_heads_have_no_colour_here():
    chosen = ClassList(classes=["floor", "person"])
    assert OutputClasses.of(ROOM, chosen).unlabelled_colour == (0, 0, 0)
    black = chosen.model_copy(update={"unlabelled_colour": (0, 0, 0)})
    assert OutputClasses.of(ROOM, black).palette == ((1, 1, 1), (0, 0, 0))
    with pytest.raises(ParameterError, match=r"\[0, 0, 0\], which class 'person' has"):
        OutputClasses.of(ROOM, black.model_copy(update={"palette": {"person": (0, 0, 0)}}))


def test_a_colour_of_unlabelled_that_a_class_has_is_refused():
    with pytest.raises(ParameterError, match=r"\[3, 3, 3\], which class 'chair' has; choose another unlabelled_colour"):
        OutputClasses.of(ROOM, ClassList(unlabelled_colour=(3, 3, 3)))
