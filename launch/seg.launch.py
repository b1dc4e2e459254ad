"""Segmentation of one camera, or of several: ``ros2 launch dinov3_seg_ros seg.launch.py --show-args``."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from dinov3_seg_ros.resources import console_script, resource_path

# Arguments that set a parameter of the node; an empty one leaves it to the parameter file.
PARAMETERS = {
    "bundle": "Folder of the bundle (default: the parameter file's, or the demo's)",
    "runtime": "auto, torch, onnx or tensorrt",
    "image_transport": "raw or compressed",
}
OTHERS = {
    "image_topic": ("image", "Topic of the camera's images"),
    "namespace": ("", "Namespace of node and topics"),
    "params_file": ("", "YAML file of parameters (default: config/segmentation.yaml with the demo's bundle)"),
    "log_level": ("info", "debug, info, warn or error"),
}


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node with the parameters they set."""
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=description)
        for name, description in PARAMETERS.items()
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in OTHERS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_node)])


def _node(context: LaunchContext) -> list[LifecycleNode]:
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    given = {name: value(name) for name in PARAMETERS if value(name)}
    if not value("params_file"):
        given.setdefault("bundle", str(resource_path("weights/demo")))
    return [
        LifecycleNode(
            executable=console_script("segmentation_node"),
            name="segmentation",
            namespace=value("namespace"),
            parameters=[value("params_file") or str(resource_path("config/segmentation.yaml")), given],
            remappings=[("image", value("image_topic")), ("image/compressed", f"{value('image_topic')}/compressed")],
            ros_arguments=["--log-level", value("log_level")],
            output="screen",
        )
    ]
