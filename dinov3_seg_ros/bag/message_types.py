"""The message types that are written, and the hashes of those that a recording defines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dinov3_seg_ros.support.errors import DatasetError, one_line

if TYPE_CHECKING:
    from rosbags.interfaces import Connection
    from rosbags.typesys.store import Typestore

LABEL_INFO, VISION_CLASS = "vision_msgs/msg/LabelInfo", "vision_msgs/msg/VisionClass"
_DEFINITIONS = {
    VISION_CLASS: "uint16 class_id\nstring class_name\n",
    LABEL_INFO: "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n",
}


def known_types() -> Typestore:
    """The types of messages that are read and written; images and headers are the same in all distributions."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    types = get_typestore(Stores.ROS2_JAZZY)
    for name, definition in _DEFINITIONS.items():
        types.register(get_types_from_msg(definition, name))
    return types


def type_hash(connection: Connection) -> str:
    """The hash (REP 2016) of a connection's message type, by the definition in the recording.

    That definition may differ from the one known here. MCAP files hold definitions without hashes; the metadata of
    bags has hashes from Iron on.

    Raises:
        DatasetError: the definition cannot be read.
    """
    from rosbags.interfaces import MessageDefinitionFormat
    from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

    types, text = get_typestore(Stores.EMPTY), connection.msgdef.data
    try:
        if connection.msgdef.format == MessageDefinitionFormat.MSG:
            types.register(get_types_from_msg(text, connection.msgtype))
        else:
            for part in re.split(r"^=+\nIDL: .*\n", text, flags=re.MULTILINE):
                if part.strip():
                    types.register(get_types_from_idl(part))
        return types.hash_rihs01(connection.msgtype)
    except Exception as error:  # the parser's errors are of several types, and of several lines
        raise DatasetError(
            f"the recording's definition of {connection.msgtype} ({connection.topic}) cannot be read: "
            f"{one_line(error)}; convert it with 'ros2 bag convert' on a machine that has this type"
        ) from error
