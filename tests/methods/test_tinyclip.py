"""TinyCLIP: what affinities compare, what a cut may change, what is inherited, and the experiment as a user runs it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillroom import catalog
from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Teacher, Training
from stillroom.engine.export import export
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.tinyclip import Masking, TinyCLIP, affinity, affinity_loss, recipe
from stillroom.methods.tinyclip.distiller import Features
from stillroom.methods.tinyclip.inheritance import inherit, pruned, widen
from stillroom.methods.tinyclip.masks import MOST, TowerMasks, sparsity_loss
from stillroom.methods.tinyclip.recipe import half_shape
from stillroom.modules.clip import Clip, ClipShape, Masks, TowerShape
from stillroom.modules.clip_resnet import ResNetShape
from stillroom.tasks.images.clip_formats import to_open_clip
from stillroom.tasks.images.clips import read_clip, write_clip
from stillroom.tasks.imagetext import Batch, ImageTextData, Supervised, load
from stillroom.tasks.imagetext.models import name_of, shape_named
from tests.methods.tinyclip_job import losses_on_ranks
from tests.processes import Processes

TINY = "compositions,train=1,val=1"
TEACHER, STUDENT = "stillroom/clip_16x2p8_24x2_d12_h8", "stillroom/clip_8x2p8_16x1_d12_h8"
RESNET, SMALL_RESNET = "stillroom/clip_rn4x1-4-5-2_24x2_d12_h8", "stillroom/clip_rn2x1-2-2-1_16x1_d12_h8"


@pytest.fixture(scope="module")
def data() -> ImageTextData:
    return ImageTextData(TINY, batch_size=16, subset=64, val_subset=24)


@pytest.fixture
def teacher(data: ImageTextData) -> Clip:
    return Clip(shape_named(TEACHER, data, "teacher"))


def batch_of(data: ImageTextData) -> Batch:
    return next(iter(data.train_loader(seed=0)))


def units(*sizes: int) -> Tensor:
    return normalize(torch.randn(*sizes, dtype=torch.float64), dim=-1)


# Affinities -----------------------------------------------------------------------------------------------------------------------------


def test_a_batch_of_one_has_nothing_to_mimic() -> None:
    image = units(1, 4).requires_grad_()
    loss = affinity_loss(image, units(1, 4), units(1, 3), units(1, 3), 50.0, 50.0)
    loss.backward()
    assert loss.item() == 0
    assert image.grad is not None
    assert not image.grad.any()


def test_the_teacher_is_mimicked_best_by_itself_and_gets_no_gradient() -> None:
    own, other = (units(5, 4), units(5, 4)), (units(5, 4).requires_grad_(), units(5, 4).requires_grad_())
    same = affinity_loss(*own, *own, 20.0, 20.0)
    assert same < affinity_loss(*other, *own, 20.0, 20.0)
    affinity_loss(*own, *other, 20.0, 20.0)
    assert other[0].grad is None


def test_equal_captions_are_as_near_as_the_teacher_has_them() -> None:
    image, text = units(4, 6), units(4, 6)
    text[1] = text[0]
    mimicked = affinity_loss(image, text, image, text, 30.0, 30.0)
    swapped = torch.tensor([1, 0, 2, 3])
    torch.testing.assert_close(affinity_loss(image, text[swapped], image, text, 30.0, 30.0), mimicked)


def test_in_chunks_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for chunk in (512, 3):
        monkeypatch.setattr(affinity, "CHUNK", chunk)
        torch.manual_seed(1)
        image, text = units(7, 4).requires_grad_(), units(7, 4).requires_grad_()
        scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
        loss = affinity_loss(image, text, units(7, 5), units(7, 5), scale, 20.0)
        found.append((loss.detach(), *torch.autograd.grad(loss, (image, text, scale))))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_two_processes_have_the_gradient_of_one(processes: Processes) -> None:
    one = losses_on_ranks(0, 1)
    two = processes.on_two_ranks(losses_on_ranks, None, 2)
    for kind, (loss, gradient) in one.items():
        losses, gradients = zip(*(answer[kind] for answer in two), strict=True)
        torch.testing.assert_close(torch.stack(losses).mean(), loss, rtol=0, atol=1e-6)
        for found in gradients:  # DDP's mean over the processes, the same on both
            torch.testing.assert_close(found, gradient, rtol=0, atol=1e-6)


# Masks and the cut ----------------------------------------------------------------------------------------------------------------------


def some_masks(clip: Clip, seed: int = 0) -> tuple[TowerMasks, TowerMasks]:
    """Masks that drop about a third."""
    generator = torch.Generator().manual_seed(seed)
    found = TowerMasks(clip.shape.image), TowerMasks(clip.shape.text)
    with torch.no_grad():
        for tower in found:
            for a in tower.parameters_of_masks:
                a.copy_(torch.rand(a.shape, generator=generator) * 9 - 3)
    return found


@pytest.mark.parametrize("emptied", ["nothing", "heads", "neurons", "channels"])
def test_the_cut_changes_nothing(data: ImageTextData, teacher: Clip, emptied: str) -> None:
    for parameter in teacher.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter, 0.5, 0.5)  # biases and norms that matter
    masks = [tower.decide() for tower in some_masks(teacher)]
    if emptied != "nothing":
        z = {"heads": masks[0].heads[0], "neurons": masks[1].neurons[1], "channels": masks[0].hidden_D[1:]}[emptied]
        z.zero_()
        masks[0].hidden_D[0] = 0.7
    small = pruned(teacher, *masks)
    inputs = batch_of(data).inputs
    with torch.no_grad():
        masked, cut = teacher(inputs, *masks), small(inputs)
        for before, after in zip(masked, cut, strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
        released = pruned(teacher, *masks, released=True)(inputs)
    assert (released[1] - masked[1]).abs().max() > 1e-3  # the released code multiplies the projections by the mask
    kept = [tower.count_nonzero() for tower in (masks[0].hidden_D, masks[0].heads[0], masks[1].neurons[1])]
    assert [small.shape.image.width, small.shape.image.heads[0], small.shape.text.neurons[1]] == [int(count) for count in kept]


def test_a_draw_that_drops_every_channel_keeps_one(teacher: Clip) -> None:
    masks = TowerMasks(teacher.shape.image)
    with torch.no_grad():
        masks.hidden_D.fill_(-MOST)
        masks.hidden_D[3] = -MOST + 0.1
    uniforms = [torch.full_like(a, 0.5) for a in masks.parameters_of_masks]
    for found in (masks.sample(uniforms).hidden_D, masks.decide().hidden_D):
        assert found.nonzero().flatten().tolist() == [3]


def test_multipliers_ascend_until_enough_is_gone(data: ImageTextData, teacher: Clip) -> None:
    masks = TowerMasks(teacher.shape.image), TowerMasks(teacher.shape.text)
    distiller = Masking(copy.deepcopy(teacher), teacher, masks, start=0.0, target=0.5, ramp=0, mask_lr=0.1)
    distiller.plan = Training(optimizer="adamw", lr=1e-3)
    optimizer = distiller.configure_optimizers()
    distiller.at(0, steps_per_epoch=4, epochs=1)
    distiller.losses(batch_of(data)).total.backward()
    optimizer.step()
    assert float(masks[0].lambda_1.detach()) == pytest.approx(10.1, abs=1e-4)
    assert float(masks[1].hidden_D.detach().max()) < 10
    distiller.clamp()
    assert float(masks[1].hidden_D.detach().max()) == pytest.approx(MOST)
    with torch.no_grad():
        for tower in masks:
            tower.hidden_D.fill_(-4.0)
    loss, sparsity = sparsity_loss(masks, 0.5)
    assert (loss.item(), sparsity.item() > 0.5) == (0, True)
    assert sparsity_loss(masks, 0.5, two_sided=True)[0].item() < 0


def test_what_was_pruned_goes_on_in_a_model_of_full_size(data: ImageTextData, teacher: Clip) -> None:
    small = pruned(teacher, *(tower.decide() for tower in some_masks(teacher)))
    full = Clip(teacher.shape)
    widen(small.state_dict(), full)
    masks = TowerMasks(full.shape.image), TowerMasks(full.shape.text)
    for tower, shape in zip(masks, (small.shape.image, small.shape.text), strict=True):
        tower.start_from(shape)
    again = [tower.decide() for tower in masks]
    whole = [Masks((z.hidden_D > 0).float(), [(h > 0).float() for h in z.heads], [(f > 0).float() for f in z.neurons]) for z in again]
    inputs = batch_of(data).inputs
    with torch.no_grad():
        for before, after in zip(small(inputs), full(inputs, *whole), strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_towers_whose_layers_differ_have_no_masks_nor_have_resnets() -> None:
    with pytest.raises(InputError, match="whose layers are all alike"):
        TowerMasks(TowerShape(16, 8, (2, 1), (8, 8)))
    with pytest.raises(InputError, match="a transformer, for learned masks; a ResNet is shrunk by --arms manual"):
        TowerMasks(ResNetShape(2, (1, 1, 1, 1)))


# Inheritance ----------------------------------------------------------------------------------------------------------------------------


def test_a_student_inherits_leading_slices(data: ImageTextData, teacher: Clip) -> None:
    student = Clip(shape_named(STUDENT, data, "student"))
    inherit(teacher, student)
    ours, theirs = student.text, teacher.text
    torch.testing.assert_close(ours.token_embedding.weight, theirs.token_embedding.weight[:, :16])
    block, source = student.visual.transformer.blocks[1], teacher.visual.transformer.blocks[1]
    assert block.attn is not None
    assert source.attn is not None
    torch.testing.assert_close(block.attn.in_proj_weight[8:16], source.attn.in_proj_weight[16:24, :8])  # the first head's keys


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": TowerShape.of(24, 2, 3)}, "nothing larger than the teacher's"),
        ({"text": TowerShape.of(24, 3, 3)}, "at most the teacher's 2"),
        ({"image": TowerShape.of(16, 2, 4)}, "the teacher's width, 8"),
        ({"patch": 4}, "the teacher's, 8"),
        ({"activation": "quick_gelu"}, "the teacher's, gelu"),
    ],
)
def test_what_cannot_be_inherited_is_told(teacher: Clip, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        inherit(teacher, Clip(replace(teacher.shape, **changes)))


@pytest.fixture
def squares() -> ImageTextData:
    """Of a size that a ResNet reads."""
    return ImageTextData(TINY, batch_size=16, subset=64, val_subset=24, image_size=64)


@pytest.fixture
def resnet(squares: ImageTextData) -> Clip:
    clip = Clip(shape_named(RESNET, squares, "teacher")).eval()
    with torch.no_grad():
        for name, value in clip.visual.state_dict().items():
            if value.ndim == 1:  # norms, their statistics and biases that differ
                value.uniform_(0.5, 1.5) if name.endswith("var") else value.normal_()
    return clip


def test_a_resnet_inherits_by_width_and_by_depth_of_each_stage(squares: ImageTextData, resnet: Clip) -> None:
    student = Clip(shape_named(SMALL_RESNET, squares, "student"))
    inherit(resnet, student)
    ours, theirs = student.state_dict(), resnet.state_dict()
    # Four blocks become two: 0 and 2. Five become two: 0 and 2. Two become one: 0.
    for stage, own, source in ((1, 0, 0), (2, 0, 0), (2, 1, 2), (3, 1, 2), (4, 0, 0)):
        for part in ("conv1.weight", "conv2.weight", "conv3.weight", "bn3.weight", "bn1.running_mean", "bn2.running_var"):
            inherited = ours[f"visual.layer{stage}.{own}.{part}"]
            taken = theirs[f"visual.layer{stage}.{source}.{part}"][tuple(map(slice, inherited.shape))]
            assert torch.equal(inherited, taken)
    assert torch.equal(ours["visual.layer3.0.downsample.0.weight"], theirs["visual.layer3.0.downsample.0.weight"][:32, :16])
    # The pooling has the leading 8 of 16 heads, which are 8 wide in both.
    assert torch.equal(ours["visual.attnpool.k_proj.weight"], theirs["visual.attnpool.k_proj.weight"][:64, :64])
    assert torch.equal(ours["visual.attnpool.c_proj.weight"], theirs["visual.attnpool.c_proj.weight"][:, :64])
    same = Clip(resnet.shape).eval()
    inherit(resnet, same)
    inputs = batch_of(squares).inputs
    with torch.no_grad():
        for before, after in zip(resnet(inputs), same(inputs), strict=True):
            assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (ResNetShape(6, (1, 4, 5, 2), 8), "nothing larger than the teacher's"),
        (ResNetShape(4, (1, 4, 6, 2), 8), "6 layers in visual.layer3, expected at most the teacher's 5"),
        (ResNetShape(4, (1, 4, 5, 2), 16), "the teacher's width, 8"),
        (TowerShape.of(8, 1, 1), "a transformer as the image tower, expected the teacher's, a ResNet"),
    ],
)
def test_what_a_resnet_cannot_pass_on_is_told(resnet: Clip, image: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        inherit(resnet, Clip(replace(resnet.shape, image=image)))


def test_half_of_a_resnet_by_the_rule(resnet: Clip) -> None:
    shape = replace(resnet.shape, image=ResNetShape(64, (3, 4, 6, 3)), text=TowerShape.of(512, 12, 8))
    half = half_shape(shape, 0.5)
    assert (half.image, half.text.width) == (ResNetShape(46, (3, 4, 6, 3)), 384)
    assert name_of(half) == "stillroom/clip_rn46x3-4-6-3_384x12_d12"


def block_millions(tower: TowerShape) -> float:
    """Weights of an ordinary tower's blocks."""
    return tower.layers * (12 * tower.width**2 + 13 * tower.width) / 1e6


