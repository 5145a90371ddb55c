import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import wavfile

import generate
from benchmarks.generation import distance_to, frechet, precision_recall
from captions import IS_DIGIT, claims_of, described_captions, in_words
from clip import CLIP
from conftest import first_tenth, tensors
from evaluation.generation import drawn_facts, share_as_asked
from generator import Flow, Generator, slerp
from my_utils import InputError
from training import generator as training
from training.run import Interrupt
from training.settings import read_generator_flags


def tiny_clip(seed=0, **shape) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(**{"embed_dim": 8, "width": 4, "image_encoder": "fast"} | shape).eval()


def tiny_generator(clip) -> Generator:
    torch.manual_seed(0)
    sizes = {"latent_dim": 6, "autoencoder_width": 2, "decoder_width": 16, "decoder_blocks": 1}
    return Generator(8, clip.fingerprint(), **sizes, prior_width=16, prior_blocks=1).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> SimpleNamespace:
    """A CLIP and a generator of it, untrained, as files."""
    folder = tmp_path_factory.mktemp("generator")
    clip = tiny_clip()
    for modality in ("strokes", "speech"):
        clip.add_tower(modality)
    clip.eval().save(folder / "clip.pth")
    (folder / "way.txt").write_text("0 1\n1 1\n0.5 0\n")
    tone = 10_000 * np.sin(np.arange(4_000) / 3)
    wavfile.write(folder / "tone.wav", 8_000, tone.astype(np.int16))
    tiny_generator(clip).save(folder / "generator.pth")
    models = ["--clip", str(folder / "clip.pth"), "--generator", str(folder / "generator.pth")]
    return SimpleNamespace(folder=folder, clip=clip, models=models)


# ---- the flow, on data whose answer is known ----


