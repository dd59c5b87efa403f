"""Pure tensor mathematics that depends on torch alone."""
