"""The scripts behind every figure of the documents: `python -m benchmarks.NAME` from the repository's root."""

import my_utils  # noqa: F401  before torch, in every benchmark: it says how OpenMP's threads wait
