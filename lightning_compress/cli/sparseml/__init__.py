"""Conversion of SparseML recipes to configurations of this package."""
