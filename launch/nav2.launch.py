"""The segmentation node under a lifecycle manager of Nav2. A process that ends is started and brought up again.

It ends after the manager's SHUTDOWN, and after a frame has hung for 30 s (exit_after_hang, which a parameter file or an
argument may set).

ros2 launch dinov3_seg_ros nav2.launch.py bundle:=/path/to/bundle image_topic:=/camera/image_raw
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from dinov3_seg_ros.support.resources import resource_path


def generate_launch_description() -> LaunchDescription:
    """The node as in seg.launch.py, all of whose arguments are taken, and its manager in the same namespace."""
    arguments = [
        DeclareLaunchArgument("namespace", default_value="", description="Namespace of both nodes, and of the topics."),
        DeclareLaunchArgument("params_file", default_value="", description="YAML file of the node's parameters."),
        DeclareLaunchArgument(
            "exit_after_hang",
            default_value="",
            description="Seconds after which a node that hangs ends; 0: never. Default: as params_file says, else 30.",
        ),
    ]
    segmentation = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(resource_path("launch/seg.launch.py"))),
        launch_arguments={"autostart": "false", "respawn": "true"}.items(),
    )
    manager = Node(
        package="nav2_lifecycle_manager",
        executable="lifecycle_manager",
        name="lifecycle_manager_perception",
        namespace=LaunchConfiguration("namespace"),  # where it looks for the services and the bond of its nodes
        parameters=[str(resource_path("config/nav2_lifecycle_manager.yaml"))],
        output="screen",
    )
    # The group keeps what is set for the node from a launch file that includes this one.
    node = GroupAction([OpaqueFunction(function=_end_a_hung_node), segmentation])
    return LaunchDescription([*arguments, node, manager])


def _end_a_hung_node(context: LaunchContext) -> None:
    """Set exit_after_hang where neither the user nor the user's file may have set it."""
    if not any(LaunchConfiguration(name).perform(context) for name in ("exit_after_hang", "params_file")):
        context.launch_configurations["exit_after_hang"] = "30.0"
