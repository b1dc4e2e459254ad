"""The decode as a compiled kernel: `entry` compiles it, `by_cells` and `by_rows` are its two algorithms.

Importing the modules of this package imports numba.

A call does one part of the work, without holding the interpreter's lock and without starting threads. So parts may run
in any Python threads at once. (numba's own threading layers are not an option: the only one that its wheels are sure to
bring aborts the process when two threads enter it.)

Names
    strip: one run of output rows.
    cell: one run of rows crossed with one run of columns.
    corners: the four logits around a cell, (4, classes): top left, top right, bottom left, bottom right.
    ends: the logits at the left and the right side of a cell in one row of pixels, (2, classes).
    rows, columns: ``Axis.arrays``.

The innermost loops run over whole blocks of ``LANES`` pixels, on arrays padded to that. So they become vector code
without a remainder; what the padding holds is computed and never read. Where little is done at a time, they are
functions of one loop, which take whole arrays and where to begin: slices, tuples and branches inside a function count
references, which takes longer than interpolating a short line.
"""
