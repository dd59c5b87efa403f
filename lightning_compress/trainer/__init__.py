"""Everything that is read from a Lightning Trainer, and the base classes of the compression callbacks."""
