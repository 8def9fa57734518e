"""The Hub: uploads of a student and of checkpoints, and messages that show no token."""
