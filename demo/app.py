"""A page in the browser to try a trained model: draw, type, say.

    make demo
    make demo ARGS="--port 8000"

It runs on this machine alone, at http://127.0.0.1:7860. Needs a trained CLIP (`make train`); `make generator` and
`make speech` add to the page.
"""

import os
import sys
import tempfile

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it would call its makers
import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from clip import CLIP
from demo.page import HERE, build
from demo.playground import Playground
from generation.rows import add_model_flags
from my_dataset import load_mnist
from my_utils import ArgumentParser, InputError, exit_on_error, number, pick_device

HOST = "127.0.0.1"


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m demo.app", description=__doc__.split("\n")[0])
    port = number(int, 1024, 65535)
    parser.add_argument("--port", type=port, default=7860, metavar="N", help="of the page's address")
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    add_model_flags(parser)
    args = parser.parse_args(argv)

    device = pick_device(args.device)
    clip = CLIP.load(args.clip, device, args.text_model)
    clip.require_digits()
    print(f"starting the page on {args.clip} ...", flush=True)
    playground = Playground(clip, load_mnist("test", args.data_path, device), args.generator)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of the user's recordings
        page = serve(playground, args.port, not args.no_browser)
        print(f"the page is at http://{HOST}:{args.port} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def serve(playground: Playground, port: int, in_browser: bool = False) -> gr.Blocks:
    """Start the page and return. Raises InputError if the port is in use."""
    page = build(playground)
    css = (HERE / "style.css").read_text()
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=in_browser,
            prevent_thread_lock=True,
            quiet=True,
            css=css,
            max_file_size="20mb",
            # Said here, or Gradio would take it from the environment.
            share=False,
            allowed_paths=[],
            # A web site that gives its own name this machine's address is refused.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
        )
    except OSError:
        raise InputError(f"port {port} is used by another program: choose another with --port") from None
    return page


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
