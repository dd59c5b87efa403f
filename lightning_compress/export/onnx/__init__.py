"""ONNX files for ONNX Runtime."""
