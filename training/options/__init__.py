"""What a run is told: every flag, declared once, and all that follows from the flags."""
