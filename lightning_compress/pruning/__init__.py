"""Pruning: patterns, scores, distributions, growth, and the pruners that combine them into masks."""
