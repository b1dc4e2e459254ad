"""How well the node and its cameras do, on /diagnostics and on the terminal."""
