"""Message types of a recording, by the definitions that it holds itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dinov3_seg_ros.support.errors import (
    DatasetError,
)

if TYPE_CHECKING:
    from rosbags.interfaces import Connection


def type_hash(connection: Connection) -> str:
    """The type's hash (REP 2016) by its definition in the recording, which may not be the one that is known here.

    MCAP files hold definitions without hashes; a bag's metadata has them from Iron on.
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
            f"{' '.join(str(error).split())}; convert it with 'ros2 bag convert' on a machine that has this type"
        ) from error
