"""The table that evaluate.py prints: a heading for each section, a line for each figure."""


def share(value: dict) -> str:
    low, high = value["interval"]
    return f"{value['accuracy']:.2%} (95%: {low:.2%} to {high:.2%}), {value['right']:,} of {value['images']:,}"


def described_rows(described: dict) -> list[tuple[str, str | None]]:
    """The rows of a model whose captions describe."""

    def parts(values: dict) -> str:
        return "  ".join(f"{name} {one['accuracy']:.2%}" for name, one in values.items())

    rows = [("Descriptions: digit, thickness and slant, the right one of all 90, test split", None)]
    for name in ("seen", "unseen"):
        rows += [
            (f"combinations {name} in training", share(described[name])),
            ("  images clear of all bounds", share(described[f"{name}_clear"])),
            ("  each part alone", parts(described["parts"][name])),
            ("  against one part swapped", parts(described["binding"][name])),
        ]
    rows += [
        ("harmonic mean of seen and unseen", f"{described['harmonic_mean']:.2%}"),
        ("unseen: text to image, mean average precision", f"{described['unseen_map']:.2%}"),
    ]
    for name, one in described["rank_correlation"].items():
        low, high = one["interval"]
        rows += [
            (f"{name}: rank correlation, digits 0 to 9", " ".join(f"{value:.2f}" for value in one["digits"])),
            ("  the least of them", f"{one['minimum']:.3f} (95%: {low:.3f} to {high:.3f})"),
        ]
    return rows


def open_set_rows(open_set: dict, described: bool) -> list[tuple[str, str | None]]:
    score = "the best similarity" + ", less the best to no digit" * described
    rows = [(f"Open set, digits against others: AUROC of {score}", None)]
    for name, one in open_set.items():
        if one is None:
            rows.append((name, "not installed: Debian's package dataset-fashion-mnist"))
            continue
        alone = f" (the best similarity alone: {one['auroc_of_best_similarity']:.4f})" * described
        rows.append((name, f"{one['auroc']:.4f}{alone}  {one['images']:,} images"))
    return rows


def print_table(results: dict) -> None:
    """`results` as evaluate.py writes them."""
    digits, found, probe = results["classification"], results["retrieval"], results["probes"]
    confused = [(n, i, j) for i, row in enumerate(digits["confusion"]) for j, n in enumerate(row) if n and i != j]
    to_image, to_text, near = found["text_to_image"], found["image_to_text"], found["image_to_image"]
    rows = [
        ("Classification by the nearest caption, test split", None),
        ("accuracy", share(digits)),
        ("digits 0 to 4", "  ".join(f"{one['accuracy']:.2%}" for one in digits["digits"][:5])),
        ("digits 5 to 9", "  ".join(f"{one['accuracy']:.2%}" for one in digits["digits"][5:])),
        ("most frequent mistakes", ", ".join(f"{i} as {j}: {n}" for n, i, j in sorted(confused)[:-6:-1]) or "none"),
        *(described_rows(results["described"]) if "described" in results else ()),
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
        *open_set_rows(results["open_set"], "described" in results),
    ]
    for name, text in rows:
        print(f"\n{name}" if text is None else f"  {name:48}{text}")
