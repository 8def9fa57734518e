"""The showcase world: pictures composed of emoji on colored backgrounds, with compositional captions."""
