"""Every option of how to compute and what to publish, written once.

The node's parameters, the launch arguments, the flags of the commands, the keyword arguments of `Segmenter.from_bundle`
and the tables in docs/ are made from the models here. To add an option, add a field to one of them, and read it where
it takes effect; what its values must satisfy beyond type and range goes into `option_checks`. Importing this module
imports no other library than pydantic.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from dinov3_seg_ros.support.option_checks import MAX_PIXELS, parse_value_range
from dinov3_seg_ros.support.option_model import Live, Options, as_value_error

RuntimeName = Literal["auto", "torch", "onnx", "tensorrt"]
#: Number format of weights and activations.
#: ``int8``: weights quantised ahead of time, activations as they come; for ONNX Runtime on CPUs alone.
#: ``int8_qdq``: both quantised ahead of time, by calibration, as QuantizeLinear and DequantizeLinear, for TensorRT.
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_qdq"]
#: How a frame is laid on the network input.
#: ``stretch``: resized to the network size; the aspect ratio is lost.
#: ``letterbox``: resized as a whole; the aspect ratio is kept, the rest of the network size is padded evenly.
#: ``pad``: not resized; padded evenly to the next multiple.
#: ``native``: the frame's own size, rounded to the nearest multiple.
Geometry = Literal["stretch", "letterbox", "pad", "native"]
ImageTransport = Literal["raw", "compressed"]
#: Which values of a 16-bit image are black and white.
#: ``auto``: 0 and the largest of the sensor's, whose bits are learned from the stream.
#: ``full``: 0 and 65535.
#: ``(low, high)``: these.
ValueRange = Annotated[Literal["auto", "full"] | tuple[int, int], BeforeValidator(as_value_error(parse_value_range))]
#: Weight of the previous frames in a frame's logits; 0: each frame for itself.
TemporalSmoothing = Annotated[float, Field(ge=0.0, le=0.95)]

RUNTIME_NAMES: tuple[str, ...] = typing.get_args(RuntimeName)
PRECISIONS: tuple[str, ...] = typing.get_args(Precision)
GEOMETRIES: tuple[str, ...] = typing.get_args(Geometry)
#: Geometries whose network input follows the frame instead of having the network size.
FRAME_SIZED = ("pad", "native")


class ComputeOptions(Options):
    """How the network is computed."""

    runtime: Annotated[
        RuntimeName, Field(description="Inference library; auto takes the one that is probably the fastest here.")
    ] = "auto"
    device: Annotated[
        str,
        Field(
            description="Where to compute: auto, cpu, cuda (or cuda:N for one of several), gpu or npu (or gpu:N, "
            "npu:N, as ONNX Runtime lists them)."
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", Precision],
        Field(description="Number format of the network; auto takes the fastest that has been verified."),
    ] = "auto"
    threads: Annotated[
        int,
        Field(ge=0, le=1024, description="CPU threads of network, decode and OpenCV; 0 uses one thread per core."),
    ] = 0
    providers: Annotated[
        tuple[str, ...],
        Field(
            description="Execution providers of ONNX Runtime, best first, such as OpenVINOExecutionProvider; runtime "
            "auto is then onnx. Empty: by 'device'."
        ),
    ] = ()
    network_size: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None,
        Field(description="Height and width of the network input, pixels; default: the bundle's."),
    ] = None
    geometry: Annotated[
        Geometry | None, Field(description="How a frame is laid on the network input; default: the bundle's.")
    ] = None
    max_batch: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="The most frames in one backbone pass; raise it for synchronised cameras, and on a GPU.",
        ),
    ] = 1
    cuda_graphs: Annotated[
        bool, Field(description="On a GPU, the PyTorch runtime records backbone and heads as CUDA graphs.")
    ] = True
    compile: Annotated[
        bool,
        Field(
            description="On a GPU, the PyTorch runtime compiles backbone and heads (torch.compile). The first start "
            "takes about a minute longer, and needs a C compiler. Passes of more than one frame compute max_batch."
        ),
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _providers_are_of_onnx_runtime(cls, values: dict[str, Any]) -> dict[str, Any]:
        runtime = values.get("runtime", "auto")
        if not values.get("providers") or runtime not in RUNTIME_NAMES:
            return values
        if runtime not in ("auto", "onnx"):
            raise ValueError(
                f"providers are ONNX Runtime's, but runtime is '{runtime}'; use runtime onnx, or leave providers out"
            )
        return {**values, "runtime": "onnx"}


class PublishOptions(Options):
    """What is published of a segmentation, by the node and into recordings."""

    mask_size: Annotated[
        str,
        Field(
            description="Size of mask and confidence: source (the frame's), network (the frame at the network's "
            "resolution) or WIDTHxHEIGHT in pixels."
        ),
    ] = "source"
    class_list: Annotated[
        str,
        Field(description="YAML file of the classes to publish (see config/classes); default: all of the bundle's."),
    ] = ""
    confidence_threshold: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="Pixels less probable than this become unlabelled, with confidence 0."),
        Live(),
    ] = 0.0
    temporal_smoothing: Annotated[
        TemporalSmoothing,
        Field(
            description="Weight of a camera's previous frames, carried along by optical flow, in its logits, so that "
            "labels flicker less; 0: each frame for itself. 0.7 halved the flicker of the demo.",
        ),
        Live(),
    ] = 0.0
    overlay_alpha: Annotated[
        float, Field(ge=0.0, le=1.0, description="Weight of the class colours in the overlay."), Live()
    ] = 0.5
    overlay_names: Annotated[bool, Field(description="Write the class names into the overlay."), Live()] = False
    max_pixels: Annotated[
        int,
        Field(ge=1, le=1 << 30, description="Larger frames are refused before they are decoded."),
        Live(),
    ] = MAX_PIXELS
    value_range: Annotated[
        ValueRange,
        Field(
            description="Which values of 16-bit images are black and white: auto (as the bundle's recipe says; else 0 "
            "and the largest of the sensor's, learned from the stream), full (0 and 65535) or two numbers. 16UC1 is "
            "taken for depth, and refused, unless this or the bundle's recipe sets a range."
        ),
        Live(),
    ] = "auto"


class SourceOptions(Options):
    """Which bundles and cameras the node serves."""

    bundle: Annotated[
        str,
        Field(
            description="Folder of the trained bundle, the name of a shipped one (demo, corridor), or "
            "owner/name[@revision] on Hugging Face (the extra hub)."
        ),
    ] = ""
    bundles: Annotated[
        tuple[str, ...],
        Field(description="Several bundles that share a backbone, named as for 'bundle', in its place."),
    ] = ()
    cameras: Annotated[
        tuple[str, ...],
        Field(
            description="Prefixes of the cameras' topics: 'front' reads front/image and publishes "
            "front/segmentation/mask. Empty: one camera without a prefix."
        ),
    ] = ()
    image_transport: Annotated[
        ImageTransport, Field(description="Which topic to read: image (raw) or image/compressed (compressed).")
    ] = "raw"


class NodeOptions(PublishOptions, ComputeOptions, SourceOptions):
    """All that the node is told when it starts."""

    jpeg_quality: Annotated[int, Field(ge=1, le=100, description="Quality of the compressed overlay."), Live()] = 80
    max_rate: Annotated[
        float,
        Field(ge=0.0, le=1000.0, description="The most frames of each camera to segment per second; 0: no limit."),
        Live(),
    ] = 0.0
    bond_heartbeat_period: Annotated[
        float,
        Field(
            ge=-1.0,
            le=60.0,
            description="Seconds between the heartbeats on 'bond' while the node is active, for Nav2's lifecycle "
            "manager; 0: none; -1: 0.25 if the node was activated through its service, else none.",
        ),
    ] = -1.0
    exit_after_hang: Annotated[
        float,
        Field(
            ge=0.0,
            le=86400.0,
            description="Seconds that a frame may hang until the process ends, with exit code 1, for whoever starts it "
            "again, such as a launch file with respawn; 0: it stays.",
        ),
        Live(),
    ] = 0.0
    autostart: Annotated[bool, Field(description="Configure and activate when the process starts.")] = True
