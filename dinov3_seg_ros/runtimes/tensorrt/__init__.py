"""ONNX graphs as TensorRT engines: built, kept, compared, run. Needs tensorrt 10 or 11 and cuda-python; no torch.

An engine belongs to one graph, one release of TensorRT and one kind of GPU. `store` builds it when there is none that
fits, and trusts none that it has not compared with ONNX Runtime.
"""
