"""The demo's camera (procedural rooms) and the segmentation node, to look at in RViz or with ``ros2 topic``."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from dinov3_seg_ros.support.resources import console_script, resource_path


def generate_launch_description() -> LaunchDescription:
    """The node as in seg.launch.py, and a camera beside it."""
    arguments = [
        DeclareLaunchArgument(
            "source", default_value="scenes", description="scenes, a folder of images, a video, a webcam"
        ),
        DeclareLaunchArgument("rate", default_value="10.0", description="Frames per second"),
        DeclareLaunchArgument("seconds", default_value="86400.0", description="How long the camera plays"),
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of both nodes"),
    ]
    segmentation = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(resource_path("launch/seg.launch.py"))))
    camera = Node(
        executable=console_script("demo_camera"),
        name="camera",
        namespace=LaunchConfiguration("namespace"),
        arguments=[word for name in ("source", "rate", "seconds") for word in (f"--{name}", LaunchConfiguration(name))],
        output="screen",
    )
    return LaunchDescription([*arguments, segmentation, camera])
