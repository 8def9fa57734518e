"""The processes of a run: precision and trackers, decisions of all together, work of one alone, signals."""
