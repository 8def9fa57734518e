"""Examples that run on a CPU: the tiny world, the demo, the live page and the showcase."""
