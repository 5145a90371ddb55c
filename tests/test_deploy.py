"""A model as a folder with a card, and as ONNX."""

import json
import shutil
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from safetensors.torch import save

from benchmarks.common import RESULTS
from clip import CLIP
from conftest import ROOT
from deploy.export import export_onnx, main
from deploy.pretrained import model_card
from generation.model import Generator
from my_dataset import load_mnist
from my_utils import InputError
from training.settings import Settings


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(embed_dim=8, width=2, modalities=("speech", "strokes"), init_logit_bias=-1.0).eval()
    model.config, model.metrics = {"lr": 0.1, "runs_dir": "/home/me"}, {"history": [{"loss": 1 / 3}]}
    return model


def test_a_folder_holds_the_same_bits_all_towers_and_a_generator(model, tmp_path):
    model.save_pretrained(folder := tmp_path / "model")
    again = CLIP.from_pretrained(folder)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    expected = (model.arch, {"lr": 0.1}, model.metrics)  # without the folders of this machine
    assert (again.arch, again.config, again.metrics, again.training) == (*expected, False)
    Generator(8, model.fingerprint(), decoder_width=8, prior_width=8).save_pretrained(folder / "generator")
    assert Generator.load(folder / "generator", again).arch["decoder_width"] == 8


def test_the_hub_takes_and_gives_the_same_folder(model, tmp_path, monkeypatch):
    """What needs a network is replaced by a folder."""
    hub = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **_):
            shutil.copytree(folder_path, hub)

    def snapshot_download(name, revision, allow_patterns, cache_dir, force_download, local_files_only, token):
        return {("me/digits", "v1"): hub}[name, revision]

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda filename, **_: hub / filename)
    monkeypatch.setattr("clip.snapshot_download", snapshot_download)
    model.push_to_hub("me/digits")
    assert (hub / "README.md").read_text() == model_card(model)
    assert CLIP.from_pretrained("me/digits", revision="v1").fingerprint() == model.fingerprint()
    for source, options in (("me/digits", {"revision": "v1"}), (hub, {})):
        with pytest.raises(TypeError, match="devcie"):
            CLIP.from_pretrained(source, **options, devcie="cuda")


def refuses(source, message: str) -> None:
    with pytest.raises(InputError, match=f"^.*{message}[^\n]*$"):
        CLIP.from_pretrained(source)


def test_a_damaged_or_older_folder_is_one_sentence(model, tmp_path):
    refuses("pretrainde", "there is no file .*pretrainde: name")
    weights, bias = model.state_dict(), "towers.image.projection.bias"
    for name, content, message in (
        ("config.json", b"{}", "was saved by another version of this program"),
        ("config.json", b"{", "is damaged"),
        ("model.safetensors", b"short", "is damaged"),
        ("model.safetensors", save(weights | {bias: torch.ones(8)}), "its weights were changed"),
        ("model.safetensors", save(weights | {bias: torch.full([8], torch.inf)}), "numbers that are not finite"),
    ):
        model.save_pretrained(tmp_path)
        (tmp_path / name).write_bytes(content)
        refuses(tmp_path, message)


def test_a_folder_that_names_a_language_model_downloads_none(tiny_albert, tmp_path, monkeypatch):
    model = CLIP(8, width=2, text_encoder="plus", text_options={"text_model": str(tiny_albert), "freeze_text": True})
    model.arch["text_options"]["text_model"] = "someone/model"
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("text_encoder_plus.snapshot_download", lambda *_, **__: 1 / 0)
    refuses(tmp_path, "the language model 'someone/model' is not on this machine: ")
    with pytest.raises(InputError, match="a language model is not exported"):
        export_onnx(model, tmp_path)


@pytest.mark.parametrize("text_encoder", ["table", "transformer"])
def test_onnxruntime_computes_what_pytorch_does(data_path, tmp_path, text_encoder):
    model = CLIP(8, width=2, text_encoder=text_encoder).eval()
    export_onnx(model, tmp_path)
    images, texts = load_mnist("test", data_path).images[:1_000], list(model.captions.sentences[:500])
    texts.append("a thin 7, not leaning left")
    for name, read, batch in (("image", model.preprocess, images), ("text", model.tokenize, texts)):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        for some in (batch, batch[-1:]):
            (embeds,) = session.run(None, {"inputs": read(some).numpy()})
            torch.testing.assert_close(torch.from_numpy(embeds), model.encode(name, some), atol=1e-5, rtol=0)


def test_the_card_quotes_the_results_for_a_default_model_alone(model):
    assert "\nNot measured.\n\n## Limits" in model_card(model)
    model.config, model.metrics = vars(Settings(seed=3)), {"test_digit_accuracy": 0.25}
    model.metrics |= dict.fromkeys(("seed", "device", "torch_version", "commit", "date"), "some")
    card, result = model_card(model), json.loads((RESULTS / "combinations.json").read_text())
    figure = result["rows"][0][result["columns"].index("unseen")]
    assert "- test_digit_accuracy: 25.00%" in card
    assert f"| {figure} | `{result['command']}` | {result['device']} |" in card
    assert ("license: unknown" in card) is not (ROOT / "LICENSE").exists(), "deploy/card.md names the licence"


@pytest.mark.skipif(not (ROOT / "pretrained").exists(), reason="no pretrained/ yet: `make pretrained` writes it")
def test_the_folder_in_the_repository_is_the_measured_default_model_with_its_card():
    model, measured = CLIP.from_pretrained(ROOT / "pretrained"), json.loads((RESULTS / "default.json").read_text())
    assert (ROOT / "pretrained" / "README.md").read_text() == model_card(model)
    assert (model.metrics["seed"], model.metrics["test_digit_accuracy"]) == (0, measured["test_digit_accuracy"][0])


def test_the_command_writes_a_folder(model, tmp_path):
    model.save(tmp_path / "model.pth")
    main(["--clip", str(tmp_path / "model.pth"), "--folder", str(tmp_path / "out")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "config.json", "model.safetensors"}


def test_a_folder_of_something_else_stays_as_it_is(model, tmp_path):
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"has a README\.md of something else"):
        model.save_pretrained(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine", "mine"]
    model.save_pretrained(folder := tmp_path / "model")
    model.logit_scale.data.fill_(torch.nan)
    with pytest.raises(InputError, match="numbers that are not finite"):
        model.save_pretrained(folder)
    CLIP.from_pretrained(folder)
