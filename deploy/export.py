"""Write a trained CLIP for others: a folder for `CLIP.from_pretrained`, with --onnx also image.onnx and text.onnx."""

import importlib.util
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP
from my_utils import ArgumentParser, InputError, atomic_write, exit_on_error, text


class UnitVectors(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return F.normalize(super().forward(inputs), dim=-1)


def main(argv: list[str]) -> None:
    parser = ArgumentParser(prog="deploy.export", description="Write a trained CLIP as a folder with a model card.")
    parser.add_argument("--clip", type=text, default="runs/best_model.pth", help="the trained CLIP")
    parser.add_argument("--folder", type=text, default="runs/export", help="folder to write")
    parser.add_argument("--onnx", action="store_true", help="write image.onnx and text.onnx too")
    args = parser.parse_args(argv)
    model = CLIP.load(args.clip)
    if args.onnx:
        export_onnx(model, args.folder)
    model.save_pretrained(args.folder)
    print(f"written: {args.folder}, for CLIP.from_pretrained({args.folder!r})")


def export_onnx(model: CLIP, folder: str) -> None:
    """Write both towers: float [B, C, H, H] or int64 [T, L] -> unit vectors. Raises InputError for what it cannot."""
    if model.arch["text_encoder"] == "plus":
        raise InputError("a language model is not exported: name a CLIP without one with --clip")
    if missing := [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]:
        raise InputError(f"ONNX needs {' and '.join(missing)}: pip install -r requirements-dev.txt")
    examples = {
        "image": torch.zeros(2, model.channels, model.side, model.side),
        "text": torch.ones(2, 2, dtype=torch.int64),
    }
    for name, example in examples.items():
        free = {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(example.shape) if size == 2}
        options = {"dynamic_shapes": (free,), "dynamo": True, "verbose": False}
        options |= {"input_names": ["inputs"], "output_names": ["embeds"]}
        program = torch.onnx.export(UnitVectors(model.towers[name]).eval(), (example,), **options)
        atomic_write(f"{folder}/{name}.onnx", program.model_proto.SerializeToString())


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
