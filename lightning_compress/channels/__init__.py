"""Channels that depend on each other, and their removal."""
