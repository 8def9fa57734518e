"""The networks of a run: families, LoRA, quantization, precision."""
