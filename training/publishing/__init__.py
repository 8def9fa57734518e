"""What a run publishes: the layout, the model card, the Hub, single-file exports."""
