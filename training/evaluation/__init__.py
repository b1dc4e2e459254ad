"""How a trained bundle is looked at: views of an image, and scores."""
