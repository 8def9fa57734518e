"""The paper's ablations (Table 1): each row trained by the training script, for several seeds."""
