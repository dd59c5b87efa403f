"""LightningModules that serve as they are; any other LightningModule does as well."""