def test_a_flow_learns_what_goes_with_each_condition():
    torch.manual_seed(0)
    flow = Flow(dim=2, condition_dim=1, width=32, blocks=2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(300):
        side = torch.randint(2, (256, 1)) * 2.0 - 1
        loss = flow.loss(torch.cat([2 * side, torch.zeros_like(side)], dim=1) + 0.3 * torch.randn(256, 2), side)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    asked = torch.tensor([[1.0], [-1.0]]).repeat(200, 1)
    drawn = flow.draw(asked, torch.randn(400, 2), guidance=1, steps=10)
    assert ((drawn[:, 0] > 0) == (asked[:, 0] > 0)).float().mean() > 0.98
    for side in (1, -1):
        own = drawn[asked[:, 0] == side]
        assert own.mean(dim=0) == pytest.approx(torch.tensor([2.0 * side, 0.0]), abs=0.2)
        assert own.std(dim=0) == pytest.approx(torch.tensor([0.3, 0.3]), abs=0.12)


def test_guidance_goes_further_from_what_is_drawn_without_a_condition():
    torch.manual_seed(0)
    flow = Flow(dim=1, condition_dim=1, width=16, blocks=1)
    for weight in (flow.out.weight, flow.blocks[0].modulation.weight):  # both start at 0
        torch.nn.init.normal_(weight)
    noise, condition = torch.randn(64, 1), torch.ones(64, 1)
    by_guidance = [flow.draw(condition, noise, guidance, steps=1) for guidance in (0, 1, 2)]
    without = flow.draw(flow.nothing.detach().expand(64, 1), noise, guidance=1, steps=1)
    assert torch.allclose(by_guidance[0], without, atol=1e-6)
    assert (by_guidance[2] - without).abs().mean() > (by_guidance[1] - without).abs().mean()


def test_slerp_stays_on_the_sphere_at_equal_steps():
    start, end = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    way = slerp(start, end, torch.linspace(0, 1, 5))
    assert torch.allclose(way[0], start, atol=1e-6)
    assert torch.allclose(way[-1], end, atol=1e-6)
    assert way.norm(dim=1) == pytest.approx(torch.ones(5), abs=1e-6)
    cosines = (way[1:] * way[:-1]).sum(dim=1)
    assert cosines == pytest.approx(cosines[:1].expand(4), abs=1e-5)
    assert slerp(start, start, torch.tensor([0.5]))[0] == pytest.approx(start, abs=1e-6)


# ---- what is asked for, and what was drawn ----


def test_each_sentence_of_training_claims_what_it_was_made_of():
    captions = described_captions()
    for i, sentence in enumerate(captions.sentences):
        if i % 7 == 0:  # a sample of all 9,700
            claims = int(captions.claims[i // captions.phrasings])
            assert claims_of(sentence) == claims & ~IS_DIGIT, sentence


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("A THICK 7", "seven, thick"),
        ("as if with a thin pen: eight, tilted left", "eight, thin, leaning left"),
        ("someone's umbrella", ""),
        ("left-leaning nines", "leaning left"),
    ],
)
def test_a_sentence_of_ones_own_is_read_by_its_words(text, claims):
    assert (in_words(claims_of(text)) if claims_of(text) else "") == claims


def test_a_drawn_image_is_measured_and_its_digit_judged():
    images = torch.zeros(2, 1, 28, 28)
    images[0, 0, 4:24, 13:15] = 1  # two pixels wide, upright
    images[1, 0, 4:24, 10:18] = 1  # eight
    facts = drawn_facts(images, lambda x: torch.tensor([1, 1]))
    assert [share_as_asked(facts, torch.tensor([claims_of(text)] * 2)) for text in ("one", "a thick one", "two")] == [
        1,
        0.5,
        0,
    ]


# ---- the file ----


def test_a_saved_generator_draws_the_same(saved):
    clip = CLIP.load(saved.folder / "clip.pth")
    texts = clip.encode_text(["a thick seven", "a thin zero"])
    drawn = [
        generator.draw(texts, torch.Generator().manual_seed(3))
        for generator in (tiny_generator(saved.clip), Generator.load(saved.folder / "generator.pth", clip))
    ]
    assert drawn[0].shape == (2, 1, 28, 28)
    assert drawn[0].min() >= 0
    assert drawn[0].max() <= 1
    assert torch.equal(*drawn)


def test_another_clip_or_another_file_is_refused(saved, tmp_path):
    with pytest.raises(InputError, match="another CLIP"):
        Generator.load(saved.folder / "generator.pth", tiny_clip(seed=1))
    with pytest.raises(InputError, match="make generator"):
        Generator.load(saved.folder / "missing.pth", saved.clip)
    with pytest.raises(InputError, match="not a generator"):
        Generator.load(saved.folder / "clip.pth", saved.clip)
    (tmp_path / "half.pth").write_bytes((saved.folder / "generator.pth").read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        Generator.load(tmp_path / "half.pth", saved.clip)


# ---- generate.py ----


@pytest.mark.parametrize(
    ("flags", "name", "said"),
    [
        (["a thick seven", "seven $^^$", "--count", "3"], "drawn_texts", "a thick seven: "),
        (["a scribble", "--count", "3"], "drawn_texts", "0 of 3, for the generator has learned digits alone"),
        (["a digit", "--count", "3"], "drawn_texts", "a digit: not judged"),
        (["--image", "5", "--count", "2"], "drawn_variations_5", "test image 5: one, "),
        (["--from", "3", "--to", "8", "--count", "4"], "drawn_way_3_to_8", "4 images in"),
        (["--image", "0", "--direction", "thin", "thick"], "drawn_direction_0", "16 images in"),
        (["--speech", "tone.wav", "--count", "2"], "drawn_speech", "tone.wav: heard as "),
        (["--strokes", "way.txt", "--count", "2"], "drawn_strokes", "way.txt: read as "),
    ],
)
def test_generate_writes_a_sheet_and_says_what_was_drawn(saved, data_path, tmp_path, capsys, flags, name, said):
    flags = [str(saved.folder / flag) if flag.endswith((".wav", ".txt")) else flag for flag in flags]
    flags += [*saved.models, "--device", "cpu", "--pictures", str(tmp_path), "--data-path", str(data_path)]
    generate.main(generate.read_flags(flags))
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say what to draw"),
        (["seven", "--image", "3"], "only one of these"),
        (["--speech", "a.wav", "--strokes", "b.txt"], "only one of these"),
        (["--speech", "a\udcff.wav"], "no UTF-8"),
        (["--from", "3"], "both --from N and --to M"),
        (["seven", "--direction", "thin", "thick"], "give --image N too"),
        (["--image", "10000"], "from 0 to 9999"),
        (["seven", "--count", "0"], "from 1 to 100"),
        (["seven"] * 41, "room for 40 texts"),
        (["7" * 101], "of 100 characters"),
    ],
)
def test_generate_refuses_what_cannot_be(flags, message):
    with pytest.raises(InputError, match=message):
        generate.read_flags(flags)


def test_a_direction_needs_two_texts(saved, data_path):
    flags = ["--image", "3", "--direction", "thin", "thin", "--data-path", str(data_path)]
    with pytest.raises(InputError, match="two texts that differ"):
        generate.main(generate.read_flags([*flags, *saved.models]))


@pytest.mark.parametrize(("flag", "name"), [("--speech", "way.txt"), ("--strokes", "tone.wav")])
def test_generate_names_a_recording_of_something_else(saved, flag, name):
    with pytest.raises(InputError, match=f"{name} (is no wav file|holds something else)"):
        generate.main(generate.read_flags([flag, str(saved.folder / name), *saved.models]))


def test_generate_names_a_word_that_the_table_cannot_read(saved):
    with pytest.raises(InputError, match="gothic"):
        generate.main(generate.read_flags(["a gothic seven", *saved.models]))


# ---- training ----


