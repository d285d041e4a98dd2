"""The life of a managed loop: where it starts, when it saves, what it is told, how it leaves.

`lifecycle` holds it together; everything else does one thing for it.
"""
