"""The training loop: from a recipe to bundles in a run folder."""
