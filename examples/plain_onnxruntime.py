"""Run an ONNX export with ONNX Runtime and NumPy alone, as a C++ program would do it.

python examples/plain_onnxruntime.py [FOLDER]    (default: weights/demo/onnx/224x320-fp32)
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "weights/demo/onnx/224x320-fp32")
files = ["fused.onnx"] if (folder / "fused.onnx").exists() else ["backbone.onnx", "head.onnx"]
graphs = [ort.InferenceSession(folder / name) for name in files]

size = graphs[0].get_inputs()[0].shape[1:3]  # fixed height and width; the batch is free
tensors = {"canvases": np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)}  # your RGB image
for graph in graphs:
    values = graph.run(None, {node.name: tensors[node.name] for node in graph.get_inputs()})
    tensors |= {node.name: value for node, value in zip(graph.get_outputs(), values, strict=True)}
labels = tensors["logits"].argmax(1)[0]  # (h, w); for the image's size, interpolate the logits before argmax
names = json.loads(graphs[-1].get_modelmeta().custom_metadata_map["class_names"])
print({name: round(float((labels == index).mean()), 3) for index, name in enumerate(names)})
