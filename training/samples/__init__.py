"""From items of a data set to training samples: augmented, batched, or as cached features."""
