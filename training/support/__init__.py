"""What every room of training uses. Imports no other room."""
