import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from scipy.io import wavfile

import generate
from attributes import combination_ids, measure
from captions import image_facts, multi_hot
from clip import CLIP
from conftest import first_tenth, tensors
from evaluation.claims import parse_claims
from generation import train as training
from generation.features import agreement, precompute, sample_captions
from generation.model import Flow, Generator, best_candidates
from generation.rows import Row, path_row
from my_utils import InputError


def tiny_clip(seed=0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(embed_dim=8, width=4, image_encoder="fast").eval()


@pytest.fixture(scope="module", autouse=True)
def tiny_generators():
    """All generators of this module have tiny networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Generator.__init__, "__defaults__", (6, 2, 16, 1, 16, 1))  # latent_dim, autoencoder_width, ...
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_generators) -> SimpleNamespace:
    """A CLIP and its generator, untrained, as files."""
    folder, clip = tmp_path_factory.mktemp("generator"), tiny_clip()
    clip.save(folder / "clip.pth")
    torch.manual_seed(0)
    generator = Generator(8, clip.fingerprint()).eval()
    generator.save(folder / "generator.pth")
    models = ["--clip", str(folder / "clip.pth"), "--generator", str(folder / "generator.pth"), "--device", "cpu"]
    return SimpleNamespace(folder=folder, clip=clip, generator=generator, models=models)


# ---- flows, agreement, and the file ----


def test_a_flow_learns_which_data_belong_to_each_condition():
    torch.manual_seed(0)
    flow = Flow(dim=2, condition_dim=1, width=32, blocks=2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(300):
        side = torch.randint(2, (256, 1)) * 2.0 - 1
        loss = flow.loss(torch.cat([2 * side, torch.zeros_like(side)], dim=1) + 0.3 * torch.randn(256, 2), side)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for side in (1, -1):
        samples = flow.sample(torch.full((200, 1), float(side)), torch.randn(200, 2), steps=10)
        assert (side * samples[:, 0] > 0).float().mean() > 0.98
        assert samples.mean(dim=0) == pytest.approx(torch.tensor([2.0 * side, 0.0]), abs=0.2)
        assert samples.std(dim=0) == pytest.approx(torch.tensor([0.3, 0.3]), abs=0.12)


def test_of_the_candidates_the_one_of_which_the_text_is_most_probably_true_is_kept(saved):
    digits = saved.clip.zero_shot_classifier()
    candidates = digits[[3, 7, 1, 7, 2, 3]]
    claims = torch.stack([multi_hot("seven"), multi_hot("three")])
    assert best_candidates(saved.clip, candidates, claims).tolist() == [1, 5]
    assert best_candidates(saved.clip, candidates, multi_hot().expand(2, -1)).tolist() == [0, 3], "nothing to choose by"
    thick = saved.clip.embed_descriptions(saved.clip.captions.parts[1].ids)[[0, 4, 2]]
    assert best_candidates(saved.clip, thick, multi_hot("thick")[None]).tolist() == [1]


def test_more_candidates_agree_better_with_the_text(saved):
    ids = saved.clip.captions.digit_ids.repeat_interleave(4)
    texts, claims, probs = saved.clip.embed_descriptions(ids), saved.clip.captions.claims[ids], []
    for best_of in (1, 6):
        images = saved.generator.sample(saved.clip, texts, claims, torch.Generator().manual_seed(0), best_of)
        probs.append(saved.clip.log_probs(saved.clip.encode_image(images), claims).diagonal().mean().item())
    assert probs[0] < probs[1]


def test_a_path_stays_on_the_sphere_from_one_embedding_to_the_other():
    start, end = F.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    path = path_row(Row("", None, "", start.expand(5, -1)), end, "").embeds
    assert torch.allclose(path[[0, -1]], torch.stack([start, end]), atol=1e-6)
    assert path.norm(dim=1) == pytest.approx(torch.ones(5), abs=1e-6)


def test_a_generated_image_agrees_if_all_claims_of_its_caption_are_facts():
    images = torch.zeros(2, 1, 28, 28)
    images[0, 0, 4:24, 13:15] = 1  # two pixels wide, upright
    images[1, 0, 4:24, 10:18] = 1  # eight pixels wide
    facts = image_facts(torch.tensor([1, 1]), measure(images))
    assert agreement(facts, parse_claims("one")).tolist() == [True, True]
    assert agreement(facts, parse_claims("a thick one")).tolist() == [False, True]
    claims = torch.stack([multi_hot("thin", "one"), multi_hot("two", "thick")])
    assert agreement(facts, claims).tolist() == [True, False]


def test_a_saved_generator_samples_the_same_images(saved):
    clip = CLIP.load(saved.folder / "clip.pth")
    texts = clip.encode_text(["a thick seven", "a thin zero"]).detach()
    loaded = Generator.load(saved.folder / "generator.pth", clip)
    claims = torch.stack([parse_claims("a thick seven"), parse_claims("a thin zero")])
    one, other = (x.sample(clip, texts, claims, torch.Generator().manual_seed(3)) for x in (saved.generator, loaded))
    assert one.shape == (2, 1, 28, 28)
    assert 0 <= one.min() < one.max() <= 1
    assert torch.equal(one, other)


def test_a_generator_of_another_clip_and_other_files_are_refused(saved, tmp_path):
    path = saved.folder / "generator.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["prior.proj_out.bias"].fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "nan.pth")
    refused = {
        tmp_path / "missing.pth": f"{tmp_path}/missing.pth.*make generator",
        tmp_path / "nan.pth": "not finite",
        saved.folder / "clip.pth": "of a CLIP, not of a generator",
    }
    for file, message in refused.items():
        with pytest.raises(InputError, match=message):
            Generator.load(file, saved.clip)
    with pytest.raises(InputError, match="another CLIP"):
        Generator.load(path, tiny_clip(seed=1))


# ---- generate.py ----


@pytest.mark.parametrize(
    ("flags", "name", "printed"),
    [
        (["a thick seven", "seven $^^$", "--count", "3"], "texts", " of 3 are seven, thick"),
        (["a scribble", "--count", "3"], "texts", "0 of 3 are scribble"),
        (["a digit", "--count", "3"], "texts", "a digit: not judged"),
        (["not a seven", "--count", "3"], "texts", " of 3 are not seven"),
        (["not a thick seven", "--count", "3"], "texts", "not a thick seven: not judged"),
        (["--image", "5", "--count", "2"], "variations_5", "test image 5: a medium one leaning right: "),
        (["--image", "3", "--to", "8", "--count", "4"], "path_3_to_8", "4 images in"),
        (["--image", "0", "--direction", "thin", "thick"], "direction_0", "16 images in"),
    ],
)
def test_generate_writes_a_sheet_and_reports_agreement(saved, data_path, tmp_path, capsys, flags, name, printed):
    generate.main([*flags, *saved.models, "--pictures", str(tmp_path), "--data-path", str(data_path)])
    assert [path.name for path in tmp_path.iterdir()] == [f"generated_{name}.png"]
    assert printed in capsys.readouterr().out


def test_generate_shows_what_a_recording_says(saved, tmp_path, capsys):
    clip = CLIP.load(saved.folder / "clip.pth")
    clip.add_tower("speech")
    clip.eval().save(tmp_path / "clip.pth")
    wavfile.write(tmp_path / "tone.wav", 8_000, (10_000 * torch.arange(4_000).div(3).sin()).short().numpy())
    flags = [*saved.models, "--clip", str(tmp_path / "clip.pth"), "--pictures", str(tmp_path), "--count", "2"]
    generate.main(["--speech", str(tmp_path / "tone.wav"), *flags])
    assert "tone.wav: heard as " in capsys.readouterr().out
    assert (tmp_path / "generated_speech.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments TEXT --image --speech is required"),
        (["seven", "--image", "3"], "--image: not allowed with argument TEXT"),
        (["seven \udcff"], "no UTF-8"),
        (["seven", "--direction", "thin", "thick"], "give --image N too"),
        (["--image", "10000"], "from 0 to 9999"),
        (["seven", "--count", "0"], "from 1 to 100"),
        (["seven"] * 41, "room for 40 texts"),
        ([*["seven"] * 5, "--count", "81"], "and 400 images"),
        (["a gothic seven"], "gothic"),
        (["--speech", "missing.wav"], r"there is no file /.*missing\.wav"),
    ],
)
def test_generate_refuses_invalid_flags_and_texts(saved, data_path, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        generate.main([*flags, *saved.models, "--data-path", str(data_path), "--pictures", str(tmp_path)])


# ---- training ----


@pytest.fixture
def train_tiny(saved, data_path, tmp_path, monkeypatch):
    """Trains for three epochs of four steps, on a tenth of MNIST."""
    monkeypatch.setattr(training, "load_mnist", lambda split, path, device: first_tenth(split, data_path, device))
    monkeypatch.setattr(training, "N_VALIDATED", 20)
    fixed = ["--clip", str(saved.folder / "clip.pth"), "--runs-dir", str(tmp_path), "--epochs", "3"]
    return lambda *flags: training.main([*fixed, "--device", "cpu", "--batch-size", "1000", *flags])


def interrupt_at(step: int, monkeypatch) -> None:
    """Ctrl-C in this step of the next run, counted from 0."""
    update, steps = training.update, iter(range(step))

    def update_or_interrupt(*arguments):
        if next(steps, None) is not None:
            return update(*arguments)
        monkeypatch.setattr(training, "update", update)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "update", update_or_interrupt)


def test_a_run_trains_each_part_and_resumes_to_the_same_bits(saved, train_tiny, tmp_path, monkeypatch):
    train_tiny("--run-name", "whole")
    first, second, third = json.loads((tmp_path / "whole" / "metrics.json").read_text())["history"]
    assert first.keys() >= {"autoencoder_loss", "grad_norm"}
    assert second.keys() >= {"decoder_loss", "prior_loss", "grad_norm", "val_agreement"}
    assert third["decoder_loss"] < second["decoder_loss"]
    best = Generator.load(tmp_path / "best_model.pth", saved.clip)
    assert best.metrics["run"] == "whole"
    assert best.metrics["val_agreement"] == third["val_agreement"]

    parts = str(tmp_path / "parts")
    for flags in (["--run-name", "parts"], ["--resume", parts]):  # in the second epoch, then in the third
        interrupt_at(5, monkeypatch)
        with pytest.raises(SystemExit, match="130"):
            train_tiny(*flags)
    tiny_clip(seed=1).save(tmp_path / "other.pth")
    with pytest.raises(InputError, match="another CLIP"):
        train_tiny("--resume", parts, "--clip", str(tmp_path / "other.pth"))
    train_tiny("--resume", parts)
    one, other = (torch.load(tmp_path / run / "last.pth", weights_only=True)["parts"] for run in ("whole", "parts"))
    assert all(torch.equal(*pair) for pair in zip(tensors(one), tensors(other), strict=True))


def test_images_of_unseen_combinations_take_no_part_and_captions_are_true(saved, data_path):
    split = first_tenth("train", data_path)
    data = precompute(saved.clip, split)
    assert not saved.clip.unseen.flatten()[combination_ids(data.digits, data.values)].any()
    assert 0.7 * len(split.images) < len(data.images) < 0.9 * len(split.images)
    _, ids = sample_captions(saved.clip, data, torch.arange(500))
    facts = image_facts(data.digits[:500], data.values[:500])
    assert agreement(facts, saved.clip.captions.claims[ids]).all()


def test_too_few_epochs_and_torchrun_are_refused(train_tiny, monkeypatch):
    with pytest.raises(InputError, match="from 3"):
        train_tiny("--epochs", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun --nproc-per-node 2 sets it
    with pytest.raises(InputError, match="one process"):
        train_tiny()
