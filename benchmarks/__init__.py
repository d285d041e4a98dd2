"""What the project costs, against its peers: `python -m benchmarks.collect` and so on; see README.md."""
