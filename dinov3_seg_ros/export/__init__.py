"""From a trained bundle to ONNX graphs that run without torch, compared with the model before a robot can use them."""
