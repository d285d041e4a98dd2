"""Slurm: its text (states, submission, squeue), the decisions (watch) and the backend that joins them.

Everything but `backend` is pure: it builds argument lists and reads answers, and executes nothing.
"""
