"""Training data: data sets of images and captions, the order of samples, and the reading of a sample."""
