"""What a run reports: rows, progress and result on their way to files, and the history read back."""
