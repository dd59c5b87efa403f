"""Distillation: what a student has to have in common with its teacher; torch only."""
