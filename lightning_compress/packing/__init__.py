"""Packed files: lossless compression of sparse, clustered and quantized state dicts."""
