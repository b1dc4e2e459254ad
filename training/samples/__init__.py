"""Training samples from the items of a data set: augmented, batched, or as cached features."""
