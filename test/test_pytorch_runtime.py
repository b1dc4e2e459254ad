"""Segmentations by the PyTorch runtime: on tiny bundles, on the CPU and on stand-ins for GPUs."""

from __future__ import annotations

import contextlib
import gc
import os
import weakref
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from bundles import TINY_BACKBONES, made_backbone, tiny_backbone, write_tiny_bundle
from test_segmenter import picture
from torch._dynamo.exc import TorchDynamoException

from dinov3_seg_ros import decode
from dinov3_seg_ros.decode.parallel import thread_count
from dinov3_seg_ros.model.heads import blocks
from dinov3_seg_ros.options import ComputeOptions
from dinov3_seg_ros.runtimes import gate
from dinov3_seg_ros.runtimes.pytorch import candidates, compilation, cuda_graphs, patches, staging
from dinov3_seg_ros.runtimes.pytorch import runtime as pytorch
from dinov3_seg_ros.segmenter import Segmenter, limit_threads
from dinov3_seg_ros.support.cpu import Cpu
from dinov3_seg_ros.support.errors import ImageError, ParameterError, RuntimeFailedError, RuntimeUnavailableError

CACHE = "TORCHINDUCTOR_CACHE_DIR"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def further(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "further", name="further", num_classes=300, seed=4)


def naive_pytorch(bundle, rgb):
    """Labels and confidence by naive PyTorch: float input, the whole volume of probabilities, argmax."""
    size = bundle.manifest.input.network_size
    canvas = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (bundle.manifest.input.mean, bundle.manifest.input.std))
    assert canvas.shape[-2:] == size
    with torch.inference_mode():
        logits = bundle.load_head()(bundle.load_backbone()((canvas - mean) / std))
        volume = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        confidence, labels = volume.softmax(1).max(1)
    return labels[0].numpy(), np.rint(255 * confidence[0].numpy())


def test_labels_and_confidence_equal_those_of_naive_pytorch(bundle):
    rgb = picture(64, 96)
    result = Segmenter.from_bundle(bundle.path).segment([rgb])[0]
    labels, confidence = naive_pytorch(bundle, rgb)
    assert len(np.unique(labels)) > 1
    assert (result.labels == labels).mean() > 0.9995
    assert np.abs(result.confidence.astype(int) - confidence).max() <= 1
    assert (result.labels.dtype, result.confidence.dtype) == (np.uint8, np.uint8)


def test_several_heads_share_one_backbone_pass(bundle, further):
    segmenter = Segmenter.from_bundle([bundle.path, further.path])
    calls = []
    segmenter.runtime._backbone.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    result = segmenter.segment([picture()])[0]
    assert calls == [1]
    assert list(result.heads) == ["tiny", "further"]
    for single in (bundle, further):
        expected = Segmenter.from_bundle(single.path).segment([picture()])[0].labels
        assert np.array_equal(result.heads[single.manifest.name].labels, expected)
    assert result.heads["further"].labels.dtype == np.uint16
    assert list(segmenter.segment([picture()], heads=["further"])[0].heads) == ["further"]


def test_heads_of_other_layers_share_a_pass_at_a_size_that_suits_the_coarsest(tmp_path):
    paths = [
        write_tiny_bundle(tmp_path / name, name=name, backbone=tiny_backbone([layer]), geometry="native").path
        for name, layer in (("fine", 1), ("coarse", 3))
    ]
    segmenter = Segmenter.from_bundle(paths, "torch")
    assert segmenter.canvas_size((72, 104)) == Segmenter.from_bundle(paths[1], "torch").canvas_size((72, 104))
    result = segmenter.segment([picture(64, 96)])[0]
    for path in paths:
        alone = Segmenter.from_bundle(path, "torch").segment([picture(64, 96)])[0].labels
        assert np.array_equal(result.heads[path.name].labels, alone)


def noting(classes, function):
    """The function, which notes the number of classes that it decodes."""

    def noted(logits, *rest):
        classes.add(logits.shape[1])
        return function(logits, *rest)

    return noted


