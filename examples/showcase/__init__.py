"""The showcase world: colourful pictures composed of real artwork, with captions that compose."""
