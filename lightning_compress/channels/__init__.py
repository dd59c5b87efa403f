"""Channel groups of a model, their costs, and their physical removal."""
