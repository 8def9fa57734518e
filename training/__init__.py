"""The training loop and its services: data, checkpoints, flags, validation, publishing."""
