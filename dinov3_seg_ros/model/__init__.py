"""The network in torch: backbones, where their weights come from, normalisation and heads."""