def test_half_of_a_vit_b32_by_the_rule() -> None:
    """`benchmarks/clip.py` does it with weights."""
    shape = ClipShape(TowerShape.of(768, 12, 12), TowerShape.of(512, 12, 8), 512, 224, 32, 77, 49408, 49407)
    half = half_shape(shape, 0.5)
    assert [half.image.width, half.image.heads[0], half.text.width, half.text.layers] == [512, 8, 384, 12]
    left, whole = (block_millions(one.image) + block_millions(one.text) for one in (half, shape))
    assert left / whole == pytest.approx(0.48, abs=0.01)


# Distillers -----------------------------------------------------------------------------------------------------------------------------


def test_towers_and_embeddings_of_other_widths_are_compared(data: ImageTextData, teacher: Clip) -> None:
    student = Clip(shape_named("stillroom/clip_8x1p8_16x1_d7_h8", data, "student"))
    losses = TinyCLIP(student, teacher, affinity_share=0.75).losses(batch_of(data))
    assert set(losses.task) == {"contrast"}
    assert losses.distill["affinity"].isfinite()
    with pytest.raises(InputError, match="to be compared number by number"):
        Features(student, teacher)
    assert Features(Clip(teacher.shape), teacher).losses(batch_of(data)).total > 0


def test_a_fixed_scale_is_the_models_and_a_learned_one_stays_below_100(data: ImageTextData, teacher: Clip) -> None:
    fixed = TinyCLIP(Clip(teacher.shape), teacher)
    assert float(fixed.student.scale) == pytest.approx(50)
    assert not fixed.student.logit_scale.requires_grad
    learned = Supervised(Clip(teacher.shape))
    learned.plan = Training(optimizer="adamw", weight_decay=0.2)
    decays = {id(p): group.get("weight_decay", 0.2) for group in learned.parameter_groups() for p in group["params"]}
    assert decays[id(learned.student.logit_scale)] == 0
    assert decays[id(learned.student.visual.proj)] == 0.2
    with torch.no_grad():
        learned.student.logit_scale.fill_(5.0)
    learned.clamp()
    assert float(learned.student.scale.detach()) == pytest.approx(100)
    learned.losses(batch_of(data)).total.backward()
    assert learned.student.logit_scale.grad is not None  # the parameter is clamped, not its exponential
    assert float(Teacher(teacher).networks[0].scale.detach()) == pytest.approx(1 / 0.07)  # type: ignore[operator]