@pytest.mark.parametrize(
    ("device", "geometry", "counts"),
    [("cpu", "stretch", [1]), ("cuda", "stretch", [3, 2, 1]), ("cuda", "native", [1])],
)
def test_warm_up_runs_every_batch_size_on_a_gpu_and_decodes_every_head(
    bundle, further, device, geometry, counts, monkeypatch
):
    segmenter = Segmenter.from_bundle([bundle.path, further.path], device="cpu", geometry=geometry, max_batch=3)
    assert segmenter.runtime.device == "cpu"
    segmenter.runtime.device = device
    seen, run = [], segmenter.runtime.start
    segmenter.runtime.start = lambda canvases, heads: seen.append(len(canvases)) or run(canvases, heads)
    decoded = {"upsample_argmax": set(), "upsample_argmax_confidence": set()}
    for name in decoded:
        monkeypatch.setattr(decode, name, noting(decoded[name], getattr(decode, name)))
    segmenter.warm_up()
    assert seen == counts
    assert decoded == {"upsample_argmax": {5, 300}, "upsample_argmax_confidence": {5, 300}}
    assert segmenter.times.summary_ms() == {}


def test_unusable_images_heads_sizes_and_options_are_refused(bundle):
    segmenter = Segmenter.from_bundle(bundle.path)
    with pytest.raises(ImageError, match="uint8 RGB"):
        segmenter.segment([np.zeros((4, 4, 3))])
    with pytest.raises(ParameterError, match="no head 'depth'"):
        segmenter.segment([picture()], heads=["depth"])
    with pytest.raises(ParameterError, match="mask size"):
        segmenter.segment([picture()], size="large")
    with pytest.raises(ParameterError, match="multiples of 32"):
        Segmenter.from_bundle(bundle.path, network_size=(100, 100))
    with pytest.raises(ParameterError, match="runtime is 'tensorflow'; use one of: auto, torch"):
        Segmenter.from_bundle(bundle.path, runtime="tensorflow")
    with pytest.raises(RuntimeUnavailableError, match="tensorrt"):
        Segmenter.from_bundle(bundle.path, runtime="tensorrt")


@pytest.fixture
def own_threads():
    """PyTorch's number of threads, which is restored after the test."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_threads_0_restores_pytorchs_own_number_of_threads(bundle, cores, own_threads):
    cores(own_threads + 1)
    Segmenter.from_bundle(bundle.path, "torch", threads=own_threads + 1).close()
    assert torch.get_num_threads() == own_threads + 1
    Segmenter.from_bundle(bundle.path, "torch", threads=0).close()
    assert torch.get_num_threads() == own_threads


def test_a_number_of_threads_that_the_program_sets_stays(bundle, cores, own_threads):
    """As in a worker of PyTorch's DataLoader, a fork that hangs where it computes with more than the one it has set."""
    cores(8)
    for earlier in (own_threads + 1, 0):
        Segmenter.from_bundle(bundle.path, "torch", threads=earlier).close()
        torch.set_num_threads(own_threads + 2)
        Segmenter.from_bundle(bundle.path, "torch").close()
        assert torch.get_num_threads() == own_threads + 2


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 2), (0, None)])
def test_threads_limit_network_decode_and_opencv_in_the_whole_process(bundle, threads, expected, cores, own_threads):
    cores(6)
    before = cv2.getNumThreads()
    try:
        Segmenter.from_bundle(bundle.path, "torch", threads=3).close()
        assert (torch.get_num_threads(), thread_count(), cv2.getNumThreads()) == (3, 3, 3)
        Segmenter.from_bundle(bundle.path, "torch", threads=threads).close()
        found = torch.get_num_threads(), thread_count(), cv2.getNumThreads()
        assert found == ((expected,) * 3 if expected else (own_threads, 6, before))
    finally:
        limit_threads(0)


