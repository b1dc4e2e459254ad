"""One job on many processes: divided into partitions, each of which is done whole or not at all.

`partitions` keeps what is done on disk and knows no Ray; `session` is the only module that imports Ray.
"""
