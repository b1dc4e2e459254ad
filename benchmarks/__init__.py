"""Scripts that measure. A package, so that tests import these and not another distribution's `benchmarks`."""
