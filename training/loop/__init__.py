"""The training loop: from a resolved recipe to bundles in a run folder."""
