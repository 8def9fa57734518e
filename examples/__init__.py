"""What can be run at once: the tiny world and the demo."""
