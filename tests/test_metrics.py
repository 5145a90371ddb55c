import pytest
import torch

from clip import CLIP
from metrics import embed_images, evaluate, text_to_image_precision, zero_shot_accuracy, zero_shot_classifier
from my_dataset import Split

# Four images, three captions; images 0 and 1 are digit 0, image 2 is digit 1, image 3 is digit 2.
SIMILARITY = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.1], [0.5, 0.8, 0.0], [0.0, 0.1, 0.7]])
LABELS = torch.tensor([0, 0, 1, 2])


def test_zero_shot_accuracy_by_hand():
    assert zero_shot_accuracy(SIMILARITY, LABELS) == pytest.approx(3 / 4)  # image 1 goes to caption 1


def test_text_to_image_precision_by_hand():
    # Caption 0 has two images and finds 0 and 2: one right. Caption 1 finds 2, caption 2 finds 3: both right.
    assert text_to_image_precision(SIMILARITY, LABELS) == pytest.approx((1 + 1 + 1) / 4)


def test_precision_counts_every_image_of_the_digit():
    perfect = torch.eye(3)[LABELS]
    assert text_to_image_precision(perfect, LABELS) == 1.0


def test_evaluate_does_not_depend_on_batches_and_computes_the_texts_anew():
    torch.manual_seed(0)
    model = CLIP(8, 2)
    images = torch.randint(256, (30, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(embed_images(model, images, 7), embed_images(model, images, 30))
    before = zero_shot_classifier(model)
    with torch.no_grad():
        model.text_encoder.table.weight.neg_()
    assert not torch.allclose(before, zero_shot_classifier(model))
    assert model.training, "evaluation hands the model back in the mode it came in"
    scores = evaluate(model, Split(images, torch.arange(30) % 10))
    assert all(0 <= score <= 1 for score in scores.values())
