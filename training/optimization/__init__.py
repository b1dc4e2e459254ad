"""What updates the weights: optimizers, schedules, moving averages."""
