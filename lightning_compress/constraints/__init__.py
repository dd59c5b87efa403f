"""Constraints on stored weights and their projections; torch only."""
