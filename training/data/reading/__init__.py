"""What formats have in common: the files of a folder, and how masks, shapes, segments and tables are read."""