def test_a_cpu_quota_bounds_the_threads_of_network_decode_and_opencv(bundle, cores, own_threads):
    before = cv2.getNumThreads()
    cores(6, quota=1)
    thread_count.cache_clear()
    try:
        Segmenter.from_bundle(bundle.path, "torch").close()
        assert (torch.get_num_threads(), thread_count(), cv2.getNumThreads()) == (1, 1, 1)
    finally:
        thread_count.cache_clear()
        cv2.setNumThreads(before)


def test_a_runtime_that_does_not_fit_the_options_is_closed(bundle, monkeypatch):
    closed, close = [], pytorch.PyTorchRuntime.close
    monkeypatch.setattr(pytorch.PyTorchRuntime, "close", lambda runtime: closed.append(runtime) or close(runtime))
    for runtime in ("torch", "auto"):
        with pytest.raises(ParameterError, match="multiples of 32"):
            Segmenter.from_bundle(bundle.path, runtime, network_size=(100, 100))
    assert len(closed) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU records it")
def test_a_backbone_that_cannot_be_recorded_runs_without_a_cuda_graph(caplog):
    module = torch.nn.Conv2d(3, 4, 1)
    recorded, images = cuda_graphs.Recorded(module, "backbone"), torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(recorded(images), module(images))
    assert caplog.text.count("without a CUDA graph for 1x3x8x8") == 1


class _StandInGpu:
    """Replaces torch.cuda's streams, events and graphs: notes the calls, and computes at once on the CPU."""

    def __init__(self, monkeypatch):
        gpu = self.gpu = self
        self.notes, self.current, self.devices = [], "default", set()

        class Stream:
            def __init__(self, device):
                self.device = device
                self.name = f"stream {sum(note[0] == 'made' for note in gpu.notes)}"
                gpu.notes.append(("made", self.name))

            def wait_stream(self, stream):
                gpu.notes.append(("waits", self.name, getattr(stream, "name", stream)))

            def record_event(self, event):
                event.stream = self.name
                gpu.notes.append(("records", self.name, event))

            def wait_event(self, event):
                gpu.notes.append(("waits", self.name, event))

        class Event:
            def __init__(self, blocking, enable_timing=False):
                assert blocking, "one that polls takes a core"
                self.stream = None

            def synchronize(self):
                if self.stream is not None:
                    gpu.notes.append(("host waits", self.stream))

            def elapsed_time(self, end):
                return 1000.0

        class CUDAGraph:
            def replay(self):
                gpu.notes.append(("replays", gpu.current))

        @contextlib.contextmanager
        def stream(entered):
            before, gpu.current = gpu.current, entered.name
            yield
            gpu.current = before

        @contextlib.contextmanager
        def graph(graph, stream, capture_error_mode):
            assert capture_error_mode == "thread_local"
            gpu.notes.append("recording")
            yield
            gpu.notes.append("recorded")

        here = object.__new__(Stream)
        here.name = "default"
        for name, stand_in in {
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": CUDAGraph,
            "stream": stream,
            "graph": graph,
            "current_stream": lambda device: here,
            "default_stream": lambda device: here,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, stream: gpu.notes.append(("keeps", stream.name))
        )

    def of(self, *kinds):
        return [note for note in self.notes if note[0] in kinds]


