"""The decode against bilinear interpolation and argmax, torch's where it is, and what it promises beyond them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dinov3_seg_ros import decode
from dinov3_seg_ros.decode import numba_form, numpy_form, parallel, upsampling
from dinov3_seg_ros.decode.grid import plan_grid
from dinov3_seg_ros.support.errors import ParameterError

ROOT = Path(__file__).resolve().parents[1]
WHOLE_SHAPES = [
    # classes, map, output
    (134, (40, 40), (120, 160)),
    (19, (12, 20), (190, 333)),
    (7, (5, 7), (50, 33)),
    (2, (3, 4), (301, 7)),
    (1, (3, 3), (10, 10)),
    (5, (1, 1), (40, 30)),
    (5, (1, 9), (40, 30)),
    (5, (9, 1), (1, 64)),
    (40, (16, 16), (16, 16)),
    (40, (16, 16), (16, 64)),
    (40, (16, 16), (17, 15)),
    (20, (100, 120), (30, 20)),
    (20, (100, 120), (1, 1)),
    (255, (6, 6), (60, 60)),
    (256, (6, 6), (60, 60)),
    (300, (6, 6), (61, 59)),
]


def scene_logits(classes: int, height: int, width: int, seed: int = 0, batch: int = 1) -> np.ndarray:
    """Logits with smooth regions of a few classes, as a trained head gives, (B, C, h, w) float32."""
    random = np.random.default_rng(seed)
    logits = random.normal(-4, 0.5, (batch, classes, height, width))
    y, x = np.mgrid[:height, :width]
    for label in random.permutation(classes)[:12]:
        centre_y, centre_x = random.uniform(0, height), random.uniform(0, width)
        distance = ((y - centre_y) / height) ** 2 + ((x - centre_x) / width) ** 2
        logits[:, label] += 12 - 40 * distance
    return logits.astype(np.float32)


def noise_logits(classes: int, height: int, width: int, seed: int = 0, batch: int = 1, scale: float = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (batch, classes, height, width)).astype(np.float32)


def interpolated(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What torch's interpolate gives; without PyTorch, the same from its definition."""
    try:
        import torch
    except ImportError:
        return defined(logits, size)
    volume = torch.nn.functional.interpolate(torch.from_numpy(logits), size=size, mode="bilinear", align_corners=False)
    return volume.numpy()


