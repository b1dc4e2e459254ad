"""Pretrained weights of backbones: where they are found, and their layouts, turned into Hugging Face's."""
