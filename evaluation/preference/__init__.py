"""Preference studies between runs (appendix B): people or a reward model vote on pairs; win rates and ELO."""
