"""The node with a fault built in, which a file switches: ``python troubled_node.py FAULT FILE --ros-args ...``.

``loading``: models are loaded only once the file exists, and fail to load where it holds text.
``failing``: while the file exists, the runtime fails with its text.
``unclosable``: the node cannot be closed.
``compiling``: until the file exists, the compiler of the decode does not end.
``hung``: while the file exists, the runtime does not come back; frames hang after 2 s instead of 10.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from numba.core import event

from dinov3_seg_ros import node
from dinov3_seg_ros.ros.cameras import hang_watch
from dinov3_seg_ros.runtimes.onnx.runtime import OnnxRuntime
from dinov3_seg_ros.segmenter import Segmenter
from dinov3_seg_ros.support.errors import ExportError

fault, switch = sys.argv[1], Path(sys.argv[2])
load, start = Segmenter.from_bundle, OnnxRuntime.start


def load_when_allowed(*arguments, **options):
    while not switch.exists():
        time.sleep(0.02)
    if switch.read_text():
        raise ExportError(switch.read_text())
    return load(*arguments, **options)


def start_with_fault(runtime, canvases, heads):
    while fault == "hung" and switch.exists():
        time.sleep(0.02)
    if switch.exists():
        raise RuntimeError(switch.read_text())
    return start(runtime, canvases, heads)


if fault == "loading":
    Segmenter.from_bundle = load_when_allowed
elif fault == "compiling":

    class CompilerWithoutEnd(event.Listener):
        def on_start(self, event):
            pass

        def on_end(self, event):
            while not switch.exists():
                time.sleep(0.02)

    event.register("numba:compile", CompilerWithoutEnd())
elif fault == "unclosable":
    node.SegmentationNode.close = lambda self: 1 / 0
else:
    hang_watch.LIMIT_S = 2.0
    OnnxRuntime.start = start_with_fault
node.main()
