"""Everything that the training scripts need around the method: data, checkpoints, flags, validation, publishing."""
