"""Frames of any source through one bundle, and what is written of each; the same in one process and in many."""