def test_on_a_gpu_only_reading_the_logits_waits(bundle, monkeypatch):
    frames = [picture(seed=0), picture(seed=1)]
    segmenter = Segmenter.from_bundle(bundle.path, "torch", device="cpu")
    expected = [segmenter.segment([frame])[0].labels for frame in frames]
    gpu, runtime = _StandInGpu(monkeypatch), segmenter.runtime
    runtime._streams = pytorch._Streams(torch.device("cpu"))
    uploading, computing = (note[1] for note in gpu.of("made"))
    assert gpu.of("waits") == [("waits", uploading, "default"), ("waits", computing, "default")], "for the weights"
    gpu.notes.clear()
    for module in (runtime._backbone, *runtime._heads.values()):
        module.register_forward_pre_hook(lambda *_: gpu.notes.append(("computes", gpu.current)))
    segmenter.times.clear()
    started = [segmenter.start([frame]) for frame in frames]
    assert gpu.of("host waits") == []
    assert gpu.of("computes") == 4 * [("computes", computing)]
    assert gpu.of("keeps") == 2 * [("keeps", computing)], "the canvases, which the uploading stream made"
    # Upload, backbone, heads of each frame: begin, end; each but the first waits for the end of the one before.
    steps = gpu.of("records", "waits")
    for first in (0, 9):
        begin, copied, end, *rest = steps[first : first + 9]
        assert begin[:2] == copied[:2] == end[:2] == ("records", uploading)
        for wait, begin, following in (rest[:3], rest[3:]):
            assert wait == ("waits", computing, end[2])
            assert begin[:2] == following[:2] == ("records", computing)
            end = following
    gpu.notes.clear()
    found = [one.finish()[0].labels for one in started]
    assert set(gpu.of("host waits")) == {("host waits", computing)}
    assert gpu.of("keeps") == 2 * [("keeps", "default")], "the logits, which are decoded there"
    assert all(map(np.array_equal, found, expected))
    times = segmenter.times.summary_ms()
    assert all(times[stage]["median"] == 1000.0 for stage in ("upload", "backbone", "heads"))


def test_frames_on_their_way_to_a_gpu_take_turns_in_two_places(monkeypatch):
    gpu, locked = _StandInGpu(monkeypatch), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked.append(tensor.shape) or tensor)
    place, stream = staging.Staging(torch.device("cpu")), torch.cuda.Stream(torch.device("cpu"))
    frames = [torch.full((1, 4, 6, 3), value, dtype=torch.uint8) for value in range(4)]
    uploaded = [place.upload(frame, stream) for frame in frames[:2]]
    assert all(map(torch.equal, uploaded, frames)) and gpu.of("host waits") == []
    for count, frame in enumerate(frames[2:], 1):
        assert torch.equal(place.upload(frame, stream), frame)
        assert gpu.of("host waits") == count * [("host waits", stream.name)], "for the frame before the last"
    assert len(locked) == 2, "memory is locked once"
    for height in range(8, 14):
        place.upload(torch.zeros((1, height, 6, 3), dtype=torch.uint8), stream)
    assert len(place._places) == 4, "of many shapes the last few are kept"
    place.upload(frames[0], stream)
    assert locked.count(frames[0].shape) == 4


@pytest.fixture
def two_gpus(monkeypatch):
    """Makes the CPU pass for two CUDA GPUs: modules and tensors stay where they are, the rest is noted."""
    gpu = _StandInGpu(monkeypatch)
    # The stand-in's graphs replay nothing, which the gate would find.
    monkeypatch.setattr(gate, "check_with_model", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: gpu.notes.append(("empties the cache",)))
    module_to, tensor_to = torch.nn.Module.to, torch.Tensor.to

    def placed(to):
        def place(self, *arguments, **options):
            for device in [a for a in (*arguments, options.pop("device", None)) if isinstance(a, torch.device)]:
                gpu.devices.add(str(device))
            rest = [a for a in arguments if not isinstance(a, torch.device)]
            options.pop("non_blocking", None)
            return to(self, *rest, **options) if rest or options else self

        return place

    monkeypatch.setattr(torch.nn.Module, "to", placed(module_to))
    monkeypatch.setattr(torch.Tensor, "to", placed(tensor_to))
    return gpu


