"""Published data sets, one file each, in the layouts in which their authors distribute them."""
