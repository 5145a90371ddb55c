"""A page in the browser to try the model: `make demo`."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it would call its makers
