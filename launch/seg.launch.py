"""Segmentation of one camera, or of several: ``ros2 launch dinov3_seg_ros seg.launch.py --show-args``.

ros2 launch dinov3_seg_ros seg.launch.py image_topic:=/camera/image_raw
ros2 launch dinov3_seg_ros seg.launch.py cameras:=front,left image_topic:=image_raw namespace:=robot

This file runs under the Python of `ros2`, the system's, which has none of the libraries in the node's environment. So
it reads the parameters from a file, and what is imported here may import the standard library alone.
"""

import os
import re

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode

from dinov3_seg_ros.support.errors import ParameterError, nearest
from dinov3_seg_ros.support.option_checks import check_options
from dinov3_seg_ros.support.option_values import Option, parse_option, read_options, to_parameter
from dinov3_seg_ros.support.resources import console_script, resource_path

# Every parameter of the node is an argument too; an empty one leaves it to the parameter file.
PARAMETERS = read_options(resource_path("launch/parameters.json"))
OTHERS = {
    "image_topic": ("image", "Topic of the camera's images; with `cameras`, below each prefix, and thus relative."),
    "camera_info_topic": ("", "Topic of the camera's calibration; default: camera_info beside the images."),
    "namespace": ("", "Namespace of node and topics."),
    "params_file": ("", "YAML file of parameters, which names the bundle; default: none, and the demo's bundle."),
    "log_level": ("info", "debug, info, warn, error or fatal; of one logger alone: NAME:=LEVEL."),
    "respawn": ("false", "true: start the process again when it ends, as a lifecycle manager expects."),
    "use_sim_time": ("", "true: take the time from /clock, as of a simulator or of 'ros2 bag play --clock'."),
}
RESPAWN, USE_SIM_TIME = (Option(name, "bool", False, "") for name in ("respawn", "use_sim_time"))
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node with the parameters they set."""
    arguments = [
        DeclareLaunchArgument(option.name, default_value="", description=_described(option))
        for option in PARAMETERS.values()
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in OTHERS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_node)])


def _node(context: LaunchContext) -> list[LifecycleNode]:
    def value(name: str) -> str:
        # A launch file that includes this one may leave any argument empty.
        return LaunchConfiguration(name).perform(context) or OTHERS.get(name, ("",))[0]

    _warn_of_misspelt(
        {*context.launch_configurations} - {*PARAMETERS, *OTHERS},
        unused=[name for name in (*PARAMETERS, *OTHERS) if value(name) == OTHERS.get(name, ("",))[0]],
    )
    # A value that cannot be used is refused here, before any process is started; the node refuses pairs of them.
    given = {name: parse_option(option, value(name)) for name, option in PARAMETERS.items() if value(name)}
    check_options(given)
    cameras = given.get("cameras", ())
    image = value("image_topic")
    info = value("camera_info_topic") or "/".join((*image.split("/")[:-1], "camera_info"))
    for name, source in (("image_topic", image), ("camera_info_topic", info)):
        if cameras and source.startswith(("/", "~")):
            raise ParameterError(
                f"{name} is '{source}', but with cameras it is looked for below each prefix; give a relative name, "
                f"such as {name}:={source.rpartition('/')[2]} for {cameras[0]}/{source.rpartition('/')[2]}. Cameras "
                "whose topics do not end alike are remapped one by one: docs/node.md has the command"
            )
        if not re.fullmatch(r"(~?/)?[A-Za-z_{][\w{}]*(/[A-Za-z_{][\w{}]*)*", source, re.ASCII):
            raise ParameterError(
                f"{name} is '{source}', which is no name of a topic: those are letters, digits and underscores, with "
                "single slashes between them, such as camera/image_raw"
            )
    log_level = value("log_level")
    if log_level.rpartition(":=")[2].lower() not in LOG_LEVELS:
        raise ParameterError(f"log_level is '{log_level}'; use one of: {', '.join(LOG_LEVELS)}")
    sources = {"image": image, "camera_info": info}
    use_sim_time = value("use_sim_time")
    clock = {"use_sim_time": parse_option(USE_SIM_TIME, use_sim_time)} if use_sim_time else {}
    file = os.path.expanduser(value("params_file"))
    if file and not os.path.isfile(file):
        raise ParameterError(f"params_file is '{file}', and there is no such file; give the path of a YAML file")
    # Before what an outer launch file sets for all its nodes, which may thus name another: the last value counts.
    is_named = file or given.get("bundle") or given.get("bundles")
    demo = [] if is_named else ["-p", f"bundle:={resource_path('weights/demo')}"]
    return [
        LifecycleNode(
            executable=console_script("segmentation_node"),
            name="segmentation",
            namespace=value("namespace"),
            parameters=[
                *([file] if file else []),
                {name: to_parameter(PARAMETERS[name], found) for name, found in given.items()} | clock,
            ],
            remappings=[
                (_below(camera, name), _below(camera, source))
                for camera in cameras or [""]
                for name, source in sources.items()
            ],
            ros_arguments=["--log-level", log_level, *demo],
            respawn=parse_option(RESPAWN, value("respawn")),
            respawn_delay=2.0,
            output="screen",
        )
    ]


def _warn_of_misspelt(unknown: set[str], unused: list[str]) -> None:
    """Warn of unknown names that are much like an unused argument; other names belong to other launch files.

    One with a word before the argument's is another name, such as use_namespace, or ros_namespace of PushRosNamespace.
    """
    for name in sorted(unknown):
        if hint := nearest(name, [near for near in unused if not name.endswith(f"_{near}")], 0.8):
            get_logger("seg.launch.py").warning(f"launch argument '{name}' is unknown and ignored{hint}")


def _described(option: Option) -> str:
    """The option's description. ros2 launch shows '' as every default: an argument not given is left to the file."""
    default = to_parameter(option, option.default)
    return f"{option.explain()} Node's default: {default}." if default not in ("", [""], [0, 0]) else option.explain()


def _below(camera: str, topic: str) -> str:
    return f"{camera}/{topic}" if camera else topic
