"""The bundle's own modules in PyTorch.

`runtime` runs them. For GPUs, `patches`, `compilation` and `recording` make them faster: the patch embedding as a
matrix product, PyTorch's compiler, and CUDA graphs.
"""
