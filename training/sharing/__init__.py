"""Bundles on the Hugging Face Hub: what of them may be shared, their model card, the upload."""
