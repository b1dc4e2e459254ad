"""Checks of a data set: what its files hold, and what is wrong with them, before a training starts."""
