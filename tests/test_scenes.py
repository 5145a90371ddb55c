"""Scenes of two digits: what is on the canvas, what captions say of it, and what training learns of word order."""

import itertools
import json

import pytest
import torch

import evaluate
import generate
import scenes
from captions import DIGIT_WORDS, UNSAID, match
from clip import CLIP
from conftest import metrics_of, read_events, train_here
from evaluation.scenes import (
    FORMS,
    evaluate_scenes,
    evaluation_scenes,
    is_nearest,
    other_digit,
    relation_texts,
    text_id,
)
from generation.train import main as generation_train
from modalities.train import main as modalities_train
from my_dataset import ScenePairs, load_mnist
from my_utils import InputError

NOTHING = torch.zeros(len(scenes.LABELS), dtype=torch.bool)


def scene(first: int, second: int, is_vertical: bool, thickness=(1.5, 4.0)) -> scenes.Scenes:
    """One scene without its image."""
    digits, vertical = torch.tensor([[first, second]]), torch.tensor([is_vertical])
    return scenes.Scenes(torch.zeros(1, 1, 48, 48), digits, vertical, torch.tensor([thickness]))


def is_true(one: scenes.Scenes, description: int) -> bool:
    facts = scenes.scene_facts(one)
    claims = scenes.scene_captions().claims[description][None]
    return match(facts, claims, torch.zeros_like(facts))[0].item()


@pytest.fixture
def pairs(data_path) -> ScenePairs:
    torch.manual_seed(0)
    return ScenePairs("val", data_path)


# ---- canvases ----


@pytest.mark.parametrize("is_vertical", [False, True])
def test_both_digits_are_whole_and_on_their_sides(is_vertical, data_path):
    images = load_mnist("val", data_path).images[:200].view(-1, 2, 28, 28).float() / 255
    made = scenes.make_scenes(images, torch.zeros(100, 2).long(), torch.full((100,), is_vertical))
    assert made.images.shape == (100, 1, 48, 48)
    first, second = made.images.split(24, dim=2 if is_vertical else 3)
    for half, tile in ((first, images[:, 0]), (second, images[:, 1])):
        ink, whole = half.sum(dim=(1, 2, 3)), tile.sum(dim=(1, 2))
        assert ((ink - whole).abs() < 0.03 * whole).float().mean() > 0.8


def test_digits_stand_at_many_places(data_path):
    image = load_mnist("val", data_path).images[:1].float().expand(2, -1, -1)[None] / 255
    made = scenes.make_scenes(image.repeat(300, 1, 1, 1), torch.zeros(300, 2).long(), torch.zeros(300).bool())
    assert len(made.images.flatten(1).unique(dim=0)) > 250


# ---- facts and captions ----


def test_captions_are_true_of_their_arrangement_alone():
    beside, above, both = (scenes.two_digits_id(i, 7, UNSAID, 3, UNSAID) for i in range(3))
    for arrangement in ((7, 3, False), (3, 7, False), (7, 3, True), (7, 2, False)):
        assert is_true(scene(*arrangement), beside) == (arrangement == (7, 3, False))
        assert is_true(scene(*arrangement), above) == (arrangement == (7, 3, True))
        assert is_true(scene(*arrangement), both) == (arrangement != (7, 2, False))


def test_adjectives_belong_to_their_digit():
    thin_seven, thick_seven = (scenes.two_digits_id(0, 7, grade, 3, 1 - grade) for grade in (0, 1))
    assert is_true(scene(7, 3, False, (1.5, 4.0)), thin_seven)
    assert not is_true(scene(7, 3, False, (1.5, 4.0)), thick_seven)
    assert is_true(scene(7, 3, False, (4.0, 1.5)), thick_seven)


