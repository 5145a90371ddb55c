"""Write the tables of the documents from the results, so that no figure is typed by hand.

    python -m benchmarks.tables            rewrite what stands between the markers
    python -m benchmarks.tables --check    exit with 1 if a table is not up to date

A table stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`. NAME is a result, or several of the same columns
joined by " + "; or one that is made of other results: `reached`, `order-short`, `order-unseen`; or `printed`, the last
lines of a run of train.py. benchmarks/README.md also gets each result's note, command, device, commit and date.
README.zh-CN.md gets column and row names in Chinese, from chinese.json.
"""

import json
import re
import sys
from pathlib import Path

from my_utils import ArgumentParser, InputError, atomic_write, exit_on_error

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DETAILS, CHINESE = "benchmarks/README.md", "README.zh-CN.md"
DOCS = ("word-order", "negation", "when-training-fails", "own-data")
DOCUMENTS = ("README.md", CHINESE, DETAILS, *(f"docs/{name}.md" for name in DOCS))
MARKER = re.compile(r"(<!-- ([\w +-]+): begin -->\n).*?(<!-- \2: end -->)", re.DOTALL)
# Each result, and what follows `python -m benchmarks.` in the command that makes it. `make gpu` makes the same results
# with names that end in "-cuda".
COMMANDS = {
    "default": "seeds --name default",
    "speed-preset": "seeds --name speed-preset --seeds 0 1 2 3 4 -- --preset speed",
    "accuracy-preset": "seeds --name accuracy-preset -- --preset accuracy",
    "accuracy-50": "seeds --name accuracy-50 --seeds 0 1 2 3 4 -- --preset accuracy --epochs 50",
    "combinations": "combinations",
    "generation": "generation",
    "order": "order --only order",
    "order-share": "order --only order-share",
    "negation": "negation",
    "languages": "languages",
    "strokes": "modalities --only strokes",
    "speech": "modalities --only speech",
    "sentences": "sentences",
    "own": "own",
    "losses": "losses --only losses",
    "gap": "losses --only gap",
    "failures": "failures",
    "photos": "photos",
    "photos-digit": "photos",
    "page": "page",
    "speed": "speed",
    "speed-slow": "speed --slow",
    **{f"cost-{name}": f"cost --only {name}" for name in ("steps", "sizes", "inference")},
}
# The first table of the README: what each row says; then the result, the row (its name before a colon) and the column
# that its figure comes from.
HEADLINE = (
    ("the digit, by the nearest of ten captions", "combinations", "CLIP", "digit alone"),
    ("digit and attributes, among all combinations: those seen in training", "combinations", "CLIP", "seen"),
    ("**combinations never seen in training**", "combinations", "CLIP", "unseen"),
    ("the same, unambiguous images", "combinations", "CLIP", "unseen, unambiguous"),
    ("text to image: digit accuracy (independent classifier)", "generation", "text → prior → decoder", "digit"),
    (
        "text to image: measured attributes, of combinations seen in training",
        "generation",
        "text → prior → decoder",
        "attributes",
    ),
    ("a digit in a simulated photograph", "photos", "`photo_to_mnist`", "photographs, attributes"),
    ("Fashion-MNIST as your own data, by the names of its classes", "own", "fashion", "image to text recall at 1"),
    ("pen strokes, trained on rendered images alone", "strokes", "stroke encoder", "nearest caption"),
    ("speech of an unseen speaker", "speech", "mean of the six speakers", "nearest caption"),
)
# Tables that show a part of a result, and the result.
PART_OF = {"order-short": "order", "order-unseen": "order"}
ORDER_MODELS = (
    "transformer",
    "transformer, captions in Chinese",
    "word times place",
    "bag of words",
    "the image's map averaged",
)
ORDER_COLUMNS = ("model", "swap", "five captions", "group score", "attribute swap")


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="benchmarks.tables", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    args = parser.parse_args(argv)
    outdated = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        rendered = render(text, document)
        if rendered != text:
            outdated.append(document)
            if not args.check:
                atomic_write(ROOT / document, rendered.encode())
    print(f"{'out of date' if args.check else 'rewritten'}: {', '.join(outdated)}" if outdated else "up to date")
    return int(args.check and bool(outdated))


