"""A trained model on disk: its description, its weights, its ONNX exports."""
