"""The table that evaluate.py prints: a heading for each section, a line for each figure."""


def print_table(results: dict) -> None:
    """`results` as evaluate.py writes them."""

    def share(value: dict) -> str:
        low, high = value["interval"]
        return f"{value['accuracy']:.2%} (95%: {low:.2%} to {high:.2%}), {value['right']:,} of {value['images']:,}"

    zero, found, probe = results["zero_shot"], results["retrieval"], results["probes"]
    confused = [(n, i, j) for i, row in enumerate(zero["confusion"]) for j, n in enumerate(row) if n and i != j]
    to_image, to_text, near = found["text_to_image"], found["image_to_text"], found["image_to_image"]
    rows = [
        ("Classification by the nearest caption, test split", None),
        ("accuracy", share(zero)),
        ("digits 0 to 4", "  ".join(f"{one['accuracy']:.2%}" for one in zero["digits"][:5])),
        ("digits 5 to 9", "  ".join(f"{one['accuracy']:.2%}" for one in zero["digits"][5:])),
        ("most frequent mistakes", ", ".join(f"{i} as {j}: {n}" for n, i, j in sorted(confused)[:-6:-1]) or "none"),
        ("Retrieval, everything of the right digit is right", None),
        (
            "text to image, precision at 1, 10, 100",
            "  ".join(f"{to_image[f'precision_at_{k}']:.2%}" for k in (1, 10, 100)),
        ),
        ("text to image, R-precision", f"{to_image['r_precision']:.2%}"),
        ("text to image, mean average precision", f"{to_image['mean_average_precision']:.2%}"),
        (
            f"image to {to_text['texts']} texts, recall at 1, 2, 5",
            "  ".join(f"{to_text[f'recall_at_{k}']:.2%}" for k in (1, 2, 5)),
        ),
        ("image to image, mean average precision", f"{near['mean_average_precision']:.2%}"),
        (f"Frozen image embeddings, fitted on {probe['fitted_on']:,} training images", None),
        ("logistic regression", share(probe["linear"])),
        (f"{probe['neighbours']} nearest neighbours", share(probe["nearest_neighbours"])),
        ("Calibration, softmax over the ten captions", None),
        *[
            (
                f"{name} temperature {one['temperature']:.4f}",
                f"ECE {one['ece']:.3%}, cross-entropy {one['nll']:.4f} nats",
            )
            for name, one in results["calibration"].items()
        ],
        ("Geometry", None),
        *[(name.replace("_", " "), f"{value:.4g}") for name, value in results["geometry"].items()],
        (f"Robustness, {results['robustness']['images']:,} test images, accuracy at severities 1 to 5", None),
        ("clean", f"{results['robustness']['clean']:.2%}"),
        *[
            (f"{name} ({one['unit']})", "  ".join(f"{accuracy:.1%}" for accuracy in one["accuracies"]))
            for name, one in results["robustness"]["corruptions"].items()
        ],
        ("mean corruption error", f"{results['robustness']['mean_corruption_error']:.2%}"),
        ("Another hand: UCI digits in MNIST's form, not trained on", None),
        ("accuracy", share(results["another_hand"])),
        ("Open set: AUROC of the best similarity, digits against", None),
        *[
            (
                name,
                f"{one['auroc']:.4f}  {one['images']:,} images"
                if one
                else "not installed: Debian's package dataset-fashion-mnist",
            )
            for name, one in results["open_set"].items()
        ],
    ]
    for name, text in rows:
        print(f"\n{name}" if text is None else f"  {name:48}{text}")
