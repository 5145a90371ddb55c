"""A page in the browser to try a trained model: draw, type, say.

    make demo
    make demo ARGS="--port 8000"

It runs on this machine alone, at http://127.0.0.1:7860. Needs a trained CLIP (`make train`); `make generator` and
`make speech` add to the page.
"""

import contextlib
import os
import socket
import sys
import tempfile
import threading
import warnings
from argparse import Namespace

import my_utils
from my_utils import ArgumentParser, InputError, number
from training.settings import add_model_flags

HOST = "127.0.0.1"


def read_flags(argv: list[str]) -> Namespace:
    """The flags. Raises InputError for what cannot be."""
    parser = ArgumentParser(prog="python -m demo.app", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--port", type=number(int, 1024, 65535), default=7860, metavar="N", help="of the page's address"
    )
    parser.add_argument("--no-browser", action="store_true", help="only say where the page is")
    add_model_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":  # a wrong flag is refused before torch takes its seconds to load
    FLAGS = my_utils.read_early(read_flags)

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from clip import CLIP
from demo.look import Playground
from demo.page import HERE, build
from my_dataset import load_mnist
from my_utils import exit_on_input_error, pick_device


def main(args: Namespace) -> None:
    check_free(args.port)
    device = pick_device(args.device)
    clip = CLIP.load(args.clip, device, args.text_model)
    print(f"starting the page on {args.clip} ...", flush=True)
    test, val = (load_mnist(split, args.data_path, device) for split in ("test", "val"))
    playground = Playground.load(clip, test, val, args.generator)
    warnings.filterwarnings("ignore", "most of an image is bright")  # a scribble is shown as what it is
    with tempfile.TemporaryDirectory() as folder:
        page = serve(playground, args.clip, args.port, folder, not args.no_browser)
        print(f"the page is at http://{HOST}:{args.port} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        page.close(verbose=False)


def check_free(port: int) -> None:
    """Raises InputError for a port that another program has."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just given back is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            remedy = 'choose another, as in make demo ARGS="--port 8000"'
            raise InputError(f"port {port} cannot be used ({error.strerror or error}): {remedy}") from None


def serve(playground: Playground, name: str, port: int, folder: str, in_browser: bool = False) -> gr.Blocks:
    """Start the page and go on. Sounds that a person gives lie in `folder`, the one place whose files it hands out.

    All that Gradio would take from the environment is said here: what the page may do is not to depend on it.
    """
    os.environ["GRADIO_TEMP_DIR"] = folder
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # fonts of this machine
    page = build(playground, name)
    page.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=in_browser,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        allowed_paths=[],
        # A web site that gives its own name this machine's address is refused.
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
        max_file_size="20mb",
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        footer_links=[],
        css=(HERE / "style.css").read_text(),
        theme=theme.set(block_info_text_color="*block_title_text_color"),  # its own grey is too pale to read
    )
    return page


if __name__ == "__main__":
    with exit_on_input_error():
        sys.exit(main(FLAGS))
