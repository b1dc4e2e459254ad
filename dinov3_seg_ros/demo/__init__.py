"""Everything that lets a stranger see the package at work without a camera, a robot or a download."""
