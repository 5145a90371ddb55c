"""Write the result tables of the documents from benchmarks/results/*.json, so that no figure is typed.

    python benchmarks/tables.py            rewrite the blocks between the markers
    python benchmarks/tables.py --check    only say whether they are as they should be (exit code 1: not)

A block stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` and is rewritten whole.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from my_utils import ArgumentParser, InputError, atomic_write, exit_on_input_error  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "README.zh-CN.md", "benchmarks/README.md")
NOT_MEASURED = "not measured"


def percent(row: dict) -> str:
    return f"{row['mean']:.2%}" + (f" ± {100 * row['std']:.2f}" if row["std"] is not None else "")


def seconds(row: dict) -> str:
    return f"{row['mean']:.0f} s" + (f" ± {row['std']:.0f}" if row["std"] is not None else "")


def seed_table(*names: str) -> str:
    """One row for each setting that seeds.py has measured."""
    lines = [
        "| command | seeds | test accuracy, image → text | test R-precision, text → image | validation accuracy"
        " | training | device, torch, date |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            lines.append(f"| {name} |{f' {NOT_MEASURED} |' * 6}")
            continue
        result = json.loads(path.read_text())
        rows = result["results"]
        device = result["cpu"] if result["device"] == "cpu" else result["device"]
        lines.append(
            f"| `{result['command']}` | {', '.join(map(str, result['seeds']))}"
            f" | **{percent(rows['test_zero_shot_accuracy'])}** | {percent(rows['test_text_to_image_precision'])}"
            f" | {percent(rows['val_zero_shot_accuracy'])} | {seconds(rows['train_seconds'])}"
            f" | {device}, {result['torch_version']}, {result['date']} |"
        )
    return "\n".join(lines)


BLOCKS = {
    "results": lambda: seed_table("default"),
}


def render(text: str) -> str:
    for name, table in BLOCKS.items():
        marker = re.compile(f"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        text = marker.sub(lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text)
    return text


def main() -> int:
    parser = ArgumentParser(prog="tables.py", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is out of date")
    args = parser.parse_args()
    stale = []
    for document in DOCUMENTS:
        path = ROOT / document
        if not path.exists():
            raise InputError(f"{document} is missing")
        text = path.read_text(encoding="utf-8")
        if render(text) != text:
            stale.append(document)
            if not args.check:
                atomic_write(path, render(text).encode())
    print(
        f"{'out of date' if args.check else 'rewritten'}: {', '.join(stale)}" if stale else "all tables are up to date"
    )
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    with exit_on_input_error():
        sys.exit(main())
