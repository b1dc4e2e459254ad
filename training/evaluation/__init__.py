"""Evaluation of a trained bundle: averaged views of an image, and scores."""
