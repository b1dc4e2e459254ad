"""The decode's kernel for GPUs, in triton's interpreter on the CPU and on a GPU; and that it compiles for GPUs."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_decode import (
    WHOLE_SHAPES,
    check_confidence,
    check_labels,
    defined,
    interpolated,
    noise_logits,
    scene_logits,
)

from dinov3_seg_ros.decode import numpy_form, torch_form
from dinov3_seg_ros.decode.grid import plan_grid

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

# The interpreter takes a millisecond for each class, output row and block of 128 columns.
SHAPES = [
    # classes, map, output
    (134, (10, 10), (1, 200)),
    (7, (5, 7), (9, 33)),
    (2, (3, 4), (31, 7)),
    (1, (3, 3), (10, 10)),
    (5, (1, 1), (4, 30)),
    (5, (1, 9), (4, 40)),
    (5, (9, 1), (1, 64)),
    (20, (6, 6), (6, 6)),
    (20, (6, 6), (7, 5)),
    (20, (50, 60), (6, 9)),
    (20, (50, 60), (1, 1)),
    (255, (6, 6), (1, 40)),
    (256, (6, 6), (1, 40)),
    (300, (6, 6), (1, 140)),
]


@pytest.fixture(scope="module")
def interpreter():
    """A process in which triton interprets: it must be told so before it is imported."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TRITON_INTERPRET", "1")
            process.submit(_ready).result(timeout=60)
        yield process


