"""What the recipes share: images, damage, networks, the module that is trained, and options."""
