"""Checkpoints of backbones: where they lie or are downloaded from, and their layouts, turned into Hugging Face's."""
