#!/usr/bin/env python
"""A web page: drop an image, type names, see boxes and masks, change the names, download."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import tempfile

import ovd_d2  # noqa: F401 (registers the model)
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.model_folder import pretrained_config
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.web.session import Finder, Limits

LOOPBACK = "127.0.0.1"
EPILOG = """
examples:
  python tools/web_demo.py --model output/my_model
  python tools/web_demo.py --model configs/pictograms/vild_ensemble.yaml --port 8000 \\
      MODEL.WEIGHTS output/demo/seed0/vild_ensemble/model_final.pth

The page has no password. Unless --host says otherwise, it can be reached from this machine only.
"""


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    limits = Limits()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, help="a model folder, owner/name of one on the hub, or a config"
    )
    parser.add_argument("--title", default="Find what you can name", help="of the page")
    parser.add_argument(
        "--host", default=LOOPBACK, help="address to listen at; 0.0.0.0: all (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument(
        "--max-upload",
        type=float,
        default=limits.upload / 1024**2,
        metavar="MIB",
        help="size of an image file at most (default: %(default)g)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=limits.pixels / 1e6,
        metavar="N",
        help="of an image at most (default: %(default)g)",
    )
    parser.add_argument(
        "--no-distractors",
        action="store_true",
        help="do not let the names of the model's vocabulary compete with those given",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options: KEY VALUE ...")
    return parser.parse_args(args)


def settle_memory() -> None:
    """What has been loaded stays, so that Python's garbage collector looks at what requests leave
    alone, and comes often: beside a million objects of libraries it would let drawings, cycles of
    megabytes each, lie about for hundreds of requests."""
    gc.collect()
    gc.freeze()
    gc.collect()


def check_gradio() -> None:
    """Raises SetupError where the extra is missing, before the model is loaded."""
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        raise SetupError(["gradio is not installed: pip install 'ovd_d2[web]'"]) from error


def finder_of(args: argparse.Namespace) -> Finder:
    """The detector with the limits of its users."""
    cfg = pretrained_config(args.model, options=args.opts)
    predictor = OpenVocabularyPredictor(cfg, distractors=not args.no_distractors)
    upload, pixels = int(args.max_upload * 1024**2), int(args.max_megapixels * 1_000_000)
    return Finder(predictor, Limits(upload=upload, pixels=pixels))


def serve(args: argparse.Namespace, finder: Finder) -> None:
    """Until Ctrl-C or SIGTERM."""
    from ovd_d2.web.page import build_page, launch_options

    page = build_page(finder, args.title)
    try:
        _, address, _ = page.launch(
            server_name=args.host,
            server_port=args.port,
            prevent_thread_lock=True,
            quiet=True,
            **launch_options(finder),
        )
    except OSError as error:  # the port is taken, or the address is not this machine's
        raise SetupError([f"--host {args.host} --port {args.port}: {error}"]) from error
    settle_memory()
    print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
    page.block_thread()


@exit_with_message(SetupError)
def main(args: argparse.Namespace) -> None:
    check_gradio()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="ovd_d2-web-") as uploads:  # of all users: theirs alone
        os.environ["GRADIO_TEMP_DIR"] = uploads
        serve(args, finder_of(args))


if __name__ == "__main__":
    main(parse_args())
