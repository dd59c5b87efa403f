"""Export to ONNX for ONNX Runtime, with INT8 kernels counted and compared layer by layer."""
