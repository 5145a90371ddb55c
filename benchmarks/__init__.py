"""Every script behind a figure of the documents: `python -m benchmarks.NAME`."""
