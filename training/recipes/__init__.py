"""Recipes: one YAML file describes one training, from data to bundle."""
