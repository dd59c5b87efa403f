"""What a model is, counted and measured."""
