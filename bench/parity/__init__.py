"""The reference's recorded runs, replayed through the torch model and the exported graphs."""
