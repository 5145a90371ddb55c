"""Where files come from: fetching, checking, unpacking."""
