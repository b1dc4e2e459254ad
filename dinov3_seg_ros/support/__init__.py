"""What every other room may use: errors, files, installed resources, timing and metrics."""