@pytest.mark.parametrize(
    ("asked", "used"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_pytorch_computes_on_the_gpu_of_the_number_asked_for(bundle, two_gpus, asked, used):
    options = ComputeOptions(device=asked)
    assert pytorch.PyTorchRuntime.candidates([bundle], options)[0].device == used
    runtime = pytorch.PyTorchRuntime([bundle], options)
    runtime.start(np.zeros((1, 64, 96, 3), np.uint8), ["tiny"]).logits()
    assert (runtime.device, runtime.logits_device) == (used, used)
    assert f" on {used}, float32" in runtime.description
    assert two_gpus.devices == {used}
    assert {str(runtime._streams.uploading.device), str(runtime._streams.computing.device)} == {used}
    runtime.close()
    assert two_gpus.of("empties the cache")


@pytest.mark.parametrize(("device", "expected"), [("cpu", ("high", True)), ("cuda", ("highest", False))])
def test_only_a_gpu_sets_tf32_off_and_leaves_the_settings_readable(bundle, two_gpus, monkeypatch, device, expected):
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        pytorch.PyTorchRuntime([bundle], ComputeOptions(device=device)).close()
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == expected
        assert torch.backends.cuda.matmul.allow_tf32 == (expected[0] == "high")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "features", "measured_only"),
    [("auto", (), ["fp16", "bf16"]), ("cpu", (), []), ("cpu", ("amx_bf16",), ["bf16"])],
)
def test_with_auto_a_measurement_may_choose_faster_precisions(
    bundle, two_gpus, monkeypatch, device, features, measured_only
):
    processor = Cpu(name="a processor", architecture="x86_64", features=features)
    monkeypatch.setattr(candidates, "this_cpu", lambda: processor)
    first, *others = pytorch.PyTorchRuntime.candidates([bundle], ComputeOptions(device=device))
    assert (first.precision, first.is_measured_only) == ("fp32", False)
    assert [other.precision for other in others if other.is_measured_only] == measured_only
    for other in others:
        with contextlib.closing(other.open()) as opened:
            assert opened.description.endswith({"fp16": "float16", "bf16": "bfloat16"}[other.precision])
    (named,) = pytorch.PyTorchRuntime.candidates([bundle], ComputeOptions(device=device, precision="bf16"))
    assert (named.precision, named.is_measured_only) == ("bf16", False)


def test_a_gpu_number_that_does_not_exist_is_refused(bundle, two_gpus):
    with pytest.raises(RuntimeUnavailableError, match="'cuda:2' was asked for, but PyTorch finds 2 CUDA GPUs"):
        pytorch.PyTorchRuntime([bundle], ComputeOptions(device="cuda:2"))


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_cuda_graphs_are_replayed_only_with_the_option_cuda_graphs(bundle, two_gpus, cuda_graphs):
    frame = picture()
    expected = Segmenter.from_bundle(bundle.path, "torch", device="cpu").segment([frame])[0].labels
    segmenter = Segmenter.from_bundle(bundle.path, "torch", device="cuda", cuda_graphs=cuda_graphs)
    two_gpus.notes.clear()
    results = [segmenter.segment([frame])[0].labels for _ in range(2)]
    assert all(np.array_equal(result, expected) for result in results)
    backbone_and_head = 2
    assert len(two_gpus.of("replays")) == (2 * backbone_and_head if cuda_graphs else 0)


