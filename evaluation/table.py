"""The table that evaluate.py prints: the numbers of evaluation.json under their names, without the long lists."""

from collections.abc import Iterator

TITLES = {
    "classification": "Classification by the nearest of ten captions, test split",
    "attributes": "Digit and attributes: the most probable of the captions of all combinations, test split",
    "scenes": "Scenes of two digits: pairs seen and never shown together in training, test split",
    "own": "Own data: recall among all pictures and texts, test split",
    "retrieval": "Text to image, every image of the digit is relevant",
    "linear_probe": "A linear classifier of frozen image embeddings",
    "calibration": "Calibration, softmax over the ten captions",
    "robustness": "Robustness, accuracy at severities 1 to 5",
    "uci_digits": "UCI digits in MNIST's form, never trained",
    "ood": "OOD detection, digits against images of no digit",
}
NOT_SHOWN = {"by_digit", "amounts", "curve"}


def print_table(results: dict) -> None:
    for section, title in TITLES.items():
        if section in results:
            print(f"\n{title}")
            for name, text in lines(results[section]):
                print(f"  {name.replace('_', ' '):48}{text}")


def lines(value, name: str = "") -> Iterator[tuple[str, str]]:
    """The name and the text of each number, each list of numbers, and each accuracy with its interval."""
    if isinstance(value, dict) and "accuracy" in value:
        low, high = value["interval"]
        text = f"{value['accuracy']:.2%} (95%: {low:.2%} to {high:.2%})"
        yield name or "accuracy", f"{text}, {value['correct']:,} of {value['images']:,}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in NOT_SHOWN:
                yield from lines(inner, f"{name}, {key}" if name else key)
    else:
        numbers = value if isinstance(value, list | tuple) else [value]
        yield name, "  ".join(f"{one:,}" if isinstance(one, int) else f"{one:.4f}" for one in numbers)
