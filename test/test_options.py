"""The options: what is refused, in which words, and how they are described."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dinov3_seg_ros.options import ComputeOptions, NodeOptions, PublishOptions, SourceOptions
from dinov3_seg_ros.support.errors import ParameterError
from dinov3_seg_ros.support.option_checks import CHECKS, MAX_PIXELS, parse_mask_size
from dinov3_seg_ros.support.option_model import describe_options, select
from dinov3_seg_ros.support.option_values import parse_option


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runtime": "nothing"}, "runtime is 'nothing'; use one of: auto, torch, onnx, tensorrt"),
        (
            {"device": "cuda:x"},
            "device is 'cuda:x'; use auto, cpu, cuda, gpu, npu, or cuda:N for the GPU with number N",
        ),
        ({"precision": "fp8"}, "precision is 'fp8'; use one of: auto, fp32, fp16, bf16, int8, int8_qdq"),
        ({"cameras": "front"}, "cameras is 'front'; use a list of texts, such as [front, left]"),
        ({"threads": -1}, "threads is -1; use a whole number from 0 to 1024"),
        ({"max_batch": 1025}, "max_batch is 1025; use a whole number from 1 to 1024"),
        (
            {"network_size": (0, 64)},
            "network_size is (0, 64); use two positive whole numbers, height and width in pixels",
        ),
        ({"network_size": (64,)}, "network_size is (64,); use two positive whole numbers, height and width in pixels"),
        ({"geometry": "sideways"}, "geometry is 'sideways'; use one of: stretch, letterbox, pad, native"),
        ({"providers": ("CPU",)}, "providers holds 'CPU'; give each of ONNX Runtime's execution providers once"),
        ({"providers": ("CPUExecutionProvider",) * 2}, "providers holds 'CPUExecutionProvider'; give each"),
        (
            {"providers": ("CPUExecutionProvider",), "runtime": "torch"},
            "providers are ONNX Runtime's, but runtime is 'torch'; use runtime onnx, or leave providers out",
        ),
        ({"mask_size": "0x5"}, "mask_size is '0x5'; use source, network or WIDTHxHEIGHT"),
        ({"confidence_threshold": 1.5}, "confidence_threshold is 1.5; use a number from 0 to 1"),
        ({"jpeg_quality": 0}, "jpeg_quality is 0; use a whole number from 1 to 100"),
        ({"image_transport": "theora"}, "image_transport is 'theora'; use one of: raw, compressed"),
        ({"autostart": "perhaps"}, "autostart is 'perhaps'; use true or false"),
        ({"value_range": [0.0, float("inf")]}, "value_range is [0.0, inf]; use auto, full, or two whole numbers"),
        ({"value_range": [False, True]}, "value_range is [False, True]; use auto, full, or two whole numbers"),
        ({"value_range": (0.5, 0.9)}, "value_range is [0.5, 0.9]; use auto, full, or two whole numbers"),
        ({"thread": 2}, "unknown option 'thread' (did you mean 'threads'?); the options are: "),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_the_remedy(values, message):
    with pytest.raises(ParameterError) as error:
        NodeOptions(**values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_a_gpu_may_be_chosen_by_its_number(device):
    assert ComputeOptions(device=device).device == device


@pytest.mark.parametrize("runtime", ["auto", "onnx"])
def test_providers_choose_onnx_runtime(runtime):
    assert ComputeOptions(providers=("CPUExecutionProvider",), runtime=runtime).runtime == "onnx"


def test_every_option_has_a_kind_a_description_and_its_own_name():
    described = describe_options(NodeOptions)
    assert list(described) == list(NodeOptions.model_fields)
    for name, option in described.items():
        assert option.name == name
        assert option.description.endswith("."), name
        assert option.default == getattr(NodeOptions(), name)
    kinds = {option.kind for option in described.values()}
    assert kinds == {"text", "texts", "size", "range", "int", "float", "bool"}
    assert described["threads"].range == (0, 1024)
    assert described["geometry"].choices == ("stretch", "letterbox", "pad", "native")


def test_only_what_changes_no_model_may_change_while_running():
    live = {name for name, option in describe_options(NodeOptions).items() if option.live}
    assert live == {
        "confidence_threshold", "overlay_alpha", "overlay_names", "jpeg_quality", "max_pixels",
        "value_range", "temporal_smoothing", "max_rate", "exit_after_hang",
    }  # fmt: skip
    of_the_node_alone = {"jpeg_quality", "max_rate", "exit_after_hang"}
    assert of_the_node_alone.isdisjoint(PublishOptions.model_fields)
    assert live - of_the_node_alone < set(PublishOptions.model_fields)


def test_the_models_share_no_option():
    models = (ComputeOptions, PublishOptions, SourceOptions)
    names = [name for model in models for name in model.model_fields]
    assert len(names) == len(set(names))


def test_a_model_selects_its_own_options():
    values = {"threads": 2, "mask_size": "network", "bundle": "here"}
    assert select(ComputeOptions, values) == ComputeOptions(threads=2)
    assert select(PublishOptions, values) == PublishOptions(mask_size="network")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("threads", "3", 3),
        ("overlay_alpha", "0.25", 0.25),
        ("overlay_names", "True", True),
        ("autostart", "false", False),
        ("network_size", "[64, 96]", (64, 96)),
        ("network_size", "64,96", (64, 96)),
        ("network_size", "0,0", None),
        ("cameras", "front, left", ("front", "left")),
        ("cameras", "[]", ()),
        ("runtime", "onnx", "onnx"),
    ],
)
def test_a_value_written_as_text_is_read_by_its_kind(name, text, value):
    assert parse_option(describe_options(NodeOptions)[name], text) == value


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("threads", "many", "use a whole number from 0 to 1024"),
        ("threads", "-1", "use a whole number from 0 to 1024"),
        ("overlay_alpha", "much", "use a number from 0 to 1"),
        ("overlay_alpha", "nan", "use a number from 0 to 1"),
        ("overlay_names", "yes", "use true or false"),
        ("network_size", "64xa", "use height,width in pixels"),
        ("network_size", "64", "use height,width in pixels"),
        ("network_size", "0", "use height,width in pixels"),
        ("network_size", "0,0,0", "use height,width in pixels"),
        ("network_size", "0,64", "use height,width in pixels"),
        ("runtime", "tflite", "use one of: auto, torch, onnx, tensorrt"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(name, text, wanted):
    with pytest.raises(ParameterError, match=f"^{name} is '{text}'; {wanted}"):
        parse_option(describe_options(NodeOptions)[name], text)


@pytest.mark.parametrize(
    ("text", "size"), [("source", "source"), ("network", "network"), ("640x480", (480, 640)), ("1x1", (1, 1))]
)
def test_a_mask_size_in_words_is_height_and_width(text, size):
    assert parse_mask_size(text) == size


@pytest.mark.parametrize("text", ["", "640", "640x", "0x480", "-1x5", "640x480x3", f"{MAX_PIXELS}x2", "٣x٣"])
def test_a_mask_size_that_is_none_is_refused(text):
    with pytest.raises(ParameterError, match="use source, network or WIDTHxHEIGHT"):
        parse_mask_size(text)


def test_every_check_is_of_an_option():
    assert set(CHECKS) <= NodeOptions.model_fields.keys()


def test_the_options_load_no_other_library_than_pydantic():
    code = (
        "import sys, dinov3_seg_ros.options\n"
        "print([name for name in ('numpy', 'cv2', 'torch', 'onnxruntime', 'rclpy', 'yaml') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"
