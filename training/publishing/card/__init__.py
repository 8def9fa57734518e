"""The model card: its text, what it says of sampling and of measurements, and the licence."""