def test_adamw_has_the_numbers_of_the_tower(teacher: Clip, resnet: Clip) -> None:
    for clip, betas, eps in ((teacher, (0.9, 0.98), 1e-6), (resnet, (0.9, 0.999), 1e-8)):
        distiller = TinyCLIP(clip, copy.deepcopy(clip))
        distiller.plan = Training(optimizer="adamw", weight_decay=0.2)
        groups = distiller.parameter_groups()
        assert {(group["betas"], group["eps"]) for group in groups} == {(betas, eps)}
        assert {parameter.ndim for parameter in groups[1]["params"]} <= {0, 1}  # batch norms do not decay


# Runs -----------------------------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


def shrink(out: Path, data: ImageTextData) -> dict[str, Tensor]:
    options = LabOptions(out=out, accelerator="cpu", checkpoint_steps=1)
    plan = Training(epochs=2, optimizer="adamw", lr=1e-3, schedule="cosine")
    networks = replace(catalog.load("tinyclip").chosen(None).networks, teacher=TEACHER, teacher_epochs=1)  # type: ignore[type-var]
    recipe(Lab(options), data, plan, networks, arms="auto", mask_steps=4, mask_lr=1.0)
    return read_weights(out / "student.safetensors")


@pytest.mark.parametrize(("kind", "step"), [(Masking, 2), (TinyCLIP, 3)])
def test_killed_on_either_side_of_the_cut_it_goes_on(
    data: ImageTextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[TinyCLIP], step: int
) -> None:
    whole = shrink(tmp_path / "whole", data)
    losses = TinyCLIP.losses

    def falling(self: TinyCLIP, batch: Batch) -> Losses:
        if type(self) is kind and self.progress.step == step and self._trainer is not None:
            raise Killed
        return losses(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TinyCLIP, "losses", falling)
        with pytest.raises(Killed):
            shrink(tmp_path / "killed", data)
    continued = shrink(tmp_path / "killed", data)
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    shape = json.loads((tmp_path / "killed/student.json").read_text())["shape"]
    assert shape["image"]["width"] < 16 or min(shape["text"]["neurons"]) < 96  # something was cut


