"""Shared by the recipes: images, damage, networks, the LightningModule, and options."""
