"""ONNX graphs in ONNX Runtime, on any of its execution providers; no torch.

`plugins` finds the providers that are installed as packages of their own. `providers` holds the rules of each provider,
`targets` which of them run here and on what. `session` runs one graph, `caches` keeps what providers compile, and
`runtime` puts them together.
"""
