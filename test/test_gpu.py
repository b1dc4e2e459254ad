"""What only a GPU can show: each runtime computes there what the model computes on the CPU."""

from __future__ import annotations

import contextlib
import importlib.util

import numpy as np
import onnxruntime
import pytest
import torch
from bundles import TINY_BACKBONES, made_backbone, write_tiny_bundle
from test_segmenter import picture
from trainings import tiny_recipe, train

from dinov3_seg_ros.benchmark.processor import torch_gemm_gflops
from dinov3_seg_ros.export.exporter import ExportOptions, export
from dinov3_seg_ros.model.heads import HEADS, build_head
from dinov3_seg_ros.runtimes.agreement import THRESHOLDS, Difference
from dinov3_seg_ros.runtimes.onnx import plugins
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import ExportError

pytestmark = pytest.mark.gpu

DEVICE, SIZE = "cuda", (64, 96)
FRAMES = [picture(*SIZE, seed=seed) for seed in range(4)]


@pytest.fixture(scope="module", params=TINY_BACKBONES)
def bundle(request, tmp_path_factory):
    """A bundle of each backbone family, without exports, so that nothing is compared before the tests do."""
    folder = tmp_path_factory.mktemp(request.param) / "tiny"
    backbone = made_backbone(request.param)
    return write_tiny_bundle(folder, backbone=backbone, network_size=SIZE, geometry="stretch", detail=True)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request, tmp_path_factory):
    """A ViT with an image-guided head and its export, whose reference every runtime is compared with; its precision."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    backbone = made_backbone("dinov3_vit")
    bundle = write_tiny_bundle(folder, backbone=backbone, network_size=SIZE, geometry="stretch", detail=True)
    export([bundle.path], ExportOptions(precision=request.param))
    return bundle, request.param


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


def segmented(bundle, **options):
    """Logits and labels of the frames: (4, C, h, w) and (4, H, W)."""
    with contextlib.closing(Segmenter.from_bundle(bundle.path, **options)) as segmenter:
        found = segmenter.segment(FRAMES)
        logits = [head.logits for result in found for head in result.heads.values()]
        together = np.concatenate([one if isinstance(one, np.ndarray) else one.cpu().numpy() for one in logits])
        return together, np.stack([result.labels for result in found])


def check(found, expected, precision):
    (logits, labels), (expected_logits, expected_labels) = found, expected
    difference = Difference()
    difference.update(expected_logits, logits)
    assert difference.cosine >= THRESHOLDS[precision].cosine
    assert np.mean(labels == expected_labels) >= THRESHOLDS[precision].labels
    assert len(np.unique(expected_labels)) > 1


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_pytorch_computes_on_a_gpu_what_it_does_on_the_cpu(bundle, batch, precision, cuda_graphs):
    expected = segmented(bundle, runtime="torch", device="cpu")
    options = {"precision": precision, "max_batch": batch, "cuda_graphs": cuda_graphs}
    check(segmented(bundle, runtime="torch", device=DEVICE, **options), expected, precision)


@pytest.mark.parametrize("family", ["dinov3_vit", "dinov3_convnext"])
def test_what_is_compiled_computes_on_a_gpu_what_the_model_does_on_the_cpu(tmp_path, family):
    backbone = made_backbone(family)
    bundle = write_tiny_bundle(tmp_path / "tiny", backbone=backbone, network_size=SIZE, geometry="stretch", detail=True)
    expected = segmented(bundle, runtime="torch", device="cpu")
    options = {"precision": "bf16", "max_batch": len(FRAMES), "compile": True}
    check(segmented(bundle, runtime="torch", device=DEVICE, **options), expected, "bf16")


@pytest.mark.parametrize("name", HEADS)
def test_every_head_computes_on_a_gpu_what_it_does_on_the_cpu(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    backbone = made_backbone("dinov3_convnext", [1, 2, 3])
    torch.manual_seed(0)
    head = build_head(name, backbone.channels, backbone.strides, 5).eval()
    images = torch.rand(2, 3, *SIZE)
    with torch.inference_mode():
        expected = head(backbone(images), images)
        found = head.to(DEVICE)(backbone.to(DEVICE)(images.to(DEVICE)), images.to(DEVICE))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def on_another_runtime(exported, batch=1, **options):
    """Compute an export on a GPU, which includes the comparison with its reference, and compare further frames."""
    bundle, precision = exported
    expected = segmented(bundle, runtime="onnx", device="cpu", precision=precision)
    check(segmented(bundle, precision=precision, max_batch=batch, **options), expected, precision)


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is not installed"
)
@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_computes_on_cuda_what_it_does_on_the_cpu(exported, batch):
    on_another_runtime(exported, batch, runtime="onnx", device=DEVICE, providers=["CUDAExecutionProvider"])


@needs("onnxruntime_ep_nv_tensorrt_rtx")
def test_tensorrt_for_rtx_computes_what_the_cpu_does(exported, monkeypatch):
    monkeypatch.delenv(plugins.SWITCH, raising=False)
    on_another_runtime(exported, runtime="onnx", providers=["NvTensorRTRTXExecutionProvider"])


@needs("tensorrt")
@needs("cuda")
@pytest.mark.parametrize("batch", [1, 3])
def test_tensorrt_computes_what_the_cpu_does(exported, batch):
    on_another_runtime(exported, batch, runtime="tensorrt")


def test_a_fault_in_the_model_on_a_gpu_is_refused(exported, monkeypatch):
    bundle, _ = exported
    product = torch.nn.functional.scaled_dot_product_attention

    def unscaled(*arguments, **options):
        return product(*arguments, **{**options, "scale": 1.0})

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", unscaled)
    with pytest.raises(ExportError, match="feature map"):
        Segmenter.from_bundle(bundle.path, "torch", device=DEVICE)


def test_the_rate_of_matrices_on_a_gpu_grows_with_fewer_bits():
    rates = [torch_gemm_gflops("cuda", kind, side=4096) for kind in ("float32", "bfloat16")]
    assert 0 < rates[0] < rates[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_on_a_gpu_gives_a_bundle_that_runs_on_the_cpu(tmp_path, precision):
    train(tiny_recipe(tmp_path, precision=precision))
    (path,) = tmp_path.glob("run/best")
    with contextlib.closing(Segmenter.from_bundle(path, "torch", device="cpu")) as segmenter:
        assert segmenter.segment([FRAMES[0]])[0].labels.shape == SIZE
