"""Quantization: observers, fake-quantization, calibration, quantization-aware training, and lowering to INT8."""
