"""The path of a camera's frames: subscription, network, publishers; and who watches it."""
