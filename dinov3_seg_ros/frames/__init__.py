"""Arrays to arrays: a frame on its way into the network, and its labels on their way out."""
