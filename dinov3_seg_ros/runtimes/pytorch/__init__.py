"""The bundle's own modules in PyTorch.

`runtime` runs them, in one of the ways that `candidates` lists. On GPUs it goes by four further modules: `staging` (how
frames get there), `patches` (the patch embedding as a matrix product), `compilation` (PyTorch's compiler) and
`cuda_graphs`.
"""