@pytest.fixture(scope="module", params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def decode(request):
    """``decode(logits, size, window=None)`` -> labels and confidence, arrays or tensors as the logits are."""
    if request.param == "gpu":
        compute = _decode_on_gpu
    else:
        process = request.getfixturevalue("interpreter")

        def compute(*arguments):
            return process.submit(_decode_interpreted, *arguments).result(timeout=60)

    def decode_there(logits, size, window=None):
        if isinstance(logits, torch.Tensor):
            return compute(logits, size, window)
        return tuple(result.numpy() for result in compute(torch.from_numpy(logits), size, window))

    # A GPU multiplies and adds with one rounding, NumPy and the interpreter with two.
    decode_there.labels_may_differ = 1e-4 if request.param == "gpu" else 0.0
    return decode_there


def _ready() -> None:
    pass


def _decode_interpreted(logits, size, window):
    torch_form._choose_fill = lambda device: torch_form._try_kernel(device)
    return _decode(logits, size, window)


def _decode_on_gpu(logits, size, window):
    assert torch_form.backend(torch.device("cuda")) == "triton"
    return tuple(result.cpu() for result in _decode(logits.cuda(), size, window))


def _decode(logits, size, window):
    grid = plan_grid(tuple(logits.shape), size, window)
    labels, confidence = torch_form.decode(logits, grid, with_confidence=True)
    alone, nothing = torch_form.decode(logits, grid, with_confidence=False)
    assert nothing is None
    assert alone.equal(labels)
    return labels, confidence


def by_numpy(logits, size, window=None):
    grid = plan_grid(logits.shape, size, window)
    labels = np.empty((len(logits), *size), grid.label_type)
    confidence = np.empty(labels.shape, np.uint8)
    numpy_form.decode(logits, grid, labels, confidence)
    return labels, confidence


def check_against_numpy(decode, labels, confidence, logits, size, window=None):
    expected_labels, expected_confidence = by_numpy(logits, size, window)
    assert labels.dtype == expected_labels.dtype
    assert np.mean(labels != expected_labels) <= decode.labels_may_differ
    assert np.abs(confidence.astype(int) - expected_confidence).max() <= 1


def check_whole_map(decode, classes, map_size, size):
    logits = noise_logits(classes, *map_size)
    labels, confidence = decode(logits, size)
    volume = interpolated(logits, size)
    check_labels(labels, volume)
    check_confidence(confidence, volume)
    check_against_numpy(decode, labels, confidence, logits, size)


@pytest.mark.parametrize(("classes", "map_size", "size"), SHAPES)
def test_whole_map_agrees_with_torch_and_numpy(decode, classes, map_size, size):
    check_whole_map(decode, classes, map_size, size)


LARGE = [*WHOLE_SHAPES, (134, (40, 40), (480, 640)), (134, (160, 160), (480, 640)), (19, (30, 40), (1080, 1920))]


@pytest.mark.gpu
@pytest.mark.parametrize("decode", ["gpu"], indirect=True)
@pytest.mark.parametrize(("classes", "map_size", "size"), LARGE)
def test_large_whole_maps_agree_with_torch_and_numpy(decode, classes, map_size, size):
    check_whole_map(decode, classes, map_size, size)


def test_every_image_of_a_batch_is_decoded(decode):
    logits = scene_logits(6, 5, 4, batch=3) + noise_logits(6, 5, 4, batch=3)
    labels, confidence = decode(logits, (11, 150))
    volume = interpolated(logits, (11, 150))
    check_labels(labels, volume)
    check_confidence(confidence, volume)


def test_random_shapes_agree_with_torch(decode):
    random = np.random.default_rng(5)
    for seed in range(12):
        classes, height, width = random.integers(1, 8), random.integers(1, 12), random.integers(1, 12)
        size = int(random.integers(1, 12)), int(random.integers(1, 300))
        logits = noise_logits(classes, height, width, seed, scale=float(random.choice([0.01, 1, 30])))
        labels, confidence = decode(logits, size)
        volume = interpolated(logits, size)
        check_labels(labels, volume)
        check_confidence(confidence, volume)


@pytest.mark.parametrize(
    "window", [(0, 0, 12, 16), (2, 3, 6, 8), (0, 1.5, 12, 13), (3.25, 0, 0.5, 16), (11.9, 15.9, 0.1, 0.1)]
)
@pytest.mark.parametrize("size", [(12, 90), (5, 7), (1, 1)])
def test_labels_of_a_window_follow_its_definition(decode, window, size):
    logits = noise_logits(9, 12, 16)
    labels, confidence = decode(logits, size, window)
    volume = defined(logits, size, window)
    check_labels(labels, volume)
    check_confidence(confidence, volume)
    check_against_numpy(decode, labels, confidence, logits, size, window)


def test_ties_go_to_the_lowest_class(decode):
    logits = np.repeat(noise_logits(4, 6, 6), 3, axis=1)  # classes 0, 1, 2 are equal, and 3, 4, 5, ...
    for size in [(7, 60), (6, 6), (4, 4)]:
        assert set(np.unique(decode(logits, size)[0])) <= {0, 3, 6, 9}
    labels, confidence = decode(np.zeros((1, 8, 4, 4), np.float32), (9, 30))
    assert not labels.any()
    assert np.all(confidence == 32)  # 255 / 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [(20, 45), (9, 9), (6, 5)])
def test_values_that_are_not_finite_decode_as_torch_does(decode, value, size):
    logits = noise_logits(11, 9, 9)
    logits[0, 3, 4, 5] = logits[0, 7, 4, 6] = value
    logits[0, 5, 0] = value
    logits[0, 0, 2, 2] = value
    logits[0, :, 8, 8] = value
    volume = torch.from_numpy(interpolated(logits, size))
    probability = volume.softmax(1).amax(1).numpy()
    labels, confidence = decode(logits, size)
    np.testing.assert_array_equal(labels, volume.argmax(1).numpy())
    assert np.abs(confidence - np.nan_to_num(np.round(255 * probability))).max() <= 1
    assert not confidence[np.isnan(probability)].any()


def test_large_logits_keep_their_confidence(decode):
    logits = noise_logits(20, 8, 8) + np.float32(3000)
    check_confidence(decode(logits, (10, 100))[1], interpolated(logits, (10, 100)))


@pytest.mark.parametrize("order", [1, -1])
def test_many_classes_of_little_weight_are_not_lost(decode, order):
    logits = np.zeros((1, 600, 1, 1), np.float32)
    logits[:, 100] = 7.0
    _, confidence = decode(np.ascontiguousarray(logits[:, ::order]), (1, 2))
    assert np.all(np.abs(confidence.astype(int) - round(255 / (1 + 599 * np.exp(-7)))) <= 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_and_layouts_decode_alike(decode, dtype):
    logits = torch.from_numpy(noise_logits(5, 9, 8, batch=2)).to(getattr(torch, dtype))
    expected = decode(logits.float(), (4, 50))
    for same in (logits, logits.to(memory_format=torch.channels_last), logits.repeat(1, 2, 1, 1)[:, 5:]):
        for result, wanted in zip(decode(same, (4, 50)), expected, strict=True):
            assert result.equal(wanted)


@pytest.mark.parametrize("kept", [True, False])
def test_kernels_are_kept_elsewhere_where_the_home_cannot_be_written(kept, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    torch_form._find_room_for_kernels()
    assert "TRITON_CACHE_DIR" not in os.environ, "triton's own folder will do"
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("caches" if kept else "file")))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    torch_form._find_room_for_kernels()
    folder = Path(os.environ.pop("TRITON_CACHE_DIR"))
    folder.mkdir(parents=True, exist_ok=True)  # as triton does
    assert (folder == tmp_path / "caches" / "dinov3_seg_ros" / "compiled" / "triton") == kept


def test_it_compiles_for_gpus_and_stores_only_its_results(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        for capability in (75, 90):
            for label_type, confidence_type in (("*u8", "*u8"), ("*u16", "constexpr")):
                code = process.submit(_compile, capability, label_type, confidence_type).result(timeout=60)
                assert code.count("st.global") == (2 if confidence_type == "*u8" else 1)
                assert ".local" not in code


def _compile(capability, label_type, confidence_type):
    """The kernel's instructions (PTX) for a GPU; triton's own assembler has taken them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dinov3_seg_ros.decode.triton_kernel import _decode_block

    positions, weights = ("*i32", "*i32"), ("*fp32", "*fp32")
    types = ("*fp32", *positions, *weights, *positions, *weights, label_type, confidence_type, *["i32"] * 7)
    signature = dict(zip(_decode_block.arg_names, (*types, "constexpr"), strict=True))
    constants = {"BLOCK": 128} | ({"confidence": None} if confidence_type == "constexpr" else {})
    compiled = triton.compile(ASTSource(_decode_block, signature, constants), target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]