def render(text: str, document: str, folder: Path = RESULTS) -> str:
    """The text of a document with its tables as they are in this folder of results."""

    def block(match: re.Match) -> str:
        if match[2] == "printed":  # the last lines of a run of train.py
            result = read_result("default", folder)
            return f"{match[1]}```text\n{result['printed']}\n```\n{match[3]}" if result else match[0]
        names = match[2].split(" + ")
        results = {name: read_result(name, folder) for name in names}
        return match[1] + "\n".join(markdown(results, document)) + "\n" + match[3]

    return MARKER.sub(block, text)


def read_result(name: str, folder: Path) -> dict | None:
    """A result, or one made of others; None if it was not measured yet. Raises InputError for an unknown name."""
    if name == "reached":
        return headline(folder)
    if name == "order-short":
        return short_order(folder)
    if name == "order-unseen":
        return unseen_pairs(folder)
    if name.removesuffix("-cuda") not in COMMANDS:
        raise InputError(f"no benchmark writes {name}.json: correct the marker of that table")
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def headline(folder: Path) -> dict:
    """The README's first table, of the figures of other results."""
    rows = []
    for title, name, row_name, column in HEADLINE:
        figure = "not measured yet"
        if result := read_result(name, folder):
            row = next(row for row in result["rows"] if row[0].split(":")[0] == row_name)
            figure = row[result["columns"].index(column)]
        rows.append([title, figure])
    return {"columns": ["on the test split", "accuracy"], "rows": rows}


def unseen_pairs(folder: Path) -> dict | None:
    """The rows of word order on pairs that were never trained, None if not measured."""
    result = read_result("order", folder)
    return result and result | {"rows": [row for row in result["rows"] if row[0].endswith("unseen pairs")]}


def short_order(folder: Path) -> dict | None:
    """The README's table of word order: ORDER_MODELS and ORDER_COLUMNS of these rows."""
    result = unseen_pairs(folder)
    if result is None:
        return None
    places = [result["columns"].index(column) for column in ORDER_COLUMNS]
    rows = {row[0].split(":")[0]: row for row in result["rows"]}
    return {"columns": list(ORDER_COLUMNS), "rows": [[rows[name][place] for place in places] for name in ORDER_MODELS]}


def markdown(results: dict[str, dict | None], document: str) -> list[str]:
    """The lines of a table, with the rows of all these results."""
    measured = [result for result in results.values() if result]
    missing = [name for name, result in results.items() if not result]
    lines = []
    if measured:
        rows = [measured[0]["columns"], *(row for result in measured for row in result["rows"])]
        if document == CHINESE:
            rows = translate(rows)
        lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
        lines.insert(1, "|" + "---|" * len(rows[0]))
    for result in measured if document == DETAILS else ():
        origin = f"{result['device']}, torch {result['torch_version']}, commit {result['commit']}, {result['date']}"
        if (cores := result.get("machine", {}).get("other_cores", 0)) > 0.1:
            origin += f"; other programs used {cores:.1f} cores meanwhile, so seconds, if any, are too high"
        lines += ["", f"{result['note']} `{result['command']}`, {origin}".strip()]
    commands = [
        "make gpu" if name.endswith("-cuda") else f"python -m benchmarks.{COMMANDS[PART_OF.get(name, name)]}"
        for name in missing
    ]
    for command in dict.fromkeys(commands):
        lines += [*([""] if lines else []), f"{'尚未测量' if document == CHINESE else 'Not measured yet'}: `{command}`"]
    return lines


def translate(rows: list[list[str]]) -> list[list[str]]:
    """A table, its columns first, with the names of columns and rows in Chinese.

    Raises InputError if a name has no translation.
    """
    names = json.loads((ROOT / "benchmarks" / "chinese.json").read_text(encoding="utf-8"))
    columns, *rows = rows
    unknown = [name for name in (*columns, *(row[0] for row in rows)) if name not in names and not name.startswith("`")]
    if unknown:
        raise InputError(f"chinese.json has no translation of {', '.join(map(repr, unknown))}: add it")
    return [[names.get(text, text) for text in row] for row in (columns, *rows)]


if __name__ == "__main__":
    with exit_on_error():
        sys.exit(main(sys.argv[1:]))
