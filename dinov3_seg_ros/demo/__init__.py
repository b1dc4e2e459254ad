"""Shows the package at work without a camera, a robot or a download."""