def test_a_place_is_that_of_one_digit():
    for i, place in enumerate(scenes.PLACES, start=1):
        description = scenes.one_digit_id(i, 7)
        captions = scenes.scene_captions()
        assert f"{DIGIT_WORDS[7]} at the {place}" in captions.sentences[description * captions.paraphrases]
        right = {"left": (7, 3, False), "right": (3, 7, False), "top": (7, 3, True), "bottom": (3, 7, True)}
        assert [name for name, one in right.items() if is_true(scene(*one), description)] == [place]


def test_sentences_stand_at_their_descriptions():
    captions = scenes.scene_captions()
    texts = captions.all_paraphrases(torch.tensor([scenes.two_digits_id(0, 8, UNSAID, 3, 1)])).strings()
    assert texts[0] == "an eight left of a " + texts[0].split()[-2] + " three"
    assert texts[2].endswith("right of an eight")
    assert texts[8].replace("一个", "") == "八在粗体的三的左边", "a third of them are Chinese"
    assert len(set(captions.sentences)) > 10_000


def test_swapped_descriptions_exchange_the_digits_with_their_grades():
    ids = torch.tensor([scenes.two_digits_id(1, 7, 0, 3, UNSAID), scenes.one_digit_id(2, 5)])
    assert scenes.swapped_descriptions(ids).tolist() == [scenes.two_digits_id(1, 3, UNSAID, 7, 0), ids[1]]


# ---- pairs ----


def test_each_digit_takes_part_in_an_unseen_pair():
    for seed in range(5):
        unseen = scenes.unseen_pairs(seed)
        assert unseen.sum() == 18
        assert unseen.any(dim=1).all()
        assert torch.equal(unseen, unseen.T)


def test_a_batch_holds_true_captions_and_no_unseen_pair(pairs):
    batches = list(itertools.islice(pairs.epoch(256), 5))
    for batch in batches:
        positive, ignored = batch.labels.match()
        assert positive.diagonal().all()
        assert not ignored.diagonal().any()
        assert 0 < ignored.float().mean() < 0.3
        for facts in batch.labels.facts[:, :10]:
            a, b = facts.nonzero()[:, 0].tolist()
            assert not scenes.unseen_pairs()[a, b]
    shown = torch.cat([batch.labels.facts[:, :10] for batch in batches]).float()
    assert ((shown.T @ shown > 0) == pairs.seen | torch.eye(10).bool()).all(), "all other pairs are shown"


def test_a_caption_of_an_unseen_partner_is_ignored():
    unseen = torch.zeros(10, 10, dtype=torch.bool)
    unseen[3, 5] = unseen[5, 3] = True
    unknown = scenes.unknown_labels(unseen)
    facts, claims = scenes.scene_facts(scene(3, 7, False)), scenes.scene_captions().claims
    ids = [scenes.two_digits_id(0, 3, UNSAID, 5, UNSAID), scenes.two_digits_id(0, 5, UNSAID, 7, UNSAID)]
    ids += [scenes.two_digits_id(0, 3, UNSAID, 6, UNSAID), scenes.one_digit_id(2, 5)]
    _, ignored = match(facts, claims[ids], unknown[3][None] | unknown[7][None])
    assert ignored.tolist() == [[True, False, False, True]], "five and seven are a pair that is shown"


# ---- the judge ----


def test_texts_stand_at_their_places():
    texts = relation_texts()
    assert texts[text_id(0, 7, 3)] == FORMS[0][0].format("a seven", "a three")
    assert texts[text_id(3, 8, 1)] == FORMS[1][1].format("an eight", "a one")
    chinese, trained = relation_texts(is_chinese=True), scenes.scene_captions().sentences
    assert chinese[text_id(0, 7, 3)] == "七在三的左边"
    assert {*texts, *chinese} <= {text.replace("一个", "") for text in trained}


def test_another_digit_is_neither_of_the_two():
    for a, b in itertools.permutations(range(10), 2):
        others = [other_digit(torch.tensor(a), torch.tensor(b), torch.tensor(i)).item() for i in range(1, 9)]
        assert sorted([*others, a, b]) == list(range(10))


