"""LightningModules in the manner of public projects, none of which knows this package."""