@pytest.fixture
def compiler(two_gpus, monkeypatch):
    """Stands for torch.compile, which takes half a minute for each module: computes as before and notes the calls."""

    def compile(function, *, dynamic):
        assert dynamic is False, "sizes are fixed, and a kernel for one size is faster"

        def compiled(*inputs):
            assert all(tensor.is_inference() for tensor in inputs), "for each other mode it is compiled anew"
            two_gpus.notes.append(("runs compiled", *(tuple(tensor.shape) for tensor in inputs)))
            return function(*inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.delenv(CACHE, raising=False)
    return two_gpus


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_backbone_and_heads_are_compiled_with_the_option_compile(bundle, compiler, cuda_graphs, monkeypatch):
    frame = picture()
    expected = Segmenter.from_bundle(bundle.path, "torch", device="cpu").segment([frame])[0].labels
    options = {"device": "cuda", "cuda_graphs": cuda_graphs}
    Segmenter.from_bundle(bundle.path, "torch", **options).segment([frame])
    assert compiler.of("runs compiled") == []
    segmenter = Segmenter.from_bundle(bundle.path, "torch", **options, compile=True)
    assert "float32, compiled" in segmenter.runtime.description
    assert np.array_equal(segmenter.segment([frame])[0].labels, expected)
    assert len({note[1] for note in compiler.of("runs compiled")}) == 2, "canvases, and maps"
    assert os.environ.pop(CACHE).endswith("dinov3_seg_ros/compiled"), "which outlives a restart of the machine"


def test_pytorchs_compiler_keeps_its_own_folder_where_ours_cannot_be_written(bundle, compiler, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Segmenter.from_bundle(bundle.path, "torch", device="cuda", compile=True)
    assert CACHE not in os.environ


def test_a_batch_between_one_and_the_largest_is_filled_up_so_that_no_camera_waits_for_the_compiler(bundle, compiler):
    frames = [picture(seed=seed) for seed in range(3)]
    expected = [
        one.labels for one in Segmenter.from_bundle(bundle.path, "torch", device="cpu", max_batch=4).segment(frames)
    ]
    segmenter = Segmenter.from_bundle(bundle.path, "torch", device="cuda", compile=True, max_batch=4)
    at_start = set(compiler.of("runs compiled"))
    found = [one.labels for one in segmenter.segment(frames)]
    assert np.array_equal(found, expected)
    assert set(compiler.of("runs compiled")) == at_start


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so(bundle, two_gpus, monkeypatch, caplog):
    def compile(function, *, dynamic):
        def fails(*inputs):
            raise TorchDynamoException("Failed to find C compiler")

        return fails

    frame = picture()
    expected = Segmenter.from_bundle(bundle.path, "torch", device="cpu").segment([frame])[0].labels
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setenv(CACHE, "kept as it was")
    segmenter = Segmenter.from_bundle(bundle.path, "torch", device="cuda", compile=True)
    two_gpus.notes.clear()
    for _ in range(2):
        assert np.array_equal(segmenter.segment([frame])[0].labels, expected)
    assert "compiled" not in segmenter.runtime.description
    assert caplog.text.count("runs without being compiled, slower: Failed to find C compiler") == 2
    assert "the backbone runs" in caplog.text and "the head 'tiny' runs" in caplog.text
    assert len(two_gpus.of("replays")) == 4, "still recorded"
    assert segmenter.runtime._fill_up(torch.zeros(2, 4, 4, 3)).shape[0] == 2, "no pass is larger for it"
    assert os.environ[CACHE] == "kept as it was"


def test_a_gpu_without_memory_for_what_is_compiled_is_told_as_such(bundle, two_gpus, monkeypatch, caplog):
    def compile(function, *, dynamic):
        def fails(*inputs):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return fails

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(RuntimeFailedError, match=r"torch on cuda:0, fp32 failed: CUDA out of memory; end what else"):
        Segmenter.from_bundle(bundle.path, "torch", device="cuda", compile=True)
    assert "without being compiled" not in caplog.text


def test_compile_is_refused_where_the_network_input_follows_the_frames(bundle, two_gpus):
    with pytest.raises(ParameterError, match=r"compile needs a network input of one size.* 'stretch' or 'letterbox'"):
        Segmenter.from_bundle(bundle.path, "torch", device="cuda", geometry="native", compile=True)


@pytest.mark.parametrize("kernel", [(16, 16), (4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_patch_embedding_as_a_product_equals_the_convolution(kernel, bias):
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 7, kernel, stride=kernel, bias=bias)
    images = torch.randn(2, 3, 48, 64)
    torch.testing.assert_close(patches.PatchProduct(convolution)(images), convolution(images))


@pytest.mark.parametrize("family", TINY_BACKBONES)
def test_patch_embeddings_of_every_family_that_has_one_become_products(family):
    backbone = made_backbone(family)
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = backbone(images)
        patches.embed_patches_by_products(backbone)
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    products = [module for module in backbone.modules() if isinstance(module, patches.PatchProduct)]
    assert len(products) == (0 if "resnet" in family else 1)
    assert not any(map(patches.is_patch_embedding, backbone.modules()))


def test_a_recorded_backbone_reads_no_cached_positions_of_transformers(monkeypatch):
    backbone = made_backbone("dinov3_vit", [0, 1])
    gpu, own, computed = _StandInGpu(monkeypatch), backbone.model.rope_embeddings, []
    recorded, images = cuda_graphs.Recorded(backbone, "backbone"), torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = backbone(images)
        own.register_forward_hook(lambda *_: computed.append(gpu.notes[-1]))
        found = recorded(images)
    assert len(computed) == 1 and "recording" not in computed
    assert backbone.model.rope_embeddings is own
    assert all(map(torch.equal, found, expected))
    (kept,) = recorded._recordings.values()
    assert len(kept.positions) == 1, "kept as long as the graph"
    assert gpu.of("replays")


def test_a_recording_keeps_the_matrices_that_it_reads(monkeypatch):
    class Averaged(torch.nn.Module):
        def forward(self, features):
            return blocks.adaptive_mean(features, (3, 5))

    _StandInGpu(monkeypatch)
    blocks._averaging_matrix.cache_clear()
    recorded, here = cuda_graphs.Recorded(Averaged(), "head"), torch.device("cpu")
    recorded(torch.rand(1, 2, 7, 11))
    read = [weakref.ref(blocks._averaging_matrix(*size, torch.float32, here)) for size in ((7, 3), (11, 5))]
    assert blocks._averaging_matrix.cache_info().misses == 2, "else others were read"
    for bins in range(1, 65):
        blocks._averaging_matrix(100, bins, torch.float32, here)
    gc.collect()
    assert all(matrix() is not None for matrix in read)
    del recorded
    gc.collect()
    assert all(matrix() is None for matrix in read)


def test_a_compiled_backbone_is_not_compiled_again_for_its_recording(monkeypatch, tmp_path):
    compiled_graphs = []

    def note(graph, _inputs):
        compiled_graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))
    monkeypatch.setenv(CACHE, str(tmp_path))
    with torch.inference_mode():
        images = torch.rand(1, 3, 64, 96)
        run, (expected,), _ = compilation.compile_for(made_backbone("dinov3_vit", [0, 1]), "backbone", [(images,)])
        gpu = _StandInGpu(monkeypatch)
        found = cuda_graphs.Recorded(run, "backbone")(images)
    assert len(compiled_graphs) == 1
    assert all(map(torch.equal, found, expected)) and gpu.of("replays")


@pytest.mark.gpu
def test_overlapping_frames_on_a_gpu_have_the_labels_of_single_frames(bundle):
    segmenter = Segmenter.from_bundle(bundle.path, "torch", device="cuda")
    frames = [picture(seed=seed) for seed in range(6)]
    alone = [segmenter.segment([frame])[0].labels for frame in frames]
    started = [segmenter.start([frame]) for frame in frames]
    for one, other in zip(alone, started, strict=True):
        assert np.array_equal(one, other.finish()[0].labels)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("detail", [False, True])
def test_labels_read_after_the_next_frame_are_those_of_their_own_frame(tmp_path, detail, cuda_graphs):
    bundle = write_tiny_bundle(tmp_path / "tiny", detail=detail)
    segmenter = Segmenter.from_bundle(bundle.path, "torch", device="cuda", cuda_graphs=cuda_graphs)
    frames = [picture(seed=0), picture(seed=1)]
    at_once = [segmenter.segment([frame])[0].labels for frame in frames]
    late = [segmenter.segment([frame])[0] for frame in frames]
    for one, other in zip(at_once, late, strict=True):
        assert np.array_equal(one, other.labels)


@pytest.mark.parametrize("device", DEVICES)
def test_logits_are_on_the_device_that_the_runtime_names(bundle, device):
    runtime = Segmenter.from_bundle(bundle.path, "torch", device=device).runtime
    name = bundle.manifest.name
    logits = runtime.start(np.zeros((1, 64, 96, 3), np.uint8), [name]).logits()[name]
    assert runtime.logits_device == runtime.device == ("cpu" if device == "cpu" else "cuda:0")
    assert isinstance(logits, np.ndarray) == (device == "cpu")
