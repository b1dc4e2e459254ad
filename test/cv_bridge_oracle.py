"""Convert images with ROS's cv_bridge, in a Python that has it; it need not be the Python of the tests.

``PYTHON cv_bridge_oracle.py IN.npz OUT.npz``: IN holds arrays ``<number>`` with ``<number>_height``,
``<number>_width``, ``<number>_encoding`` and ``<number>_big_endian``. OUT holds each image as rgb8 in ``<number>``, or
the error text in ``<number>_error``. The script needs neither ROS's messages nor this package.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np


def main() -> None:
    from cv_bridge import CvBridge
    from cv_bridge.boost import cv_bridge_boost  # noqa: F401  (the other cv_bridge on PyPI has none)

    bridge, given, found = CvBridge(), np.load(sys.argv[1]), {}
    for name in (key for key in given.files if key.isdecimal()):
        pixels = given[name]
        message = SimpleNamespace(
            height=int(given[f"{name}_height"]),
            width=int(given[f"{name}_width"]),
            encoding=str(given[f"{name}_encoding"]),
            is_bigendian=bool(given[f"{name}_big_endian"]),
            step=pixels.shape[1],
            data=pixels.tobytes(),
        )
        try:
            found[name] = bridge.imgmsg_to_cv2(message, "rgb8")
        except Exception as error:
            found[f"{name}_error"] = f"{type(error).__name__}: {error}"
    np.savez(sys.argv[2], **found)


if __name__ == "__main__":
    main()
