"""Everything that is read of a Lightning Trainer, and the base classes of the compression callbacks."""
