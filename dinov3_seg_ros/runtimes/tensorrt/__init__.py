"""ONNX graphs as TensorRT engines: built, stored, run. Needs tensorrt 10 or 11 and cuda-python; no torch.

An engine belongs to one graph, one release of TensorRT and one kind of GPU. `store` builds it when none that fits is
stored. `gate` compares what the engines compute before they are trusted; what fails is remembered.
"""
