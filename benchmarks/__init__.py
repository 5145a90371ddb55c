"""Every script behind a figure of the documents: `python -m benchmarks.NAME`."""

import my_utils  # noqa: F401  before torch: it says how OpenMP waits
