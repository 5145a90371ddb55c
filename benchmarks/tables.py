"""Write the result tables of the documents from benchmarks/results/*.json, so that no figure is typed.

    python -m benchmarks.tables            rewrite the blocks between the markers
    python -m benchmarks.tables --check    only say whether they are as they should be (exit code 1: not)

A block stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` and is rewritten whole.
"""

import json
import re
import sys
from collections.abc import Callable

from benchmarks.common import RESULTS, ROOT, machine, parser_of, spread
from benchmarks.tries import TRIES, Try
from benchmarks.whole import ROWS
from my_utils import InputError, atomic_write, exit_on_input_error

DOCUMENTS = ("README.md", "README.zh-CN.md", "benchmarks/README.md")
NOT_MEASURED = "not measured"


def percent(row: dict) -> str:
    return f"{row['mean']:.2%}" + (f" ± {100 * row['std']:.2f}" if row["std"] is not None else "")


def places(value: float, usual: int) -> int:
    """Digits behind the point: two more than usual where a value would have one digit or none, as a GPU's times do."""
    return usual + 2 * (value < 10 ** (1 - usual))


def fixed(value: float, usual: int) -> str:
    return f"{value:.{places(value, usual)}f}"


def seconds(row: dict) -> str:
    digits = places(row["mean"], 0)
    return f"{row['mean']:.{digits}f} s" + (f" ± {row['std']:.{digits}f}" if row["std"] is not None else "")


def about(result: dict) -> str:
    """The line under a table: the command, what it ran on, the code, the day."""
    told = [f"`{result['command']}`"]
    if "device" in result:
        told.append(result["device"])
    if "threads" in result:
        told.append(f"{result['threads']} {'sleeping ' * result.get('threads_sleep', False)}threads")
    return ", ".join([*told, f"torch {result['torch_version']}", f"commit {result['commit']}", result["date"]])


def of_devices(name: str, command: str, lines_of: Callable[[dict], list[str]], gpu_picture: str = "") -> str:
    """What a script has measured on a CPU and on a GPU, each as `lines_of` its result tells it.

    Where one is missing, a line says what fills it in. `gpu_picture` stands before the GPU's.
    """
    blocks = []
    for path, device, filled_by, picture in (
        (RESULTS / f"{name}.json", "CPU", command, ""),
        (RESULTS / f"{name}-cuda.json", "CUDA", "make gpu", gpu_picture),
    ):
        if not path.exists():
            blocks.append(f"{device}: {NOT_MEASURED} (`{filled_by}` fills this in).")
            continue
        blocks += [picture] if picture else []
        blocks.append("\n".join(lines_of(json.loads(path.read_text()))))
    return "\n\n".join(blocks)


