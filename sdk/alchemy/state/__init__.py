"""Managed values: what kinds there are, and how each is captured and restored.

`values` is the table from names to values, `kinds` what each name may hold, `declarations` how users name the
kinds; the rest knows one kind of object each.
"""
