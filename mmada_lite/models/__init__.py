"""The small model that comes with the package: one folder, a bundle."""