def seed_table(*names: str) -> str:
    """One row for each setting that seeds.py has measured."""
    lines = [
        "| command | seeds | test accuracy, image → text | test R-precision, text → image | validation accuracy"
        " | training | device, torch, commit, date |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            lines.append(f"| {name} |{f' {NOT_MEASURED} |' * 6}")
            continue
        result = json.loads(path.read_text())
        rows = result["results"]
        lines.append(
            f"| `{result['command']}` | {', '.join(map(str, result['seeds']))}"
            f" | **{percent(rows['test_digit_accuracy'])}** | {percent(rows['test_text_to_image_precision'])}"
            f" | {percent(rows['val_digit_accuracy'])} | {seconds(rows['train_seconds'])}"
            f" | {machine(result)}, {result['torch_version']}, {result['commit']}, {result['date']} |"
        )
    return "\n".join(lines)


# Of the three presets on a GPU, and of 50 epochs there.
PRESETS_CUDA = ("preset-default-cuda", "preset-speed-cuda", "preset-accuracy-cuda", "accuracy-cuda")

SENTENCE_ROWS = {
    "ensemble_accuracy": "accuracy, ensemble of the training templates",
    "train_template_accuracy": "accuracy, one training template, mean over the templates",
    "train_template_worst": "accuracy, the worst training template",
    "held_out_template_accuracy": "accuracy, one held-out template, mean over the templates",
    "held_out_template_worst": "accuracy, the worst held-out template",
    "bare_word_accuracy": "accuracy, bare words (held out)",
    "bare_numeral_accuracy": "accuracy, bare numerals (held out)",
    "own_digit_similarity": "mean cosine, image and held-out sentence of its digit",
    "other_sentence_similarity": "mean cosine, image and sentence of no digit",
    "pair_auroc": "AUROC of telling these two kinds of pair apart",
    "sentence_auroc": "AUROC of telling digit sentences from others by their best image",
}


def sentence_table(name: str) -> str:
    """What sentences.py has measured."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return NOT_MEASURED
    result = json.loads(path.read_text())
    lines = ["| on the test split | mean ± std |", "|---|---|"]
    for key, title in SENTENCE_ROWS.items():
        row = result["results"][key]
        spread = f" ± {row['std']:.3f}" if row["std"] is not None else ""
        number = percent(row) if "accuracy" in key or "worst" in key else f"{row['mean']:.3f}{spread}"
        lines.append(f"| {title} | {number} |")
    seeds, counts = ", ".join(map(str, result["seeds"])), result["templates"]
    lines.append("")
    lines.append(
        f"Seeds {seeds}, {counts['train']} training and {counts['held_out']} held-out templates, {counts['other']}"
        f" sentences of no digit; {about(result)}"
    )
    return "\n".join(lines)


def text_encoder_lines(result: dict) -> list[str]:
    """What text_encoders.py has measured."""
    return [
        f"| training step, batch {result['batch_size']} | {result['device']}, {result['threads']} threads |",
        "|---|---|",
        f"| table | {fixed(result['table_ms'], 0)} ms |",
        f"| `plus`, frozen ALBERT-base | {fixed(result['frozen_plus_ms'], 0)} ms,"
        f" {result['frozen_plus_to_table']:.2f} times the table |",
        f"| `plus`, ALBERT-base trained too (random weights; one step, after one to warm up) |"
        f" {fixed(result['albert_base_step_seconds'], 1)} s,"
        f" {result['albert_base_peak_gib']:.1f} GiB at most |",
        f"\nThe first two as medians of {result['steps']} steps taken in turn; memory is the process's, on a GPU"
        f" what torch allocated; {about(result)}",
    ]


def speed_lines(result: dict) -> list[str]:
    """What speed.py has measured."""
    lines = ["| recipe | median seconds (min to max) | times ours | test accuracy | seeds | note |"]
    lines.append("|---|---|---|---|---|---|")
    for row in result["recipes"]:
        spread = f" ± {100 * row['accuracy_std']:.2f}" if row["accuracy_std"] is not None else ""
        lines.append(
            f"| {row['recipe']} | {fixed(row['seconds'], 1)} ({fixed(row['seconds_min'], 1)} to"
            f" {fixed(row['seconds_max'], 1)})"
            f" | {row['ratio_to_ours']:.2f} | {row['accuracy_mean']:.2%}{spread} | {row['seeds']} | {row['note']} |"
        )
    if "roofline" in result:
        step, roof = result["open_clip_step"], result["roofline"]
        lines.append("")
        lines.append(
            f"Whole training steps at batch {step['batch_size']} with the same two towers: ours"
            f" {step['images_per_second']['ours']:,.0f} images/s, in open_clip's model with its ClipLoss"
            f" {step['images_per_second']['open_clip']:,.0f}, {step['ours_to_open_clip']:.2f} times."
            " The step of the default with AdamW:"
            f" {roof['step_gflop']:.1f} GFLOP at {roof['step_gflop_per_second']:.0f} GFLOP/s,"
            f" {roof['share_of_matrix_product']:.0%} of a large {roof['dtype']} matrix product in the same process"
            f" ({roof['matrix_product_gflop_per_second']:.0f} GFLOP/s)."
        )
    return [*lines, f"\n{about(result)}"]


def inference_lines(result: dict) -> list[str]:
    """What inference.py has measured."""
    lines = ["| `encode_image` of | MFLOP an image | images/s | time to that of a matrix product of its FLOPs |"]
    lines.append("|---|---|---|---|")
    for row in result["rows"]:
        name = row["encoder"]
        title = name if " " in name else f"`--preset {name}`"
        lines.append(
            f"| {title} | {row['mflop_an_image']:.2f} | {row['images_per_second']:,.0f}"
            f" | {row['times_the_product']:.1f} |"
        )
    found = ", ".join(f"`{row['text']}` {row['milliseconds']:.2f} ms" for row in result["find"])
    lines.append(f"\nFrom a text to the ten nearest of 10,000 images whose vectors are there: {found}.")
    return [*lines, f"\n{about(result)}"]


# What was weighed for --preset accuracy: short runs, chosen between by validation alone.
TRIED = {
    "tried-adamw": "AdamW, width 16",
    "tried-muon": "Muon, width 16",
    "tried-width": "Muon, width 32, bf16",
    "tried-flatten": "the same, the last map flattened instead of averaged",
    "tried-elastic": "Muon, width 32, bf16, elastic warps",
}


def tried_table() -> str:
    """Validation accuracy of each thing tried, beside the first."""
    lines = ["| tried | validation accuracy | to the first | seeds | command, commit |", "|---|---|---|---|---|"]
    first = None
    for name, title in TRIED.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            lines.append(f"| {title} |{f' {NOT_MEASURED} |' * 4}")
            continue
        result = json.loads(path.read_text())
        row = result["results"]["val_digit_accuracy"]
        first = row["mean"] if first is None else first
        lines.append(
            f"| {title} | {percent(row)} | {100 * (row['mean'] - first):+.2f} | {', '.join(map(str, result['seeds']))}"
            f" | `{result['command']}`, {result['commit']} |"
        )
    return "\n".join(lines)


def tries_table() -> str:
    """What short trainings for --preset accuracy have reached on held-out training images."""
    columns = {"error": "error", "nll": "negative log likelihood", "mean_corruption_error": "mean corruption error"}
    return rows_of_tries("tries", TRIES, columns, ", on one thread")


def whole_table() -> str:
    """What whole trainings of --preset accuracy have reached on test."""
    columns = {"error": "error", "mean_corruption_error": "mean corruption error"}
    columns |= {"without_turns_and_shifts": "without rotation and translation", "uci_error": "error on UCI digits"}
    return rows_of_tries("whole", ROWS, columns)


def rows_of_tries(file: str, tries: dict[str, Try], columns: dict[str, str], note: str = "") -> str:
    """The mean over the seeds of each row, with its spread."""
    path = RESULTS / f"{file}.json"
    if not path.exists():
        return f"{NOT_MEASURED} (`python -m benchmarks.{file}` fills this in)."
    result = json.loads(path.read_text())
    lines = [f"| tried | {' | '.join(columns.values())} | seeds | device, torch, commit, date |"]
    lines.append("|" + "---|" * (len(columns) + 3))
    for name, of_seeds in result["tries"].items():
        rows = list(of_seeds.values())
        spreads = {column: spread([row[column] for row in rows]) for column in columns}
        cells = [f"{row['mean']:.4f}" if column == "nll" else percent(row) for column, row in spreads.items()]
        measured = {f"{row['device']}, {row['torch_version']}, {row['commit']}, {row['date']}" for row in rows}
        cells += [", ".join(of_seeds), "; ".join(sorted(measured))]
        lines.append(f"| {tries[name].title} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"\n`{result['command']}`{note}."])


def waiting_table() -> str:
    """Steps with threads that spin and that sleep, on a quiet and on a busy machine."""
    path = RESULTS / "waiting.json"
    if not path.exists():
        return f"{NOT_MEASURED} (`python -m benchmarks.waiting` fills this in)."
    result = json.loads(path.read_text())
    ms = {(row["preset"], row["machine"], row["wait"]): f"{1000 * row['seconds']:.0f} ms" for row in result["rows"]}
    lines = ["| a training step of | quiet, spinning | quiet, asleep | busy, spinning | busy, asleep |"]
    lines.append("|" + "---|" * 5)
    for preset in dict.fromkeys(row["preset"] for row in result["rows"]):
        cells = [ms[preset, machine, wait] for machine in ("quiet", "busy") for wait in ("spinning", "asleep")]
        lines.append(f"| {preset} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"\n{about(result)}, {result['cores']} cores, one of which is busy or not"])


def cost_lines(result: dict) -> list[str]:
    """What cost.py has measured."""
    lines = ["| batch size | `embed_dim` | chunk size | images/s | memory of a step |\n|---|---|---|---|---|"]
    for row in result["rows"]:
        chunk = f"{row['chunk_size']:,}" if row["chunk_size"] else "the batch"
        lines.append(
            f"| {row['batch_size']:,} | {row['embed_dim']} | {chunk} | {row['images_per_second']:,.0f}"
            f" | {row['step_mib']:,.0f} MiB |"
        )
    return [*lines, f"\n{about(result)}"]


def profile_lines(result: dict) -> list[str]:
    """What profile_step.py has measured."""
    lines = ["| a training step | batch | median | the first three steps together |\n|---|---|---|---|"]
    for row in result["variants"]:
        lines.append(
            f"| {row['variant']} | {row['batch_size']} | {fixed(row['ms'], 1)} ms | {row['first_seconds']:.1f} s |"
        )
    extra = result["measures"]
    lines.append(
        f"\nThe measures of an epoch beside accuracy (mAP, R-precision, ECE, modality gap, effective rank, each"
        f" digit's accuracy) take {extra['extra_ms']:.0f} ms, {extra['share_of_epoch']:.2%} of a default epoch."
    )
    return [*lines, f"\n{about(result)}"]


PROFILE_OF_GPU = "![Shares of a training step's time on a GPU](profile-cuda.png)"  # that of the CPU stands above


def losses_table(encoder: str) -> str:
    """What losses.py has measured."""
    path = RESULTS / f"losses-{encoder}.json"
    if not path.exists():
        return NOT_MEASURED

    def plain(row: dict) -> str:
        return f"{row['mean']:.3f}" + (f" ± {row['std']:.3f}" if row["std"] is not None else "")

    result = json.loads(path.read_text())
    lines = [
        f"| batch | loss | best learning rate | validation accuracy | less that of `{result['set_against']}`, points"
        " (95% interval) | mAP, text → image | final excess loss | temperature | modality gap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        mean, low, high = (100 * x for x in (row["difference"]["mean"], *row["difference"]["interval"]))
        less = "" if row["loss"] == result["set_against"] else f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
        lines.append(
            f"| {row['batch_size']:,} | `{row['loss']}` | {row['lr']} | {percent(row['digit_accuracy'])} | {less}"
            f" | {percent(row['mean_average_precision'])} | {plain(row['excess_loss'])} | {plain(row['temperature'])}"
            f" | {plain(row['modality_gap'])} |"
        )
    model = f", sentences through {result['text_model']}" if result["text_model"] else ""
    lines.append(
        f"\n{result['epochs']} epochs of a small CNN without augmentation, 64 dimensions{model}, seeds"
        f" {', '.join(map(str, result['seeds']))}; {about(result)}"
    )
    return "\n".join(lines)


def evaluation_table() -> str:
    """What evaluate.py has told of a model of the default and of --preset accuracy."""
    columns, told = {}, []
    for title, name in (("default", "evaluation-default"), ("`--preset accuracy`", "evaluation")):
        path = RESULTS / f"{name}.json"
        columns[title] = {}
        if path.exists():
            result = json.loads(path.read_text())
            columns[title] = evaluation_rows(result)
            told.append(f"{title}: {about(result['about'])}")
    if not told:
        return NOT_MEASURED
    names = dict.fromkeys(name for rows in columns.values() for name in rows)
    lines = [f"| on the test split | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name in names:
        cells = (rows.get(name, "" if rows else NOT_MEASURED) for rows in columns.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "; ".join(told)])


def evaluation_rows(result: dict) -> dict[str, str]:
    def share(value: dict) -> str:
        low, high = value["interval"]
        return f"{value['accuracy']:.2%} (95%: {low:.2%} to {high:.2%})"

    retrieval, geometry, robust = result["retrieval"], result["geometry"], result["robustness"]
    learned, fitted = result["calibration"]["learned"], result["calibration"]["fitted"]
    rows = {"accuracy, nearest caption": share(result["classification"])}
    if "described" in result:
        told, ranks = result["described"], result["described"]["rank_correlation"]
        rows |= {
            "digit, thickness and slant, seen combinations": share(told["seen"]),
            "unseen combinations": share(told["unseen"]),
            "seen combinations, clear images": share(told["seen_clear"]),
            "unseen combinations, clear images": share(told["unseen_clear"]),
            "text → image mAP of unseen combinations": f"{told['unseen_map']:.2%}",
            "rank correlation with thickness, with slant, the worst digit": f"{ranks['thickness']['minimum']:.3f},"
            f" {ranks['slant']['minimum']:.3f}",
        }
    rows |= {
        "text → image mAP": f"{retrieval['text_to_image']['mean_average_precision']:.2%}",
        "image → text recall@1": f"{retrieval['image_to_text']['recall_at_1']:.2%}",
        "image → image mAP": f"{retrieval['image_to_image']['mean_average_precision']:.2%}",
        "logistic regression on frozen embeddings": share(result["probes"]["linear"]),
        "20 nearest neighbours": share(result["probes"]["nearest_neighbours"]),
        "ECE at the learned temperature, after scaling": f"{learned['ece']:.2%}, {fitted['ece']:.2%}",
        "modality gap": f"{geometry['modality_gap']:.3f}",
        "effective rank of the images": f"{geometry['effective_rank_images']:.1f} of {geometry['embed_dim']}",
        "mean corruption error": f"{robust['mean_corruption_error']:.1%}",
        "UCI digits, not trained on": share(result["another_hand"]),
    }
    for name, one in result["open_set"].items():
        best = one and one.get("auroc_of_best_similarity", one["auroc"])
        rows[f"AUROC of the best similarity, digits against {name}"] = f"{best:.3f}" if one else NOT_MEASURED
        if "described" in result:
            rows[f"less the best to no digit, against {name}"] = f"{one['auroc']:.3f}" if one else NOT_MEASURED
    return rows


def described_table() -> str:
    """What described.py has measured: a row for each kind of model. Nothing where it has not run."""
    path = RESULTS / "described.json"
    if not path.exists():
        return ""
    result = json.loads(path.read_text())
    columns = ("seen", "unseen", "seen_clear", "unseen_clear", "harmonic_mean", "digit")
    titles = ("seen", "unseen", "seen, clear", "unseen, clear", "harmonic mean", "digit alone")
    lines = [f"| on the test split | {' | '.join(titles)} | seeds |", f"|---|{'---|' * len(titles)}---|"]
    for place, row in enumerate(result["rows"]):
        seeds = f"{', '.join(map(str, row['seeds']))}"
        if row["unseen_seeds"] != [0]:
            seeds += f"; unseen cells {', '.join(map(str, row['unseen_seeds']))}"
        cells = [f"**{percent(row[name])}**" if place == 0 else percent(row[name]) for name in columns]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {seeds} |")
    bounds = [f"{name.replace('_', ', ')} {low:.2%} to {high:.2%}" for name, (low, high) in result["intervals"].items()]
    ranks, outer = result["rank_correlation"], result["rank_correlation_outer"]
    aurocs = [f"{name.replace('_', ' ')} {one['auroc']:.3f}" for name, one in result["open_set"].items()]
    note = (
        f"\n95% intervals of one model of the first row: {'; '.join(bounds)}. Its rank correlation with thickness is"
        f" {ranks['thickness']['minimum']:.3f} for the worst digit, with slant {ranks['slant']['minimum']:.3f} (by the"
        f" words of the outer halves, as italic, {outer['thickness']['minimum']:.3f} and"
        f" {outer['slant']['minimum']:.3f}); text →"
        f" image mAP of the captions never seen {result['unseen_map']:.2%}; AUROC, digits against {', '.join(aurocs)}."
    )
    if free := result["sentences"]:
        best, ten, chance = (f"{value:.0%}" for value in (
            free["best_image_fits"]["mean"], free["precision_at_10"]["mean"], free["precision_at_10_by_chance"]
        ))  # fmt: skip
        note += (
            f" {len(free['each'])} sentences with words that no caption has, read by `plus`: the best of 10,000 images"
            f" fits {best} of them, of the ten best {ten} (by chance {chance})."
        )
    note += f" `{result['trained_by']}`, {machine(result)}, torch {result['torch_version']}, commit {result['commit']}"
    return "\n".join([*lines, f"{note}, {result['date']}"])


def named_attributes_table() -> str:
    """What named_attributes.py has measured."""
    path = RESULTS / "named-attributes.json"
    if not path.exists():
        return NOT_MEASURED
    result = json.loads(path.read_text())
    lines = [
        "| loss | captions name | modality gap | effective rank of the images | of the captions"
        " | thickness mAP within a digit | slant mAP within a digit |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        plain = [f"{row[name]['mean']:.2f} ± {row[name]['std'] or 0:.2f}" for name in NAMED_ATTRIBUTES]
        cells = [*plain, percent(row["thickness_map"]), percent(row["slant_map"])]
        lines.append(f"| `{row['loss']}` | {row['captions_name']} | {' | '.join(cells)} |")
    seeds = ", ".join(map(str, result["seeds"]))
    return "\n".join([*lines, "", f"Seeds {seeds}, {result['epochs']} epochs; {about(result)}"])


def generation_table(whole: bool) -> str:
    """What generation.py has measured; `whole`: with what stands outside of the table."""
    path = RESULTS / "generation.json"
    if not path.exists():
        return NOT_MEASURED
    result = json.loads(path.read_text())
    names = ("digit_agreement", "attribute_agreement", "attribute_agreement_unseen")
    lines = [
        "| drawn from test captions of digit, thickness and slant | digit as asked | thickness and slant as asked"
        " | the same, unseen cells | Fréchet distance | precision | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    own = result["over_seeds"]
    cells = [percent(own[name]) for name in names] + [
        f"{own[name]['mean']:.2f} ± {own[name]['std'] or 0:.2f}" for name in ("frechet", "precision", "recall")
    ]
    lines.append(f"| **text → prior → decoder** | {' | '.join(cells)} |")
    for name, row in result["others"].items():
        if not whole and name not in ("text vectors straight into the decoder, no prior", "real images"):
            continue
        cells = [f"{row[one]:.2%}" for one in names]
        cells += [f"{row[one]:.2f}" for one in ("frechet", "precision", "recall")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if not whole:
        return "\n".join([*lines, "", about(result)])
    near, few = result["nearest_training_image"], result["by_steps"]
    steps = ", ".join(
        f"{row['steps']}: {row['seconds_16']:.2f} s for 16 and {row['seconds_10000']:.0f} s for 10,000,"
        f" {row['all_agreement']:.1%} all as asked, Fréchet {row['frechet']:.2f}"
        for row in few
    )
    note = (
        f"\nThe judge of digits, trained on pixels, is right on {result['judge_accuracy']:.2%} of the test images. A"
        f" classifier trained on {result['samples']:,} drawn images alone reaches {result['trained_on_drawn']:.2%} on"
        f" the real test images, one trained on as many real ones {result['trained_on_real']:.2%}. Median distance to"
        f" the nearest training image, root mean square of the pixels: drawn {near['drawn']:.3f}, test images"
        f" {near['test']:.3f}. {result['steps']} steps above; by steps: {steps}. Seeds of the noise"
        f" {', '.join(map(str, result['seeds']))}; the generator took {result['generator']['train_seconds']:.0f} s to"
        f" train. {about(result)}"
    )
    return "\n".join([*lines, note])


def reached_table() -> str:
    """The first screen's table: what each part reaches, with where its figures come from."""
    names = ("described", "generation", "strokes", "speech")
    if not all((RESULTS / f"{name}.json").exists() for name in names):
        return NOT_MEASURED
    described, drawn, strokes, speech = (json.loads((RESULTS / f"{name}.json").read_text()) for name in names)
    seeds, clips = described["spread"], strokes["over_clips"]
    rows = (
        ("the digit alone, of ten captions", percent(seeds["digit"]), described),
        ("digit, thickness and slant, of 90 captions: combinations seen", percent(seeds["seen"]), described),
        ("**combinations never trained**", f"**{percent(seeds['unseen'])}**", described),
        ("the same, clear cases", percent(seeds["unseen_clear"]), described),
        ("a text drawn: the digit is as asked, says a judge", percent(drawn["over_seeds"]["digit_agreement"]), drawn),
        ("the same: thickness and slant", percent(drawn["over_seeds"]["attribute_agreement"]), drawn),
        ("pen strokes by captions, trained with drawings alone", percent(clips["emergent"]), strokes),
        ("speech, a voice never heard", percent(speech["over_clips"]["held_out_speakers_mean"]), speech),
    )
    lines = ["| on the test split | right | commit |", "|---|---|---|"]
    lines += [f"| {name} | {figure} | {result['commit']} |" for name, figure, result in rows]
    return "\n".join(lines)


def strokes_table() -> str:
    """What strokes.py has measured."""
    path = RESULTS / "strokes.json"
    if not path.exists():
        return NOT_MEASURED
    result = json.loads(path.read_text())
    own = result["over_clips"]
    ways = ("", "image_to_strokes_")
    recalls = [percent(own[f"{way}recall_at_{k}"]) for way in ways for k in (1, 5)]
    lines = [
        f"| {result['recordings']:,} test recordings | nearest caption | strokes → own drawing, recall@1 | @5"
        " | drawing → own strokes, recall@1 | @5 |",
        "|---|---|---|---|---|---|",
        f"| drawn, through the image tower | {percent(own['drawings'])} | | | | |",
        f"| **stroke tower, aligned to drawings alone** | **{percent(own['emergent'])}** | {' | '.join(recalls)} |",
        f"| the same with shuffled pairs: the control | {result['control']:.2%} | {result['control_recall_at_1']:.2%}"
        " | | | |",
        f"| the same tower trained on labels, no CLIP | {result['trained_on_labels']:.2%} | | | | |",
    ]
    digits = ", ".join(f"{digit} {value:.0%}" for digit, value in enumerate(result["by_digit"]["emergent"]))
    note = f"The stroke tower of the first CLIP, by digit: {digits}. ± over {result['clips']} CLIPs,"
    note += f" {result['train_seconds']:.0f} s of training each;"
    return "\n".join([*lines, "", f"{note} {about(result)}"])


def speech_table(whole: bool) -> str:
    """What speech.py has measured; `whole`: with a row for each voice."""
    path = RESULTS / "speech.json"
    if not path.exists():
        return NOT_MEASURED
    result = json.loads(path.read_text())
    names = ("accuracy", "speech_to_image_r_precision", "image_to_speech_recall_at_1", "image_to_speech_recall_at_5")
    lines = [
        "| not trained on | nearest caption | speech → image, R-precision | image → speech, recall@1 | @5 |",
        "|---|---|---|---|---|",
    ]
    for which, row in result["by_voice"].items():
        if not whole and which != "official":
            continue
        name = "the official test split (voices known)" if which == "official" else f"all that {which} said"
        lines.append(f"| {name} | {' | '.join(percent(row[one]) for one in names)} |")
    over = result["over_clips"]
    mean = [over["held_out_speakers_mean"], *(over[f"held_out_{name}"] for name in names[1:])]
    lines.insert(-1, f"| **mean of the six voices** | **{percent(mean[0])}** | {' | '.join(map(percent, mean[1:]))} |")
    note = (
        f"{' and '.join(result['development_voices'])} are the voices that settings were chosen on; the mean of the"
        f" other four is {percent(over['held_out_speakers_mean_not_developed_on'])}. ± over {result['clips']}"
        f" CLIPs, {result['train_seconds']:.0f} s of training each; {about(result)}"
    )
    return "\n".join([*lines, "", note])


NAMED_ATTRIBUTES = ("modality_gap", "rank_of_images", "rank_of_captions")


def versions_table() -> str:
    """What versions.py has measured: an older commit and this one, run in turn."""
    paths = sorted(RESULTS.glob("versions-*.json"))
    if not paths:
        return NOT_MEASURED
    lines = [
        "| compared | commit, command | median training (min to max) | seconds to the old | test accuracy"
        " | validation accuracy | seeds | device, torch, date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in paths:
        result = json.loads(path.read_text())
        for side, ratio in (("old", 1.0), ("new", result["new_to_old"])):
            row, times = result[side], result[side]["train_seconds"]["values"]
            lines.append(
                f"| {path.stem.removeprefix('versions-')}, {side} | {row['commit']}, `{row['command']}`"
                f" | {row['median_seconds']:.1f} s ({min(times):.1f} to {max(times):.1f}) | {ratio:.2f}"
                f" | {percent(row['test_digit_accuracy'])} | {percent(row['val_digit_accuracy'])}"
                f" | {', '.join(map(str, result['seeds']))}"
                f" | {result['device']}, {result['torch_version']}, {result['date']} |"
            )
    return "\n".join(lines)


BLOCKS = {
    "evaluation": evaluation_table,
    "speed": lambda: of_devices("speed", "python -m benchmarks.speed", speed_lines),
    "speed-slow": lambda: of_devices("speed-slow", "python -m benchmarks.speed --slow", speed_lines),
    "inference": lambda: of_devices("inference", "python -m benchmarks.inference", inference_lines),
    "described": described_table,
    "named-attributes": named_attributes_table,
    "generation": lambda: generation_table(whole=False),
    "generation-whole": lambda: generation_table(whole=True),
    "strokes": strokes_table,
    "speech": lambda: speech_table(whole=False),
    "speech-whole": lambda: speech_table(whole=True),
    "reached": reached_table,
    "results": lambda: seed_table("default", "digit", "plus", "accuracy", "accuracy-wide"),
    "versions": versions_table,
    "presets-cuda": lambda: seed_table(*PRESETS_CUDA),
    "tried": tried_table,
    "tries": tries_table,
    "whole": whole_table,
    "waiting": waiting_table,
    "cost": lambda: of_devices("cost", "python -m benchmarks.cost", cost_lines),
    "profile": lambda: of_devices("profile", "python -m benchmarks.profile_step", profile_lines, PROFILE_OF_GPU),
    "losses-plus": lambda: losses_table("plus"),
    "sentences": lambda: sentence_table("plus-sentences"),
    "text-encoders": lambda: of_devices("text-encoders", "python -m benchmarks.text_encoders", text_encoder_lines),
}


def render(text: str) -> str:
    for name, table in BLOCKS.items():
        marker = re.compile(f"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        block = table()
        text = marker.sub(lambda match, block=block: match[1] + block + "\n" * bool(block) + match[2], text)
    return text


def main() -> int:
    parser = parser_of(__doc__, device=False)
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
