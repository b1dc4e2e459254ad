"""Helpers of all rooms of training; imports no other room."""
