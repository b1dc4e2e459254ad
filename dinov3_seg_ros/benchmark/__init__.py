"""How long each step of a frame takes, beside a naive PyTorch pipeline and the pipeline of dinov3_ros."""
