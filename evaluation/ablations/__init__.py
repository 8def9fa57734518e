"""The paper's ablations (Table 1): the training script is run for each row with several seeds."""
