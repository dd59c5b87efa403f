"""Reports, metrics and figures of compressed models."""
