"""Segmentation of one camera, or of several: ``ros2 launch dinov3_seg_ros seg.launch.py --show-args``."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from dinov3_seg_ros.resources import console_script, resource_path


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node with the parameters they set."""
    arguments = [
        DeclareLaunchArgument(
            "bundle", default_value=str(resource_path("weights/demo")), description="Folder of the bundle"
        ),
        DeclareLaunchArgument("runtime", default_value="auto", description="auto, torch, onnx or tensorrt"),
        DeclareLaunchArgument("image_topic", default_value="image", description="Topic of the camera's images"),
        DeclareLaunchArgument("image_transport", default_value="raw", description="raw or compressed"),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of node and topics"),
        DeclareLaunchArgument(
            "params_file",
            default_value=str(resource_path("config/segmentation.yaml")),
            description="YAML file of parameters; the arguments above take precedence",
        ),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn or error"),
    ]
    node = LifecycleNode(
        executable=console_script("segmentation_node"),
        name="segmentation",
        namespace=LaunchConfiguration("namespace"),
        parameters=[
            LaunchConfiguration("params_file"),
            {name: LaunchConfiguration(name) for name in ("bundle", "runtime", "image_transport")},
        ],
        remappings=[
            ("image", LaunchConfiguration("image_topic")),
            ("image/compressed", [LaunchConfiguration("image_topic"), "/compressed"]),
        ],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        output="screen",
    )
    return LaunchDescription([*arguments, node])
