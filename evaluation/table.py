"""The table that evaluate.py prints: the numbers of evaluation.json under their names, without the long lists."""

from collections.abc import Iterator

TITLES = {
    "classification": "Classification by the nearest of ten captions, test split",
    "attributes": "Digit and attributes: the nearest caption of all combinations, test split",
    "retrieval": "Retrieval, every image of the digit is relevant",
    "probes": "Classifiers of frozen image embeddings",
    "calibration": "Calibration, softmax over the ten captions",
    "geometry": "Geometry",
    "robustness": "Robustness, accuracy at severities 1 to 5",
    "uci_digits": "UCI digits in MNIST's form, never trained",
    "ood": "OOD detection, digits against images of no digit",
}
NOT_SHOWN = {"confusion", "most_confident_mistakes", "bins", "by_digit", "unit", "amounts"}


def print_table(results: dict) -> None:
    for section, title in TITLES.items():
        if section in results:
            print(f"\n{title}")
            values = results[section]
            for name, text in lines({"accuracy": values} if "accuracy" in values else values):
                print(f"  {name.replace('_', ' '):48}{text}")


def lines(values: dict, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The name and the text of each number, each list of numbers, and each accuracy."""
    for name, value in values.items():
        if name in NOT_SHOWN:
            continue
        if isinstance(value, dict) and "accuracy" in value:
            low, high = value["interval"]
            text = f"{value['accuracy']:.2%} (95%: {low:.2%} to {high:.2%})"
            yield f"{prefix}{name}", f"{text}, {value['correct']:,} of {value['images']:,}"
        elif isinstance(value, dict):
            yield from lines(value, f"{prefix}{name}, ")
        else:
            numbers = value if isinstance(value, list | tuple) else [value]
            yield f"{prefix}{name}", "  ".join(f"{one:,}" if isinstance(one, int) else f"{one:.4f}" for one in numbers)
