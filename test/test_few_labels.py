"""The benchmark of few labels, on small rooms: its rounds, and what it says of them."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
from bundles import made_backbone
from trainings import forget_accelerator

from benchmarks import few_labels
from benchmarks.label_savings import labels_needed
from dinov3_seg_ros import scenes
from dinov3_seg_ros.model.identity import save_backbone

RECIPE = """
name: few
data: {name: folder, root: data}
input: {network_size: [64, 96], geometry: stretch}
backbone: {source: SOURCE, layers: [1, 2]}
head: {name: linear}
iterations: 1
"""
STRATEGIES = ("random", "typical", "class_coverage")


@pytest.fixture
def line(tmp_path):
    """The command line of two rounds of three strategies on eight labelled rooms."""
    for split, count in (("train", 8), ("val", 2)):
        for index in range(count):
            image, mask = scenes.sample(split, index * scenes.VIEWS_PER_SCENE, (64, 96))
            for kind, content in (("images", image[..., ::-1]), ("masks", mask)):
                path = tmp_path / "data" / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), content)
    (tmp_path / "data" / "classes.yaml").write_text(json.dumps(list(scenes.CLASS_NAMES)))
    save_backbone(made_backbone("dinov3_convnext"), tmp_path / "backbone")
    (tmp_path / "few.yaml").write_text(RECIPE.replace("SOURCE", str(tmp_path / "backbone")))
    options = ["--probe", "--counts", "2", "4", "--draws", "2", "--runs", "1"]
    places = [tmp_path / "data", "--recipe", tmp_path / "few.yaml", "--output", tmp_path / "out"]
    # The recipe's precision is the best of the machine, and not what another test asked for.
    forget_accelerator()
    yield ["few_labels.py", *map(str, places), *options]
    forget_accelerator()


def test_each_round_adds_to_the_images_of_the_last_and_is_kept(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*line, "--strategies", *STRATEGIES])
    few_labels.main()
    said = capsys.readouterr().out
    for run in ("random-0", "random-1", "typical-0", "class_coverage-0"):
        first, last = (json.loads((tmp_path / "out" / f"{run}-{count}.json").read_text()) for count in (2, 4))
        assert len(set(last["labelled"])) == 4 and last["labelled"][:2] == first["labelled"]
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["strategies"]
    assert list(found) == list(STRATEGIES)
    for own in found.values():
        assert all(0 < score < 1 for score in own["miou"])
    assert 2 <= found["typical"]["against_random"]["4"]["needed"] <= 4
    table = said[said.index("| strategy |") :]
    assert [row.split()[1] for row in table.splitlines()[2:]] == list(STRATEGIES)
    assert (tmp_path / "out" / "few_labels.png").stat().st_size > 0

    def fit(*_):
        raise AssertionError("a round that is on the disk is not repeated")

    monkeypatch.setattr(few_labels.Bench, "fit", fit)
    few_labels.main()
    assert capsys.readouterr().out.endswith(table)


def test_images_are_chosen_for_one_half_of_the_validation_images_and_scored_on_the_other(
    line, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(few_labels, "STRETCH", 1)
    monkeypatch.setattr(sys, "argv", [*line, "--target", "--strategies", "class_coverage"])
    few_labels.main()
    for run in ("random-0-4", "class_coverage-0-4"):
        content = json.loads((tmp_path / "out" / f"{run}.json").read_text())
        assert (len(content["labelled"]), len(content["union"])) == (4, 1)
    monkeypatch.setattr(sys, "argv", [*line, "--target", "--strategies", "class_coverage", "margin"])
    with pytest.raises(SystemExit):
        few_labels.main()
    assert "do not look at target images: margin" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit, match="holds rounds that were made otherwise"):
        few_labels.main()
    monkeypatch.setattr(few_labels, "STRETCH", 10)
    monkeypatch.setattr(sys, "argv", [*line, "--target"])
    with pytest.raises(SystemExit, match="--target needs more than 10 validation images; there are 2"):
        few_labels.main()


def test_the_labels_needed_are_interpolated_between_rounds():
    curve = np.array([0.2, 0.4, 0.3, 0.6])
    counts = [10, 20, 40, 80]
    assert labels_needed(curve, counts, 0.4) == pytest.approx(20)
    assert labels_needed(curve, counts, 0.3) == pytest.approx(10 * 2**0.5)
    assert labels_needed(curve, counts, 0.5) == pytest.approx(40 * 2**0.5), "a fall does not count"
    assert (labels_needed(curve, counts, 0.1), labels_needed(curve, counts, 0.7)) == (10, 80)
