"""CLIPs of other programs, read and written; tokens; and what a CLIP that is at hand answers."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.modules.clip import Clip, ClipShape, TowerShape
from stillroom.modules.clip_resnet import ResNetShape
from stillroom.tasks.images.clip_formats import to_open_clip, write_transformers
from stillroom.tasks.images.clips import class_embeddings, open_clip, read_clip, ready, write_clip
from stillroom.tasks.images.tokens import END, START, Tokenizer, learnt, of_words, read_tokenizer

TEXTS = ["a dog runs on the grass", "two cats sit", "a red bus", "the dog and the bus"] * 4
HALF = (0.5,) * 3
SHAPE = ClipShape(
    image=TowerShape.of(24, 2, 3, 40),  # narrower than the text tower's, of other heads
    text=TowerShape.of(32, 3, 4),
    embedding=12,
    image_size=16,
    patch=8,
    context=10,
    vocabulary=600,
    end=599,
)
RESNET = replace(SHAPE, image=ResNetShape(2, (1, 2, 1, 1), 8), image_size=64, patch=32)
UNEVEN = replace(SHAPE, image=TowerShape(20, 8, (2, 0), (7, 31)), text=TowerShape(28, 8, (1, 4, 2), (5, 0, 9)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learnt(TEXTS, 600, 10)


def made(shape: ClipShape, tokenizer: Tokenizer) -> Clip:
    torch.manual_seed(0)
    clip = Clip(replace(shape, vocabulary=tokenizer.size, end=tokenizer.end)).eval()
    for parameter in clip.parameters():
        if parameter.ndim < 2:  # norms and biases that are no ones and zeros
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    for name, statistic in clip.named_buffers():
        if statistic.ndim:
            statistic.uniform_(0.5, 1.5) if name.endswith("var") else statistic.normal_()
    return clip


@torch.no_grad()
def answers(clip: Clip, tokens: Tensor) -> Tensor:
    image, text = clip((pixels_for(clip), tokens))
    return clip.scale * image @ text.T


def pixels_for(clip: Clip) -> Tensor:
    side = clip.shape.image_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


# Models ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_transformers_answers_as_ours(tmp_path: Path, tokenizer: Tokenizer, activation: str) -> None:
    transformers = pytest.importorskip("transformers")
    clip = made(replace(SHAPE, activation=activation), tokenizer)
    write_clip(tmp_path, clip, tokenizer, HALF, HALF)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    words = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(["a dog", "Zwei Hunde: 犬", "", "one two three four five six seven eight nine ten"])
    assert torch.equal(words(["a dog", "Zwei Hunde: 犬"], return_tensors="pt", padding="max_length", truncation=True).input_ids, tokens[:2])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(logits, answers(clip, tokens), rtol=1e-5, atol=1e-5)

    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    back = read_clip(str(tmp_path / "theirs"))
    assert back.clip.shape == clip.shape
    torch.testing.assert_close(answers(back.clip, tokens), answers(clip, tokens), rtol=1e-5, atol=1e-5)
    assert back.notes == ("it does not say how its images are normalised: by CLIP's usual mean and standard deviation",)


def test_a_configuration_that_says_little_or_an_old_end_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    clip = made(replace(SHAPE, activation="quick_gelu"), tokenizer)
    write_clip(tmp_path, clip, tokenizer, HALF, HALF)
    config = json.loads((tmp_path / "config.json").read_text())
    for tower in ("vision_config", "text_config"):
        del config[tower]["hidden_act"]  # transformers leaves out what is its default
    config["text_config"]["eos_token_id"] = 2  # as in configurations from before 2023
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = tokenizer(["a dog"])
    assert torch.equal(answers(read_clip(str(tmp_path)).clip, tokens), answers(clip, tokens))
    (tmp_path / "tokenizer.json").unlink()
    assert read_clip(str(tmp_path)).clip.shape.end == tokenizer.end  # the largest id, as transformers has it then


@pytest.mark.parametrize("shape", [UNEVEN, RESNET], ids=["pruned", "resnet"])
def test_a_model_that_transformers_does_not_have_lies_beside_a_file_that_reads_it(
    tmp_path: Path, tokenizer: Tokenizer, shape: ClipShape
) -> None:
    clip, tokens = made(shape, tokenizer), tokenizer(["a dog", "the bus"])
    write_clip(tmp_path, clip, tokenizer, HALF, HALF)
    torch.testing.assert_close(answers(read_clip(str(tmp_path)).clip, tokens), answers(clip, tokens), rtol=0, atol=0)
    spec = importlib.util.spec_from_file_location("small_clip", tmp_path / "small_clip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = module.load(tmp_path)
    similar = normalize(small.encode_image(pixels_for(clip)), dim=-1) @ normalize(small.encode_text(tokens), dim=-1).T
    torch.testing.assert_close(small.logit_scale.exp() * similar, answers(clip, tokens), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="an ordinary CLIP, for transformers"):
        write_transformers(tmp_path, clip, tokenizer, HALF, HALF)


def test_open_clips_resnet(tmp_path: Path, tokenizer: Tokenizer) -> None:
    clip, tokens = made(RESNET, tokenizer), tokenizer(["a dog", "the bus"])
    state = to_open_clip(clip)
    assert {"visual.layer2.1.bn2.running_var", "visual.attnpool.c_proj.bias", "transformer.resblocks.0.ln_1.bias"} <= state.keys()
    file, words = tmp_path / "rn.pt", tmp_path / "words"
    tokenizer.save(words)

    def read(of: dict[str, Tensor], more: str = "") -> Clip:
        torch.save({"state_dict": {f"module.{name}": value for name, value in of.items()}}, file)
        return read_clip(f"{file},head_width=8,tokenizer={words},activation=gelu{more}").clip

    found = read({**state, "input_resolution": torch.tensor(64)})  # which OpenAI's have besides
    assert found.shape == clip.shape
    torch.testing.assert_close(answers(found, tokens), answers(clip, tokens), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"1 tensors are missing or of another shape \(visual.layer2.1.bn2.running_var\)"):
        read({name: value for name, value in state.items() if name != "visual.layer2.1.bn2.running_var"})
    with pytest.raises(InputError, match=r"weights whose blocks is \(1, 2, 0, 1\), expected a number from 1"):
        read({name: value for name, value in state.items() if not name.startswith("visual.layer3.")})
    with pytest.raises(InputError, match="a transformer or CLIP's ResNet for images"):  # timm's, as open_clip has it
        read({name.replace("visual.", "visual.trunk."): value for name, value in state.items()})


def test_open_clip_weights(tmp_path: Path, tokenizer: Tokenizer) -> None:
    clip, tokens = made(replace(SHAPE, image=TowerShape.of(24, 2, 3), activation="quick_gelu"), tokenizer), tokenizer(["a dog", "the bus"])
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in to_open_clip(clip).items()}}, tmp_path / "epoch_3.pt")
    tokenizer.save(tmp_path / "words")
    spec = f"{tmp_path / 'epoch_3.pt'},head_width=8,tokenizer={tmp_path / 'words'}"
    said = read_clip(spec)
    assert said.clip.shape == replace(clip.shape, activation="gelu")
    assert any("quick_gelu" in note for note in said.notes)  # what the file cannot say is said
    known = read_clip(f"{spec},activation=quick_gelu")
    assert known.notes == ()
    torch.testing.assert_close(answers(known.clip, tokens), answers(clip, tokens), rtol=0, atol=0)
    with pytest.raises(InputError, match="a tokenizer beside it"):
        open_clip(f"{tmp_path / 'epoch_3.pt'},head_width=8")
    with pytest.raises(InputError, match="one of gelu, quick_gelu"):
        read_clip(f"{spec},activation=relu")
    config = {"model_cfg": {"quick_gelu": True, "vision_cfg": {"head_width": 8}, "text_cfg": {"heads": 4}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert read_clip(str(tmp_path / "epoch_3.pt")).clip.shape == clip.shape


@pytest.mark.parametrize("broken", ["missing", "shape", "nan", "kind"])
def test_what_is_no_clip_is_refused(tmp_path: Path, tokenizer: Tokenizer, broken: str) -> None:
    write_clip(tmp_path, made(SHAPE, tokenizer), tokenizer, HALF, HALF)
    from safetensors.torch import load_file

    state = load_file(tmp_path / "model.safetensors")
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    if broken == "missing":
        del state[name]
    elif broken == "shape":
        state[name] = state[name][:2]
    elif broken == "nan":
        state[name] = torch.full_like(state[name], torch.nan)
    save_weights(state, tmp_path / "model.safetensors")
    if broken == "kind":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(InputError, match={"nan": "not numbers", "kind": "siglip"}.get(broken, "1 tensors are missing or of another shape")):
        read_clip(str(tmp_path))


def test_a_clip_at_hand_answers_with_classes(tokenizer: Tokenizer) -> None:
    clip = made(SHAPE, tokenizer)
    hand = ready(clip, tokenizer, HALF, HALF, "here")
    found = class_embeddings(hand, ["dog", "bus"], ["a {}", "the {}"])
    dog = normalize(clip.text(tokenizer(["a dog", "the dog"])), dim=-1).mean(0)
    torch.testing.assert_close(found[0], dog / dog.norm())
    assert found.norm(dim=1).allclose(torch.ones(2))
    assert hand.scale == pytest.approx(float(clip.logit_scale.detach().exp()))  # not its logarithm
    assert float(Clip(SHAPE).scale.detach()) == pytest.approx(1 / 0.07)
    for classes, templates in (([], ["{}"]), (["dog", " "], ["{}"]), (["dog"], ["a photo"]), (["dog"], [])):
        with pytest.raises(InputError):
            class_embeddings(hand, classes, templates)


# Tokens ---------------------------------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_before_its_end_and_padding_changes_nothing(tokenizer: Tokenizer) -> None:
    clip = made(SHAPE, tokenizer)
    tokens = tokenizer(["a dog", "one two three four five six seven eight nine ten eleven", "", f"a {END} dog{START}"])
    assert tokens.shape == (4, 10)
    assert tokens[1, -1] == tokenizer.end  # kept, though the text goes on
    assert tokenizer.is_cut("one two three four five six seven eight nine ten eleven")
    assert tokens[2].tolist() == [tokenizer.start] + [tokenizer.end] * 9
    assert torch.equal(tokens[3], tokenizer(["a dog"])[0])  # the marks in a text are no marks
    assert clip.text.ends(tokens).tolist() == [3, 9, 1, 3]
    other = tokens.clone()
    other[0, 5:] = 7  # whatever stands behind the end
    torch.testing.assert_close(clip.text(other)[0], clip.text(tokens)[0], rtol=0, atol=0)
    larger = Clip(replace(clip.shape, vocabulary=clip.shape.vocabulary + 5))
    added = tokens.clone()
    added[0, 2] = clip.shape.vocabulary + 4  # an added token with a larger id than the end's
    assert larger.text.ends(added)[0] == 3


def test_learnt_tokens_know_every_script_and_are_the_same_every_time(tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert tokenizer.knows("Ελληνικά 日本語 🙂")
    assert not tokenizer.knows("  ")
    assert learnt(TEXTS, 600, 10).fingerprint == tokenizer.fingerprint
    assert tokenizer.end == tokenizer.size - 1
    tokenizer.save(tmp_path)
    again = read_tokenizer(tmp_path, 10, "model")
    assert again is not None
    assert again.fingerprint == tokenizer.fingerprint
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps({**model["vocab"], START: tokenizer.start, END: tokenizer.end}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    old = read_tokenizer(tmp_path, 10, "model")
    assert old is not None
    assert torch.equal(old(TEXTS[:4]), tokenizer(TEXTS[:4]))


def test_words_that_a_vocabulary_does_not_have() -> None:
    words = of_words(["red", "disc"], 6)
    assert words.knows("Red disc")
    assert not words.knows("red hippo")
    assert words(["red hippo"]).tolist() == [[words.start, 0, *[words.end] * 4]]
