"""What keeps an installation from its first mask, with one remedy for each finding.

`__main__` is the command. Each other module holds checks of one kind, as functions that yield a `findings.Finding`.
"""