def defined(
    logits: np.ndarray, size: tuple[int, int], window: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Bilinear interpolation of a window without aligned corners, written down in float64: (B, C, *size)."""
    map_size = logits.shape[2:]

    def corners(axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start, extent = (0, map_size[axis]) if window is None else (window[axis], window[axis + 2])
        last = map_size[axis] - 1
        positions = np.maximum(0, (np.arange(size[axis]) + 0.5) * extent / size[axis] + start - 0.5)
        low = np.minimum(positions.astype(int), last)
        high = low if size[axis] == map_size[axis] and window is None else np.minimum(low + 1, last)
        return low, high, np.minimum(positions - low, 1)

    (top, bottom, down), (left, right, across) = corners(0), corners(1)
    values = logits.astype(np.float64)
    rows = values[:, :, top] * (1 - down)[:, None] + values[:, :, bottom] * down[:, None]
    return rows[..., left] * (1 - across) + rows[..., right] * across


def check_labels(labels: np.ndarray, volume: np.ndarray) -> None:
    """Labels are the volume's argmax but where its lead is within rounding."""
    best = volume.max(axis=1)
    chosen = np.take_along_axis(volume, labels[:, None].astype(np.int64), axis=1)[:, 0]
    assert np.all(best - chosen <= 1e-5 * np.maximum(1, np.abs(best)))
    assert np.mean(labels != volume.argmax(axis=1)) < 1e-3


def check_confidence(confidence: np.ndarray, volume: np.ndarray) -> None:
    volume = volume.astype(np.float64)
    share = 1 / np.exp(volume - volume.max(axis=1, keepdims=True)).sum(axis=1)
    assert confidence.dtype == np.uint8
    assert np.abs(confidence - np.round(255 * share)).max() <= 1


def decode_with(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode with ``numpy`` or ``numba`` from now on; ``numba by cells`` and ``numba by rows`` choose its algorithm."""
    module = numpy_form if form == "numpy" else numba_form
    monkeypatch.setattr(upsampling, "host_decoder", lambda label_type: module.decode)
    if " by " in form:
        monkeypatch.setattr(numba_form, "_VALUES_WORTH_A_CELL", 0 if form == "numba by cells" else np.inf)


@pytest.fixture(params=["numba", "numpy"])
def either_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_with(request.param, monkeypatch)


@pytest.fixture(params=["numba by cells", "numba by rows"])
def either_algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_with(request.param, monkeypatch)


@pytest.fixture(params=["numba by cells", "numba by rows", "numpy"])
def every_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_with(request.param, monkeypatch)


@pytest.fixture
def numba_only(monkeypatch: pytest.MonkeyPatch) -> None:
    decode_with("numba", monkeypatch)


@pytest.mark.parametrize(("classes", "map_size", "size"), WHOLE_SHAPES)
def test_the_definition_is_what_torch_computes(classes, map_size, size):
    pytest.importorskip("torch")
    logits = noise_logits(classes, *map_size, batch=2)
    np.testing.assert_allclose(defined(logits, size), interpolated(logits, size), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("size", [(80, 90), (9, 9), (6, 5)])
def test_the_definition_is_what_torch_computes_without_finite_values(size):
    pytest.importorskip("torch")
    logits = noise_logits(3, 9, 9)
    logits[0, 0, 4, 5], logits[0, 1, 4, 6], logits[0, 2, 0] = np.inf, np.nan, -np.inf
    np.testing.assert_allclose(defined(logits, size), interpolated(logits, size), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("classes", "map_size", "size"), WHOLE_SHAPES)
@pytest.mark.parametrize("make", [scene_logits, noise_logits])
def test_whole_map_agrees_with_torch(either_backend, make, classes, map_size, size):
    logits = make(classes, *map_size, batch=2)
    volume = interpolated(logits, size)
    labels = decode.upsample_argmax(logits, size)
    assert labels.shape == (2, *size)
    assert labels.dtype == (np.uint8 if classes <= 255 else np.uint16)
    check_labels(labels, volume)
    labels, confidence = decode.upsample_argmax_confidence(logits, size)
    check_labels(labels, volume)
    check_confidence(confidence, volume)


@pytest.mark.parametrize(("classes", "map_size", "size"), WHOLE_SHAPES)
def test_both_algorithms_of_the_kernel_agree_with_torch(either_algorithm, classes, map_size, size):
    logits = noise_logits(classes, *map_size)
    volume = interpolated(logits, size)
    labels, confidence = decode.upsample_argmax_confidence(logits, size)
    check_labels(labels, volume)
    check_labels(decode.upsample_argmax(logits, size), volume)
    check_confidence(confidence, volume)


def test_random_shapes_agree_with_torch(either_algorithm):
    random = np.random.default_rng(5)
    for seed in range(60):
        classes, height, width = random.integers(1, 30), random.integers(1, 12), random.integers(1, 12)
        size = int(random.integers(1, 90)), int(random.integers(1, 90))
        logits = noise_logits(classes, height, width, seed, scale=float(random.choice([0.01, 1, 30])))
        volume = interpolated(logits, size)
        labels, confidence = decode.upsample_argmax_confidence(logits, size)
        check_labels(labels, volume)
        check_labels(decode.upsample_argmax(logits, size), volume)
        check_confidence(confidence, volume)


@pytest.mark.parametrize(
    "window", [(0, 0, 12, 16), (2, 3, 6, 8), (0, 1.5, 12, 13), (3.25, 0, 0.5, 16), (11.9, 15.9, 0.1, 0.1), (0, 0, 7, 7)]
)
@pytest.mark.parametrize("size", [(60, 90), (5, 7), (1, 1)])
def test_labels_of_a_window_follow_its_definition(either_backend, window, size):
    logits = noise_logits(23, 12, 16)
    volume = defined(logits, size, window)
    labels, confidence = decode.upsample_argmax_confidence(logits, size, window)
    check_labels(labels, volume)
    check_confidence(confidence, volume)
    np.testing.assert_array_equal(decode.upsample_argmax(logits, size, window), labels)


@pytest.mark.parametrize(
    ("window", "size"),
    [
        ((2, 3, 12, 16), (12, 16)),  # one map position from each row and column to the next
        ((2.5, 3.25, 12, 16), (12, 16)),
        ((12, 16, 12, 16), (12, 16)),
        ((0, 0, 24, 32), (12, 16)),  # two
        ((1, 3, 20, 24), (10, 12)),
        ((4, 0, 20, 32), (10, 900)),  # stretched across and shrunk down, and the other way round, in several tiles
        ((0, 2, 24, 28), (1200, 14)),
    ],
)
def test_windows_at_even_steps_follow_the_definition(either_algorithm, window, size):
    logits = noise_logits(23, 24, 32, batch=2)
    volume = defined(logits, size, window)
    labels, confidence = decode.upsample_argmax_confidence(logits, size, window)
    check_labels(labels, volume)
    check_labels(decode.upsample_argmax(logits, size, window), volume)
    check_confidence(confidence, volume)


def test_one_class_wins_everywhere(either_backend):
    logits = np.array([np.nan, np.inf, -np.inf, 1], np.float32).reshape(1, 1, 2, 2)
    assert not decode.upsample_argmax(logits, (2, 2)).any()
    labels, confidence = decode.upsample_argmax_confidence(logits, (2, 2))
    assert not labels.any()
    assert confidence.ravel().tolist() == [0, 0, 0, 255]


def test_a_window_is_a_part_of_a_larger_decode():
    logits = scene_logits(30, 10, 12)
    whole = decode.upsample_argmax(logits, (80, 96))
    part = decode.upsample_argmax(logits, (40, 48), window=(2, 3, 5, 6))
    assert np.mean(part != whole[:, 16:56, 24:72]) < 1e-3


def test_the_default_window_is_the_whole_map():
    logits = noise_logits(9, 7, 11)
    np.testing.assert_array_equal(
        decode.upsample_argmax(logits, (50, 60)), decode.upsample_argmax(logits, (50, 60), (0, 0, 7, 11))
    )


def test_ties_go_to_the_lowest_class(every_form):
    logits = np.repeat(noise_logits(4, 6, 6), 3, axis=1)  # classes 0, 1, 2 are equal, and 3, 4, 5, ...
    for size in [(60, 60), (6, 6), (4, 4)]:
        assert set(np.unique(decode.upsample_argmax(logits, size))) <= {0, 3, 6, 9}
    assert not decode.upsample_argmax(np.zeros((1, 8, 4, 4), np.float32), (30, 30)).any()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [(80, 90), (9, 9), (6, 5)])
def test_values_that_are_not_finite_decode_as_torch_does(every_form, value, size):
    logits = noise_logits(11, 9, 9)
    logits[0, 3, 4, 5] = logits[0, 7, 4, 6] = value
    logits[0, 5, 0] = value
    logits[0, :, 8, 8] = value
    volume = interpolated(logits, size)
    expected = volume.argmax(1)
    weights = np.exp(volume - volume.max(1, keepdims=True))
    share = (weights / weights.sum(1, keepdims=True)).max(1)
    np.testing.assert_array_equal(decode.upsample_argmax(logits, size), expected)
    labels, confidence = decode.upsample_argmax_confidence(logits, size)
    np.testing.assert_array_equal(labels, expected)
    assert np.abs(confidence - np.nan_to_num(255 * share).round()).max() <= 1
    assert not confidence[np.isnan(share)].any()


def test_large_logits_keep_their_confidence(either_backend):
    logits = noise_logits(20, 8, 8) + np.float32(3000)
    _, confidence = decode.upsample_argmax_confidence(logits, (100, 100))
    check_confidence(confidence, interpolated(logits, (100, 100)))


def test_many_classes_of_little_weight_are_not_lost(either_backend):
    logits = np.zeros((1, 3000, 3, 3), np.float32)
    logits[:, 1700] = 9.0  # the others weigh 2999 * exp(-9) = 0.37 together
    _, confidence = decode.upsample_argmax_confidence(logits, (12, 12))
    assert np.all(np.abs(confidence.astype(int) - round(255 / (1 + 2999 * np.exp(-9)))) <= 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_float_types_and_layouts_decode_alike(either_backend, dtype):
    logits = scene_logits(17, 9, 8).astype(dtype)
    expected = decode.upsample_argmax(logits.astype(np.float32), (70, 50))
    np.testing.assert_array_equal(decode.upsample_argmax(logits, (70, 50)), expected)
    channels_last = np.ascontiguousarray(logits.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(decode.upsample_argmax(channels_last, (70, 50)), expected)
    unaligned = np.frombuffer(b"." + logits.astype(np.float32).tobytes(), np.float32, offset=1).reshape(logits.shape)
    np.testing.assert_array_equal(decode.upsample_argmax(unaligned, (70, 50)), expected)
    read_only = logits.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(decode.upsample_argmax(read_only, (70, 50)), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_give_tensors(either_backend, dtype):
    torch = pytest.importorskip("torch")
    logits = torch.from_numpy(scene_logits(300, 9, 8)).to(getattr(torch, dtype)).requires_grad_()
    labels, confidence = decode.upsample_argmax_confidence(logits, (70, 50))
    assert isinstance(labels, torch.Tensor) and labels.dtype == torch.uint16
    assert isinstance(confidence, torch.Tensor) and confidence.dtype == torch.uint8
    assert decode.upsample_argmax(logits, torch.Size((70, 50))).equal(labels)
    volume = interpolated(logits.detach().float().numpy(), (70, 50))
    check_labels(labels.numpy(), volume)
    check_confidence(confidence.numpy(), volume)


@pytest.mark.parametrize("classes", [5, 300])
def test_the_form_for_accelerators_agrees_with_torch(monkeypatch, classes):
    torch = pytest.importorskip("torch")
    from dinov3_seg_ros.decode import torch_form

    monkeypatch.setattr(torch_form, "_BAND_VALUES", 50_000)  # several bands
    logits = noise_logits(classes, 9, 8, batch=2)
    grid = plan_grid(logits.shape, (70, 50), None)
    labels, confidence = torch_form.decode(torch.from_numpy(logits), grid, with_confidence=True)
    volume = interpolated(logits, (70, 50))
    check_labels(labels.numpy(), volume)
    check_confidence(confidence.numpy(), volume)
    assert torch_form.decode(torch.from_numpy(logits), grid, with_confidence=False)[1] is None


def test_without_triton_tensors_on_a_gpu_are_decoded_by_torch():
    pytest.importorskip("torch")
    printed = _python(
        "import sys\nsys.modules['triton'] = None\nfrom dinov3_seg_ros import decode\nprint(decode.backend('cuda'))"
    )
    assert printed == "torch\n"


@pytest.mark.parametrize(
    ("shape", "size", "window", "named"),
    [
        ((3, 4, 4), (8, 8), None, "four axes"),
        ((1, 0, 4, 4), (8, 8), None, "non-empty"),
        ((1, 3, 4, 4), (8, 0), None, "at least 1"),
        ((1, 3, 4, 4), (8, -1), None, "at least 1"),
        ((1, 3, 4, 4), (8, 8.5), None, "whole numbers"),
        ((1, 3, 4, 4), (8,), None, "whole numbers"),
        ((1, 3, 4, 4), 8, None, "size"),
        ((1, 3, 4, 4), (8, 8), (0, 0, 4), "four numbers"),
        ((1, 3, 4, 4), (8, 8), (0, 0, 0, 4), "above 0"),
        ((1, 3, 4, 4), (8, 8), (0, 0, float("nan"), 4), "finite"),
        ((1, 3, 4, 4), (8, 8), (1, 0, 4, 4), "outside"),
        ((1, 3, 4, 4), (8, 8), (0, -1, 4, 4), "outside"),
        ((1, 70000, 1, 1), (8, 8), None, "65535"),
    ],
)
def test_wrong_arguments_are_named(shape, size, window, named):
    with pytest.raises(ParameterError, match=named):
        decode.upsample_argmax(np.zeros(shape, np.float32), size, window)


@pytest.mark.parametrize("logits", [np.zeros((1, 2, 3, 3), np.int64), [[1.0]]])
def test_logits_other_than_floats_are_refused(logits):
    with pytest.raises(ParameterError, match="pass"):
        decode.upsample_argmax(logits, (8, 8))


def test_tensors_other_than_floats_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ParameterError, match="pass"):
        decode.upsample_argmax(torch.zeros((1, 2, 3, 3), dtype=torch.int32), (8, 8))


def test_threads_that_decode_at_once_do_not_disturb_each_other(numba_only, monkeypatch):
    monkeypatch.setattr(numba_form, "thread_count", lambda: 4)
    maps = [scene_logits(60, 40, 40, seed) for seed in range(4)]
    alone = [decode.upsample_argmax(logits, (200, 300)) for logits in maps]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda n: decode.upsample_argmax(maps[n % 4], (200, 300)), range(80)))
    for n, labels in enumerate(together):
        np.testing.assert_array_equal(labels, alone[n % 4])


def _decode_in_child(logits: np.ndarray) -> np.ndarray:
    return decode.upsample_argmax(logits, (200, 300))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_decodes_as_its_parent_does(numba_only, monkeypatch):
    monkeypatch.setattr(numba_form, "thread_count", lambda: 2)
    logits = scene_logits(60, 40, 40)
    expected = decode.upsample_argmax(logits, (200, 300))
    with multiprocessing.get_context("fork").Pool(1) as children:
        labels = children.apply_async(_decode_in_child, (logits,)).get(timeout=20)
    np.testing.assert_array_equal(labels, expected)


def test_parts_run_once_each_and_errors_come_through():
    seen = []
    parallel.run_parts(lambda part, parts: seen.append((part, parts)), 3)
    assert sorted(seen) == [(0, 3), (1, 3), (2, 3)]
    with pytest.raises(ZeroDivisionError):
        parallel.run_parts(lambda part, parts: 1 // (part - 1), 2)


def test_an_error_comes_when_no_part_writes_any_more():
    ended = []

    def work(part, _parts):
        if part == 0:
            raise ZeroDivisionError
        time.sleep(0.1)
        ended.append(part)

    with pytest.raises(ZeroDivisionError):
        parallel.run_parts(work, 2)
    assert ended == [1]


@pytest.fixture
def thread_limit():
    yield parallel.set_thread_limit
    parallel.set_thread_limit(0)


def test_a_thread_limit_bounds_the_parts_and_zero_lifts_it(thread_limit, cores):
    cores(6)
    many_values = plan_grid((1, 60, 20, 20), (400, 600), None)

    def parts():
        return numba_form._part_count(many_values, by_cells=False, with_confidence=True)

    thread_limit(2)
    assert (parallel.thread_count(), parts()) == (2, 2)
    thread_limit(1)
    assert (parallel.thread_count(), parts()) == (1, 1)
    thread_limit(0)
    assert (parallel.thread_count(), parts()) == (6, 6)
    thread_limit(100)
    assert parallel.thread_count() == 6


def test_a_higher_limit_holds_at_once(thread_limit, cores):
    cores(6)
    for threads in (2, 6):
        thread_limit(threads)
        together = threading.Barrier(threads)
        parallel.run_parts(lambda *_, together=together: together.wait(2), threads)


def test_labels_do_not_depend_on_the_thread_limit(numba_only, thread_limit):
    logits = scene_logits(60, 40, 40)
    thread_limit(1)
    alone = decode.upsample_argmax(logits, (400, 600))
    thread_limit(0)
    np.testing.assert_array_equal(decode.upsample_argmax(logits, (400, 600)), alone)


def _python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_decode_loads_no_numba_torch_or_triton():
    _python(
        "import sys, numpy as np\n"
        "from dinov3_seg_ros import decode\n"
        "assert not {'numba', 'torch', 'triton'} & set(sys.modules)\n"
        "decode.upsample_argmax(np.zeros((1, 2, 3, 3), np.float32), (9, 9))\n"
        "assert 'torch' not in sys.modules\n"
    )


def test_without_numba_numpy_decodes():
    printed = _python(
        "import sys, numpy as np\n"
        "sys.modules['numba'] = None\n"
        "from dinov3_seg_ros import decode\n"
        "print(decode.backend(), decode.upsample_argmax(np.eye(4, dtype=np.float32)[None, :, :, None], (8, 1)).ravel())"
    )
    assert printed.split(maxsplit=1) == ["numpy", "[0 0 1 1 2 2 3 3]\n"]


def test_merged_logits_are_the_log_of_the_sum_of_exponentials():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 30, (2, 6, 4, 5)).astype(np.float32)
    logits[0, 1, 0] = -np.inf
    logits[0, (0, 1, 4), 1] = -np.inf
    logits[0, 4, 2] = np.inf
    logits[1, 0, 0] = np.nan
    groups = [(0, 1, 4), (2,), (3, 5)]
    merged = decode.merge_classes(logits, groups)
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = np.stack([np.logaddexp.reduce(wide[:, list(group)], axis=1) for group in groups], 1)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-5)
    torch = pytest.importorskip("torch")
    np.testing.assert_allclose(decode.merge_classes(torch.from_numpy(logits), groups).numpy(), expected, 1e-5, 1e-5)
    half = decode.merge_classes(torch.from_numpy(logits).bfloat16(), groups)
    assert (half.dtype, half.shape) == (torch.float32, (2, 3, 4, 5))