SMALL = ["--batch-size", "16", "--subset", "64", "--val-subset", "24", "--accelerator", "cpu", "--epochs", "2", "--teacher-epochs", "1"]


def test_the_experiment_has_all_its_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = "alone+affinity+features+contrast+manual+auto"
    words = ["run", "tinyclip", "--data", TINY, *SMALL, "--teacher", TEACHER, "--arms", arms, "--out", str(tmp_path / "run")]
    assert main([*words, "--targets", "[0.3,0.6]", "--via", "[stillroom/clip_8x2p8_24x2_d12_h8]", "--mask-steps", "2"]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", *arms.split("+")]
    assert metrics["primary"] == "I2T@1"
    assert {path.name for path in (tmp_path / "run/seed0").iterdir()} >= {"auto-1-masks", "auto-1", "auto-masks", "auto", "manual-1"}
    assert "rocedural data" in capsys.readouterr().out.splitlines()[0]
    assert "Procedural data" in (tmp_path / "run/report.html").read_text()
    history = metrics["stages"]["auto"][0]["history"]
    assert "train/affinity" in history[0]


def test_the_papers_preset_takes_a_step_on_shards(tmp_path: Path) -> None:
    """ViT-B/32 by its names, on shards of pictures and texts; widths and sizes are scaled down."""
    from tests.tasks.imagetext.pairs import write_shards

    shards = write_shards(tmp_path / "laion", 3, 8)
    options = {"teacher": TEACHER, "student": STUDENT, "batch-size": "8", "image-size": "24", "epochs": "1", "warmup-epochs": "0"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--mask-steps", "1", "--precision", "32-true", "--vocabulary", "520", "--accelerator", "cpu", "--workers", "0"]
    out = tmp_path / "run"
    assert main(["run", "tinyclip", "--preset", "paper", "--data", f"webdataset:{shards}", *words, "--out", str(out)]) == 0
    assert json.loads((out / "student.json").read_text())["source"].startswith("webdataset:")
    paper = catalog.load("tinyclip").presets["paper"]
    data = ImageTextData(f"webdataset:{shards}", image_size=224, vocabulary=520)
    small, large = shape_named(paper["student"], data, "student"), shape_named("stillroom/clip_vit_b32", data, "teacher")
    millions = [block_millions(tower) for tower in (small.image, small.text, large.image)]
    assert millions == pytest.approx([37.8, 18.9, 85.1], abs=0.1)  # the paper's 40M + 19M, embeddings apart


def test_shrink_clip_shrinks_a_folder_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shrunk: Callable[..., Path]
) -> None:
    out = shrunk(tmp_path)
    said = capsys.readouterr().out
    for line in ("parameters (M)", "multiply-adds (G)", "latency (ms)", "image → text R@1 (%)", "zero-shot top-1 (%)"):
        assert line in said
    before, after = (json.loads((out / "metrics.json").read_text())["stages"][arm][0] for arm in ("teacher", "auto"))
    assert after["footprint"]["parameters"] < before["footprint"]["parameters"]
    assert after["footprint"]["macs"] < before["footprint"]["macs"]
    assert (out / "clip/small_clip.py").is_file() != (out / "clip/config.json").is_file()
    manual = shrunk(tmp_path / "by-rule", "--inherit", "manual")
    transformers = pytest.importorskip("transformers")
    assert transformers.CLIPModel.from_pretrained(manual / "clip").config.vision_config.hidden_size == 8


def test_a_resnet_of_open_clips_is_shrunk_by_the_rule(tmp_path: Path, squares: ImageTextData, resnet: Clip) -> None:
    """A step of the job by itself; the student is asked, exported, and read again."""
    from tests.tasks.imagetext.pairs import write_pairs

    table, _ = write_pairs(tmp_path / "pairs")
    torch.save(to_open_clip(resnet), tmp_path / "rn.pt")
    squares.tokenizer.save(tmp_path)
    words = ["shrink-clip", f"{tmp_path / 'rn.pt'},head_width=8", "--data", f"pairs:{table}", "--epochs", "1", "--batch-size", "9"]
    words += ["--accelerator", "cpu", "--workers", "0", "--accept-teacher", "--student", SMALL_RESNET]
    out = tmp_path / "run"
    assert main([*words, "--inherit", "manual", "--out", str(out)]) == 0
    own = json.loads((out / "clip/clip.json").read_text())["shape"]["image"]
    assert own == {"width": 2, "blocks": [1, 2, 2, 1], "head_width": 8}
    assert main(["predict", str(out), str(tmp_path / "pairs/images"), "--classes", "red,blue", "--json"]) == 0
    student = load(out)
    exported = export(student.export_spec()["image"], tmp_path / "image.onnx", format="onnx")
    assert exported.outputs[0].difference <= 1e-4
    small, shipped = read_clip(str(out / "clip")).clip, student.network.state_dict()
    assert all(torch.equal(value, shipped[name]) for name, value in small.state_dict().items())
    assert small.visual.bn1.num_batches_tracked == 2  # trained on


def test_masks_for_a_resnet_are_refused_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "tinyclip", "--data", TINY, "--image-size", "32", *SMALL, "--teacher", RESNET, "--out", str(tmp_path / "run")]
    assert main(words) == 2
    said = "--teacher: got a ResNet as the image tower, expected a transformer, for learned masks; a ResNet is shrunk by --arms manual"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_hardly_shrank_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], shrunk: Callable[..., Path]) -> None:
    out = shrunk(tmp_path, "--mask-lr", "1e-6")
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"WARNING: auto: \d% of the blocks' weights were cut, not 50%", said)
    assert "weights were cut, not 50%" in (out / "report.html").read_text(encoding="utf-8").replace("&#x27;", "'").replace("&#39;", "'")


