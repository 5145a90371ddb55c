"""A page in the browser to try the model: `make demo`."""
