"""The stages of a world built from any captioned folder: sized by the data, measured on held-out images."""