@pytest.fixture
def shrunk(data: ImageTextData) -> Callable[..., Path]:
    from tests.tasks.images.test_clips import HALF
    from tests.tasks.imagetext.pairs import write_pairs

    def shrink_clip(folder: Path, *more: str) -> Path:
        table, classes = write_pairs(folder / "pairs")
        own = ImageTextData(f"pairs:{table}", image_size=24, vocabulary=600, context=12)
        write_clip(folder / "clip", Clip(shape_named(TEACHER, own, "model")), own.tokenizer, HALF, HALF)
        words = ["--data", f"pairs:{table}", "--zero-shot", str(classes), "--epochs", "2", "--batch-size", "8", "--accelerator", "cpu"]
        words += ["--accept-teacher", "--out", str(folder / "run"), "--mask-lr", "5", "--workers", "0"]
        assert main(["shrink-clip", str(folder / "clip"), *words, *more]) == 0
        return folder / "run"

    return shrink_clip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "tinyclip", "--arms", "alone+other"], "--arms: got other"),
        (["run", "tinyclip", "--targets", "[0.5,0.4]"], "--targets: got (0.5, 0.4)"),
        (["run", "tinyclip", "--mask-steps", "8"], "--mask-steps: got 8"),
        (["run", "tinyclip", "--scale", "0"], "scale: got 0"),
        (["run", "tinyclip", "--affinity-share", "2"], "affinity-share: got 2"),
        (["run", "tinyclip", "--teacher", "no-folder"], "--teacher: got no-folder"),
        (["shrink-clip", "no-folder"], "MODEL: got no-folder"),
        (["shrink-clip", ".", "--target", "1"], "--target: got 1"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_trained(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = [] if "--teacher" in words or words[0] == "shrink-clip" else ["--teacher", TEACHER]
    options = ["--data", TINY, "--out", str(tmp_path / "run"), *teacher]
    assert main([*words, *options, *(SMALL if words[0] == "run" else [])]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
