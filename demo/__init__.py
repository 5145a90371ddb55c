"""A page to try the model, as one HTML file: `make demo`."""
