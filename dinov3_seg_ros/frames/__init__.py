"""Arrays to arrays: a frame on its way to the network input, and its labels on their way back."""
