"""What every room uses: errors, files, timing, resources, metrics. Imports no other room."""
