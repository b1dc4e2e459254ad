"""The network in torch: backbones, where their weights come from, heads."""
