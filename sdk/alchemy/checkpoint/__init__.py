"""Checkpoints as a protocol: written, committed by a marker, verified before use, retired in the end.

    records.py     what is written down about a checkpoint, and where it lies; pure
    writing.py     one file, hashed while it goes to the disk
    reading.py     what lies in a directory, compared with what was written down
    store.py       the protocol of a commit; looking at checkpoints and verifying them
    retention.py   which ones may go, and how they go
    selection.py   which one an attempt continues from

Nothing here knows torch or numpy: what the files hold is the caller's.
"""
