"""What a run shows of itself: its configuration, figures, and sample grids."""