def test_a_tie_is_shared():
    cosines = torch.tensor([[0.5, 0.2, 0.1], [0.5, 0.5, 0.1], [0.4, 0.5, 0.1], [0.3, 0.3, 0.3]])
    assert is_nearest(cosines) == pytest.approx(torch.tensor([1, 0.5, 0, 1 / 3]))


def test_exchanged_scenes_show_the_same_digits_the_other_way_round(data_path):
    scene, exchanged = evaluation_scenes(load_mnist("val", data_path), per_pair=1)
    assert len(scene.digits) == 180
    assert torch.equal(scene.digits, exchanged.digits.flip(1))
    assert torch.equal(scene.is_vertical, exchanged.is_vertical)


def test_a_bag_of_words_cannot_tell_who_is_left(data_path):
    model = CLIP(captions="scenes", image_encoder="scene", text_encoder="table", width=4).eval()
    metrics = evaluate_scenes(model, load_mnist("val", data_path), per_pair=1)
    assert metrics["seen_swap"] == metrics["unseen_swap"] == metrics["seen_attribute_swap"] == 0.5, "all are ties"
    assert metrics["seen_text_score"] == metrics["unseen_group_score"] == 0, "a tie is wrong"


# ---- the whole way ----


def test_training_learns_word_order(tmp_path, small_mnist, data_path):
    flags = ["--captions", "scenes", "--text-encoder", "order", "--width", 4, "--batch-size", 64, "--epochs", 9]
    flags += ["--lr", 5e-3, "--augment", "none", "--device", "cpu", "--data-path", data_path, "--runs-dir", tmp_path]
    done = train_here(*flags, "--run-name", "run")
    assert done.returncode == 0
    assert metrics_of(tmp_path / "run")["history"][-1]["val_seen_swap"] > 0.8
    assert "unseen_swap" in done.stdout
    assert read_events(tmp_path / "run").Tags()["images"] == ["captions"]
    model = CLIP.load(tmp_path / "best_model.pth")
    with pytest.raises(InputError, match=r"\[B, 48, 48\].*scenes of two digits"):
        model.encode_image(torch.zeros(1, 28, 28))
    evaluate.main([str(tmp_path / "best_model.pth"), "--data-path", str(data_path), "--pictures", str(tmp_path)])
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert results["scenes"]["seen_swap"] > 0.8
    assert (tmp_path / "evaluation_five_captions.png").exists()


def test_the_order_of_words_counts_and_padding_does_not():
    texts = ["a seven left of a three", "a three left of a seven"]
    for name in ("order", "transformer"):
        torch.manual_seed(0)
        model = CLIP(captions="scenes", image_encoder="scene", text_encoder=name, width=4).eval()
        assert sum(p.numel() for p in model.towers["text"].parameters()) <= 150_000
        first, second = model.encode_text(texts)
        assert not torch.allclose(first, second, atol=1e-4)
        padded = model.encode_text([texts[0], "a thick seven left of a thin three"])[0]
        assert torch.allclose(first, padded, atol=1e-6)
        with pytest.raises(InputError, match="40 words, more than 16"):
            model.encode_text("a seven " * 20)


def test_what_needs_single_digits_refuses_a_model_of_scenes(tmp_path):
    CLIP(captions="scenes", image_encoder="scene", text_encoder="table", width=4).save(tmp_path / "scenes.pth")
    for main in (generate.main, modalities_train, generation_train):
        flags = ["seven"] if main is generate.main else ["strokes"] if main is modalities_train else []
        with pytest.raises(InputError, match="reads scenes of two digits"):
            main(
                [
                    *flags,
                    "--clip",
                    str(tmp_path / "scenes.pth"),
                    *([] if flags == ["seven"] else ["--runs-dir", str(tmp_path)]),
                ]
            )


def test_a_model_of_digits_refuses_scenes():
    with pytest.raises(InputError, match=r"\[B, 28, 28\].*single digits"):
        CLIP().encode_image(torch.zeros(1, 48, 48))