def train_tiny(saved, runs, *flags):
    given = ["--clip", str(saved.folder / "clip.pth"), "--runs-dir", str(runs), "--epochs", "3", "--device", "cpu"]
    return training.main(*read_generator_flags([*given, "--batch-size", "1000", *flags]))


@pytest.fixture
def small(monkeypatch, data_path):
    """A tenth of MNIST, and small networks."""
    monkeypatch.setattr(training, "load_mnist", lambda split, path, device: first_tenth(split, data_path, device))
    monkeypatch.setattr(training, "Generator", lambda dim, mark: tiny_generator_for(mark))
    monkeypatch.setattr(training.Generator, "load", Generator.load, raising=False)
    monkeypatch.setattr(training, "CHECKED", 20)


def tiny_generator_for(mark):
    sizes = {"latent_dim": 6, "autoencoder_width": 2, "decoder_width": 16, "decoder_blocks": 1}
    return Generator(8, mark, **sizes, prior_width=16, prior_blocks=1)


def test_a_run_trains_each_part_and_resumes_at_the_very_step(saved, small, tmp_path, monkeypatch, capsys):
    assert train_tiny(saved, tmp_path, "--run-name", "whole") == 0
    whole = torch.load(tmp_path / "whole" / "last.pth", weights_only=True)
    rows = whole["epochs"]
    assert rows[0]["autoencoder_loss"] > 0 == rows[0]["decoder_loss"]
    assert rows[1]["autoencoder_loss"] == 0 < min(rows[1]["decoder_loss"], rows[1]["prior_loss"])
    assert rows[2]["decoder_loss"] < rows[1]["decoder_loss"]
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["epochs"] == rows
    clip = CLIP.load(saved.folder / "clip.pth")
    assert Generator.load(tmp_path / "best_model.pth", clip).metrics["run"] == "whole"

    monkeypatch.setattr(Interrupt, "requested", True)  # Ctrl-C in the first step, then in the one after it
    assert train_tiny(saved, tmp_path, "--run-name", "parts") == 130
    assert train_tiny(saved, tmp_path, "--resume", str(tmp_path / "parts")) == 130
    tiny_clip(seed=1).save(tmp_path / "other.pth")
    with pytest.raises(InputError, match="another CLIP"):
        train_tiny(saved, tmp_path, "--resume", str(tmp_path / "parts"), "--clip", str(tmp_path / "other.pth"))
    monkeypatch.setattr(Interrupt, "requested", False)
    assert train_tiny(saved, tmp_path, "--resume", str(tmp_path / "parts")) == 0
    parts = torch.load(tmp_path / "parts" / "last.pth", weights_only=True)
    for one, other in zip(tensors(whole["parts"]), tensors(parts["parts"]), strict=True):
        assert torch.equal(one, other)


def test_images_of_unseen_cells_take_no_part(saved, data_path):
    split = first_tenth("train", data_path)
    sentences = training.read_all(saved.clip)
    material = training.look_at(saved.clip, split, sentences)
    cells = training.facts_of(material.digits, material.thickness, material.slant)[1]
    assert not saved.clip.unseen.flatten()[cells].any()
    assert 0.7 * len(split.images) < len(material.images) < 0.9 * len(split.images)
    _, claims = training.draw_texts(saved.clip, material, torch.arange(500))
    facts = training.facts_of(material.digits[:500], material.thickness[:500], material.slant[:500])[0]
    assert share_as_asked(facts, claims) == 1


@pytest.mark.parametrize(("flags", "message"), [(["--run-name", "a/b"], "plain folder"), (["--epochs", "2"], "from 3")])
def test_training_refuses_wrong_flags(flags, message):
    with pytest.raises(InputError, match=message):
        read_generator_flags(flags)


# ---- the benchmark's measures, on sets whose answer is known ----


def test_frechet_distance_of_gaussians_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(20_000, 3, generator=generator), torch.randn(20_000, 3, generator=generator)
    shift, scale = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 1.0])
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)
    # The squared distance of the means, 1, and of the standard deviations, (2 - 1)^2.
    assert frechet(one, other * scale + shift) == pytest.approx(2, abs=0.1)


def test_precision_and_recall_tell_missing_from_wrong_drawings():
    generator = torch.Generator().manual_seed(0)
    two = torch.cat([torch.randn(200, 2, generator=generator), torch.randn(200, 2, generator=generator) + 20])
    again = torch.randn(200, 2, generator=generator)
    precision, recall = precision_recall(two, again)  # one of the two clusters is never drawn
    assert precision > 0.9
    assert 0.4 < recall < 0.51
    precision, recall = precision_recall(again, two)  # half of what is drawn is far from all real ones
    assert 0.4 < precision < 0.51
    assert recall > 0.9


def test_copies_are_at_no_distance():
    known = torch.randint(256, (50, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert distance_to(known, known[:9].float() / 255) == pytest.approx(0, abs=1e-3)
    assert distance_to(known, 1 - known[:9].float() / 255) > 0.2
