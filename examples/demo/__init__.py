"""The report of the demo: figures and samples of the student of the tiny world."""
