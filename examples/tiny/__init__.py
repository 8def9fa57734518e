"""The tiny world: real data and small real models, built on a CPU in minutes."""
