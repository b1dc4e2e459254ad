"""The node's parameters: one table, from which they are declared, described, checked and refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from dinov3_seg_ros.artefacts import PRECISIONS
from dinov3_seg_ros.errors import ParameterError
from dinov3_seg_ros.messages import MAX_PIXELS
from dinov3_seg_ros.pipeline import parse_mask_size
from dinov3_seg_ros.ports import TRANSPORTS
from dinov3_seg_ros.preprocessing import GEOMETRIES
from dinov3_seg_ros.runtimes import DEVICES, RUNTIME_NAMES


def _one_of(name: str, *choices: str) -> Callable[[str], None]:
    def check(value: str) -> None:
        if value not in choices:
            named = ", ".join(choice or "'' (the bundle's)" for choice in choices)
            raise ParameterError(f"{name} is '{value}'; use one of: {named}")

    return check


def _two_sides(value: Sequence[int]) -> None:
    if len(value) != 2 or min(value) < 0:
        raise ParameterError(f"network_size is {list(value)}; give [height, width] in pixels, or [0, 0]")


def _providers(value: Sequence[str]) -> None:
    names = [name for name in value if name]
    for name in names:
        if not name.isidentifier() or not name.endswith("ExecutionProvider") or names.count(name) > 1:
            raise ParameterError(
                f"providers holds '{name}'; name each of ONNX Runtime's execution providers once and in full, such as "
                "[CUDAExecutionProvider, CPUExecutionProvider]"
            )


class _Entry(NamedTuple):
    """One parameter.

    Attributes:
        default: decides the type as well.
        description: for ``ros2 param describe``.
        live: whether a change takes effect at the next frame; the others are read when the node is configured.
        range: the least and the greatest value.
        check: raises ParameterError for a value that cannot be used.
    """

    default: Any
    description: str
    live: bool = False
    range: tuple[float, float] | None = None
    check: Callable[[Any], object] | None = None


_TABLE: dict[str, _Entry] = {
    "bundle": _Entry("", "Folder of the trained bundle."),
    "bundles": _Entry([""], "Folders of several bundles that share a backbone; in place of 'bundle'."),
    "runtime": _Entry(
        "auto", "What computes the network: auto, torch, onnx or tensorrt.", check=_one_of("runtime", *RUNTIME_NAMES)
    ),
    "device": _Entry("auto", "auto, cpu or cuda.", check=_one_of("device", *DEVICES)),
    "precision": _Entry(
        "auto",
        "Number format of the network: auto (the fastest that has been verified), fp32, fp16, bf16, int8 or int8_qdq.",
        check=_one_of("precision", "auto", *PRECISIONS),
    ),
    "threads": _Entry(0, "CPU threads of the network; 0: one for each core.", range=(0, 1024)),
    "providers": _Entry(
        [""],
        "ONNX Runtime's execution providers, best first, such as CUDAExecutionProvider; empty: by 'device'.",
        check=_providers,
    ),
    "cameras": _Entry(
        [""],
        "Prefixes of the cameras' topics: 'front' reads front/image and publishes front/segmentation/mask. Empty for "
        "one camera without prefix.",
    ),
    "image_transport": _Entry(
        "raw", "raw (image) or compressed (image/compressed).", check=_one_of("image_transport", *TRANSPORTS)
    ),
    "max_pixels": _Entry(
        MAX_PIXELS,
        "The most pixels of a frame; what claims more is refused before it is decoded.",
        live=True,
        range=(1, 1 << 30),
    ),
    "mask_size": _Entry(
        "source",
        "Size of mask and confidence: source (the frame's), network (the frame at the network's resolution) or "
        "WIDTHxHEIGHT in pixels.",
        check=parse_mask_size,
    ),
    "network_size": _Entry(
        [0, 0], "[height, width] of the network's input, pixels; [0, 0]: the bundle's.", check=_two_sides
    ),
    "geometry": _Entry(
        "", "stretch, letterbox, pad or native; empty: the bundle's.", check=_one_of("geometry", "", *GEOMETRIES)
    ),
    "max_batch": _Entry(
        1,
        "The most frames of several cameras in one backbone pass; worth raising where cameras are synchronised, and on "
        "a GPU.",
        range=(1, 64),
    ),
    "class_list": _Entry(
        "", "YAML file of the classes to publish (config/classes shows one); empty: all of the bundle's."
    ),
    "confidence_threshold": _Entry(
        0.0, "Pixels less probable than this become unlabelled, with confidence 0.", live=True, range=(0.0, 1.0)
    ),
    "overlay_alpha": _Entry(0.5, "Weight of the colours in the overlay.", live=True, range=(0.0, 1.0)),
    "overlay_names": _Entry(False, "Write the class names into the overlay.", live=True),
    "jpeg_quality": _Entry(80, "Quality of the compressed overlay.", live=True, range=(1, 100)),
}
_AUTOSTART = "Configure and activate when the process starts."
_CLASS_NAMES = "Names of the published classes of the first head, by id. Read-only."


class NodeParameters:
    """Declares the parameters, and refuses changes that cannot be used or would have no effect.

    Attributes:
        in_use: set by the node while it is configured: parameters that are not live are then refused.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.in_use = False
        self._publishing_class_names = False
        for name, entry in _TABLE.items():
            node.declare_parameter(name, entry.default, _descriptor(entry))
        node.declare_parameter("autostart", True, ParameterDescriptor(description=_AUTOSTART, read_only=True))
        # Not declared as read-only: then the node itself could not set it when another bundle is configured.
        node.declare_parameter("class_names", [""], ParameterDescriptor(description=_CLASS_NAMES))
        node.add_on_set_parameters_callback(self._examine)

    def __getitem__(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    def check(self) -> None:
        """Raise ParameterError for the first value that cannot be used."""
        for name, entry in _TABLE.items():
            if entry.check:
                entry.check(self[name])

    def publish_class_names(self, names: Sequence[str]) -> None:
        """Set the read-only parameter ``class_names``."""
        self._publishing_class_names = True
        try:
            self._node.set_parameters([Parameter("class_names", Parameter.Type.STRING_ARRAY, list(names))])
        finally:
            self._publishing_class_names = False

    def _examine(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        try:
            for parameter in parameters:
                self._examine_one(parameter)
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _examine_one(self, parameter: Parameter) -> None:
        if parameter.name == "class_names" and not self._publishing_class_names:
            raise ParameterError("class_names is read-only: it comes from the bundle and the class list")
        entry = _TABLE.get(parameter.name)
        if entry is None:
            return
        if self.in_use and not entry.live:
            raise ParameterError(
                f"{parameter.name} is read when the node is configured; deactivate and clean it up first: "
                f"ros2 lifecycle set {self._node.get_fully_qualified_name()} deactivate, then cleanup"
            )
        if entry.check:
            entry.check(parameter.value)


def _descriptor(entry: _Entry) -> ParameterDescriptor:
    when = "May be changed at any time." if entry.live else "Read when the node is configured."
    descriptor = ParameterDescriptor(description=f"{entry.description} {when}")
    if entry.range and isinstance(entry.default, int):
        descriptor.integer_range = [IntegerRange(from_value=entry.range[0], to_value=entry.range[1], step=1)]
    elif entry.range:
        descriptor.floating_point_range = [FloatingPointRange(from_value=entry.range[0], to_value=entry.range[1])]
    return descriptor
