"""Loading of the networks of a run: model families, LoRA, quantization, precision."""
