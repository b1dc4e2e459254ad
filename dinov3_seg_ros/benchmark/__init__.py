"""How long each step of a frame takes, beside the plain ways of doing the same."""
