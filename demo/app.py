"""A page in the browser to try a trained model: draw, type, say.

    make demo
    make demo ARGS="--port 8000"

It runs on this machine alone, at http://127.0.0.1:7860. Needs a trained CLIP (`make train`); `make generator` and
`make speech` add to the page.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python demo/app.py` works too, from any folder
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported: it would call its makers

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from clip import CLIP
from demo.page import HERE, build
from demo.playground import Playground
from my_dataset import load_mnist
from my_utils import ArgumentParser, InputError, exit_on_error, number, pick_device
from training.settings import add_model_flags

HOST = "127.0.0.1"


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="python -m demo.app", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--port", type=number(int, 1024, 65535), default=7860, metavar="N", help="of the page's address"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    add_model_flags(parser)
    args = parser.parse_args(argv)

    device = pick_device(args.device)
    clip = CLIP.load(args.clip, device, args.text_model)
    print(f"starting the page on {args.clip} ...", flush=True)
    test, val = (load_mnist(split, args.data_path, device) for split in ("test", "val"))
    playground = Playground.load(clip, test, val, args.generator)
    with tempfile.TemporaryDirectory() as folder:
        page = serve(playground, args.clip, args.port, folder, not args.no_browser)
        print(f"the page is at http://{HOST}:{args.port} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def serve(playground: Playground, name: str, port: int, folder: str, in_browser: bool = False) -> gr.Blocks:
    """Start the page and return. `folder` holds the user's recordings, the only files that the page hands out.

    Raises InputError if the port is in use.
    """
    os.environ["GRADIO_TEMP_DIR"] = folder
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # fonts of this machine
    page = build(playground, name)
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=in_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            # Said here, or Gradio would take it from the environment.
            allowed_paths=[],
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            # A web site that gives its own name this machine's address is refused.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]},
            max_file_size="20mb",
            footer_links=[],
            css=(HERE / "style.css").read_text(),
            theme=theme.set(block_info_text_color="*block_title_text_color"),  # its own grey is too pale to read
        )
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise InputError(f"port {port} is used by another program: choose another with --port") from None
    return page


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
