"""Latent consistency distillation of the tiny teacher, with which `evaluation.comparison` compares ADD."""
