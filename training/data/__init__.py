"""Image-caption pairs: the data set, the order of its samples, and the reading of one sample."""
