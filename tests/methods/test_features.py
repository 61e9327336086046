"""Features: any teacher's, pooled or by place, by any loss, from a network or from disk, into any backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize

from stillroom.cli import main
from stillroom.engine import Teacher
from stillroom.engine.cache import CachedTeacher, Storage, Views, build_cache
from stillroom.engine.cache.store import Writer
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.measure import Footprint
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.methods.features import Features
from stillroom.methods.features.distiller import resampled
from stillroom.methods.features.loss import Queue, smooth_l1
from stillroom.tasks.detection.models import backbone_of, build_detector
from stillroom.tasks.images.classifiers import build_backbone
from stillroom.tasks.images.layers import dense_layer
from stillroom.tasks.representation import RepresentationData
from stillroom.tasks.representation.teachers import Tower, Towers, as_map, open_teacher, pooled

JOB = ["--batch-size", "16", "--subset", "48", "--val-subset", "30", "--epochs", "1", "--accelerator", "cpu", "--teacher-precision", "fp32"]


class Killed(Exception):
    """Where it was."""


def digits(**options: Any) -> RepresentationData:
    return RepresentationData("digits", subset=48, val_subset=30, batch_size=16, workers=0, **options)


def opened(spec: str, data: RepresentationData, size: int | None = None, *, dense: bool = True) -> Tower:
    return open_teacher(spec, data, size, dense=dense, trust_pickle=False).tower


# Losses ----------------------------------------------------------------------------------------------------------------------------------


def test_the_queue_is_the_cross_entropy_of_two_softmaxes_over_what_came_before() -> None:
    queue, rows = Queue(6, 4, student_temperature=0.2, teacher_temperature=0.05).double(), torch.randn(5, 4).double()
    queue.push(rows)
    student, teacher = torch.randn(3, 4).double().requires_grad_(), torch.randn(3, 4).double()
    expected = []
    for one, other in zip(normalize(student, dim=1), normalize(teacher, dim=1), strict=True):
        among = torch.cat([normalize(rows.float(), dim=1).double(), other[None]])  # the sixth row was never filled
        expected.append(-((among @ other / 0.05).softmax(0) * (among @ one / 0.2).log_softmax(0)).sum())
    loss = queue(student, teacher)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    queue.push(teacher)  # in training this comes before the backward pass
    loss.backward()
    assert student.grad is not None
    torch.testing.assert_close(queue.rows[0].double(), normalize(teacher, dim=1)[1], atol=1e-6, rtol=0)  # the oldest went first
    assert bool(queue.filled.all())
    assert float(queue(teacher, teacher)) < float(queue(-teacher, teacher))


def test_smooth_l1_is_to_whitened_features_of_vectors_and_maps() -> None:
    teacher = 7 * torch.randn(2, 8, 3, 3) + 2
    whitened = layer_norm(teacher.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)
    assert float(smooth_l1(whitened, teacher)) < 1e-9
    torch.testing.assert_close(smooth_l1(whitened[..., 0, 0] + 4, teacher[..., 0, 0]), torch.tensor(3.0))  # |4| - beta / 2
    torch.testing.assert_close(smooth_l1(whitened + 1, teacher), torch.tensor(0.25))  # 1 / (2 beta)


@pytest.mark.parametrize("loss", ["cosine", "smooth_l1", "queue"])
@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_each_loss_falls_and_the_student_follows(loss: Any, projector: Any) -> None:
    torch.manual_seed(0)
    teacher, example = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), torch.randn(1, 3, 4, 4)
    towers = Teacher(Towers([Tower(teacher, None)]), precision="fp32")
    student = nn.Sequential(nn.Flatten(), nn.Linear(48, 12))
    made = Features(student, towers, example=example, loss=loss, projector=projector, queue_size=32, queue_temperatures=(0.2, 0.1))
    images, losses = torch.randn(64, 3, 4, 4), []
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-2)

    class Shown:
        inputs = images

    for _ in range(60):
        optimizer.zero_grad()
        total = made.losses(Shown()).total  # type: ignore[arg-type]
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.7 * losses[1]


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"loss": "l7"}, "feature_loss"),
        ({"projector": "cubic"}, "projector"),
        ({"pooled_weight": 0.0}, "pooled_weight"),
        ({"dense_weight": -1.0}, "dense_weight"),
        ({"loss": "queue", "queue_size": 0}, "queue_size"),
        ({"loss": "queue", "queue_temperatures": (0.0, 0.1)}, "queue_temperatures"),
    ],
)
def test_what_cannot_be_used_is_named(options: dict[str, Any], argument: str) -> None:
    towers = Teacher(Towers([Tower(nn.Flatten(), None)]))
    with pytest.raises(InputError) as caught:
        Features(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), towers, example=torch.randn(1, 3, 4, 4), **options)
    assert caught.value.argument == argument


# Teachers --------------------------------------------------------------------------------------------------------------------------------


def test_a_classifiers_folder_has_no_pooler_to_trust(tmp_path: Path) -> None:
    import transformers

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**small, image_size=28, patch_size=7))
    model.save_pretrained(tmp_path / "m")
    data = digits()
    tower = opened(f"transformers/{tmp_path / 'm'}", data, 28)
    images = next(iter(data.eval_loader())).images[:2]
    assert tower.inputs is not None
    expected = model.eval().vit(tower.inputs(images)).last_hidden_state[:, 0]
    torch.testing.assert_close(tower(images)[0], expected, rtol=1e-4, atol=1e-5)
    weights = load_file(tmp_path / "m/model.safetensors")
    missing = next(name for name in weights if "layer.0" in name or "layers.0" in name)
    save_weights({name: value for name, value in weights.items() if name != missing}, tmp_path / "m/model.safetensors")
    with pytest.raises(InputError, match="without weights for"):
        opened(f"transformers/{tmp_path / 'm'}", data, 28)


def vision_folder(folder: Path, kind: str) -> str:
    """A small network of transformers with random weights, as `save_pretrained` writes it."""
    import transformers

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    if kind == "clip":
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 99}
        vision = {**small, "intermediate_size": 16}
        model: Any = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    elif kind == "dinov2_with_registers":
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**small, num_register_tokens=3))
    elif kind == "dinov3_vit":
        config = transformers.DINOv3ViTConfig(**small, intermediate_size=16, num_register_tokens=2)
        model = transformers.DINOv3ViTModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**small))
    model.save_pretrained(folder)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, "image_processor_type": "ViTImageProcessor"}))
    return f"transformers/{folder}"


@pytest.mark.parametrize(("kind", "width"), [("dinov2", 16), ("dinov2_with_registers", 16), ("dinov3_vit", 16), ("clip", 12)])
def test_a_folder_of_transformers_answers_as_transformers_itself(tmp_path: Path, kind: str, width: int) -> None:
    import transformers

    data = digits(image_size=14)
    tower = opened(vision_folder(tmp_path / "m", kind), data)
    images = next(iter(data.eval_loader())).images[:2]
    with torch.no_grad():
        pooled_BD, dense = tower(images)
    assert pooled_BD.shape == (2, width)
    assert dense is not None
    assert dense.shape == (2, 16, 4, 4)
    # the images that it expects: its own statistics and size
    raw = images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    own = (raw - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    own = nn.functional.interpolate(own, (28, 28), mode="bilinear", antialias=True, align_corners=False)
    if kind == "clip":
        model = transformers.CLIPModel.from_pretrained(tmp_path / "m")
        expected = model.visual_projection(model.vision_model(pixel_values=own).pooler_output)
    else:
        answer = transformers.AutoModel.from_pretrained(tmp_path / "m")(pixel_values=own)
        expected = answer.pooler_output
        torch.testing.assert_close(dense.flatten(2).mT, answer.last_hidden_state[:, -16:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled_BD, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("timm/resnet10t", (512, 2, 2)),
        ("timm/vit_tiny_patch16_224", (192, 4, 4)),
        ("timm/test_vit", (64, 4, 4)),
        ("timm/swin_tiny_patch4_window7_224", (768, 2, 2)),
        ("torchvision/mobilenet_v2", (1280, 2, 2)),
        ("torchvision/vit_b_32", (768, 2, 2)),
        ("stillroom/resnet20", (64, 16, 16)),
    ],
)
def test_maps_of_any_library(spec: str, shape: tuple[int, int, int]) -> None:
    if spec == "torchvision/vit_b_32":
        pytest.importorskip("torchvision")
    network = build_backbone(spec, image_size=64).network.eval()
    images = torch.randn(2, 3, 64, 64)
    kept: list[Tensor] = []
    network.get_submodule(dense_layer(network, images, "teacher")).register_forward_hook(lambda m, i, answer: kept.append(answer))
    with torch.no_grad():
        answer = network(images)
    found = as_map(kept[-1], network, (64, 64))
    assert tuple(found.shape[1:]) == shape
    if spec in ("timm/resnet10t", "stillroom/resnet20"):
        torch.testing.assert_close(found.mean((2, 3)), pooled(answer))


def test_grids_of_unlike_size_are_resampled() -> None:
    ramp = torch.linspace(0, 1, 12).view(1, 1, 1, 12).expand(1, 1, 12, 12)
    assert resampled(ramp, (12, 12)) is ramp
    smaller = resampled(ramp, (4, 3))
    assert smaller.shape == (1, 1, 4, 3)
    assert (smaller.diff(dim=-1) > 0).all()
    assert abs(float(smaller.mean() - ramp.mean())) < 1e-4  # smoothed, not picked


# The whole job ---------------------------------------------------------------------------------------------------------------------------


def run(out: Path, *more: str) -> dict[str, Any]:
    words = ["run", "features", "--data", "digits", *JOB, "--out", str(out), "--student", "stillroom/convnet4", *more]
    assert main(words) == 0
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two networks in files, of unlike width and place."""
    folder = tmp_path_factory.mktemp("teachers")
    specs = []
    for name in ("resnet8", "convnet24"):
        torch.manual_seed(1)
        from stillroom.tasks.images.classifiers import build_classifier

        save_weights(build_classifier(f"stillroom/{name}", num_classes=7).network, folder / f"{name}.safetensors")
        specs.append(f"stillroom/{name}@{folder / name}.safetensors")
    return specs


def test_several_teachers_pooled_and_dense_from_disk_as_from_the_networks(
    teachers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--teacher", "+".join(teachers), "--dense-weight", "0.5", "--augment", "none"]
    online, stored = run(tmp_path / "online", *both), run(tmp_path / "stored", *both, "--views", "1")
    said = capsys.readouterr().out
    assert "maps in half precision" in said
    rows = [stages["stages"]["distilled"][0]["history"][0] for stages in (online, stored)]
    assert {name for name in rows[0] if name.startswith("train/")} == {
        "train/pooled 1", "train/pooled 2", "train/dense 1", "train/dense 2", "train/total"
    }  # fmt: skip
    for name in ("train/pooled 1", "train/pooled 2", "train/dense 1", "train/dense 2"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-3), name
    again = run(tmp_path / "again", "--teacher", f"cache:{tmp_path / 'stored/answers'}", "--dense-weight", "0.5", "--augment", "none")
    assert again["stages"]["distilled"][0]["history"][0]["train/pooled 1"] == rows[1]["train/pooled 1"]
    assert again["stages"]["teacher"][0]["metrics"]["knn"] == stored["stages"]["teacher"][0]["metrics"]["knn"]
    assert not (tmp_path / "online/teacher/student.safetensors").exists()  # teachers may be large, and lie on disk
    weights = load_file(tmp_path / "online/student.safetensors")
    assert not any("project" in name for name in weights)


def test_the_command_stores_what_a_run_stores_bit_for_bit_and_goes_on_with_it(
    teachers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--teacher", "+".join(teachers), "--dense-weight", "1"]
    run(tmp_path / "run", *both, "--views", "2")
    words = ["cache", "--task", "representation", "--data", "digits", *JOB, *both, "--out", str(tmp_path / "cache")]
    write, written = Writer.write, []

    def once(writer: Writer, rows: Any) -> None:
        written.append(rows)
        if len(written) == 3:
            raise Killed
        write(writer, rows)

    monkeypatch.setattr(Writer, "write", once)
    with pytest.raises(Killed):
        main([*words, "--views", "2"])
    monkeypatch.undo()
    capsys.readouterr()
    assert main([*words, "--views", "2"]) == 0
    said = capsys.readouterr().out
    assert "pooled, dense of 48 images, 2 views each" in said
    files = {place: {file.name: file.read_bytes() for file in (tmp_path / place / "rows").iterdir()} for place in ("cache", "run/answers")}
    assert len(files["cache"]) > 4
    assert files["cache"] == files["run/answers"]
    again = run(tmp_path / "again", "--teacher", f"cache:{tmp_path / 'cache'}", "--dense-weight", "1")
    before = json.loads((tmp_path / "run/metrics.json").read_text())
    for name in ("teacher", "distilled"):
        assert again["stages"][name][0]["metrics"] == before["stages"][name][0]["metrics"]
    fresh = ["--out", str(tmp_path / "no")]
    for more, complaint in (
        (["--views", "3", "--out", str(tmp_path / "cache")], "--out: got"),  # somebody else's
        (["--teacher", "stillroom/resnet8"], "--teacher: got stillroom/resnet8, without weights"),
        (["--teacher", f"{teachers[0]}+"], "--teacher: got"),
        (["--teacher", f"cache:{tmp_path / 'cache'}"], "a network: what it answered is in a cache already"),
        (["--task", "adasim"], "--task: got adasim"),
    ):
        assert main([*words, "--views", "2", *fresh, *more]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1
        assert not (tmp_path / "no").exists()


def test_pooled_answers_are_stored_exactly_and_maps_in_half_precision(tmp_path: Path) -> None:
    data = digits(augment="none")
    network = Towers([opened("stillroom/resnet8", data)])
    teacher = Teacher(network, precision="fp32", fold=False)
    result = StageResult("teacher", 0, {"knn": 1.0}, {}, [], Footprint(0, None, 0.0, 0), 0.0, 0, "x")
    cache = build_cache(tmp_path, teacher, data, result, views=Views(1), storage=Storage("fp16"), exact=("pooled",))
    batch = next(iter(data.replaying(cache.views).train_loader(seed=0)))
    mine, stored = teacher(batch), cache(batch)
    assert torch.equal(mine["pooled"][0], stored["pooled"][0])
    dense, kept = mine["dense"][0], stored["dense"][0]
    torch.testing.assert_close(kept, dense.half().float(), rtol=0, atol=0)
    assert not torch.equal(kept, dense)
    assert isinstance(cache, CachedTeacher)
    pooled_only, student = Teacher(Towers([Tower(nn.Flatten(), None)])), build_backbone("stillroom/resnet8", image_size=8).network
    with pytest.raises(InputError, match="hold no maps"):
        Features(student, pooled_only, example=data.example_inputs(), dense_weight=1.0)


def test_a_pile_without_labels_wants_a_teacher_with_weights(
    teachers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pile"
    folder.mkdir()
    for number in range(40):
        Image.effect_noise((12, 12), 10 + 5 * number).convert("RGB").save(folder / f"{number}.png")
    job = ["run", "features", "--data", f"images:{folder},val=0.2", "--batch-size", "8", "--epochs", "1", "--accelerator", "cpu"]
    job += ["--student", "stillroom/convnet4"]
    assert main([*job, "--teacher", "stillroom/resnet8", "--out", str(tmp_path / "no")]) == 2
    assert "no labels to train a teacher on" in " ".join(capsys.readouterr().err.split())
    assert main([*job, "--teacher", teachers[0], "--tune-labels", "5", "--out", str(tmp_path / "no")]) == 2
    assert "--tune-labels" in capsys.readouterr().err
    assert main([*job, "--teacher", teachers[0], "--out", str(tmp_path / "yes")]) == 0
    assert "without labels there are no scores" in (tmp_path / "yes/report.html").read_text()


def test_few_labels_are_worth_more_from_the_distilled_backbone_and_all_stages_are_kept(tmp_path: Path) -> None:
    found = run(tmp_path / "out", "--teacher", "stillroom/convnet24", "--teacher-epochs", "1", "--accept-teacher", "--tune-labels", "2")
    assert "tuned" in found["summary"]["start"]["metrics"]
    assert "tuned" in found["summary"]["distilled"]["metrics"]
    assert found["gains"]["distilled"]["over"] == "start"
    assert "fine-tuned, 2 labels a class" in (tmp_path / "out/report.html").read_text()


def test_a_killed_run_goes_on_to_the_same_numbers(teachers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue and the projectors are in the checkpoint."""
    job = ["--teacher", teachers[0], "--feature-loss", "queue", "--queue-size", "40", "--epochs", "2", "--checkpoint-steps", "1"]
    whole = run(tmp_path / "whole", *job)
    push, pushed = Queue.push, []

    def once(queue: Queue, rows: Tensor) -> None:
        pushed.append(len(rows))
        if len(pushed) == 5:
            raise Killed
        push(queue, rows)

    monkeypatch.setattr(Queue, "push", once)
    words = ["run", "features", "--data", "digits", *JOB, "--student", "stillroom/convnet4", *job, "--out", str(tmp_path / "killed")]
    with pytest.raises(Killed):
        main(words)
    monkeypatch.undo()
    assert main(words) == 0
    killed = json.loads((tmp_path / "killed/metrics.json").read_text())
    assert killed["stages"]["distilled"][0]["resumed"] == 1
    assert killed["stages"]["distilled"][0]["metrics"] == whole["stages"]["distilled"][0]["metrics"]


def test_a_detectors_backbone_is_trained_and_the_detector_takes_it(
    teachers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", "--teacher", teachers[0], "--student", "gfl/resnet10t", "--image-size", "32")
    assert f"takes it as gfl/resnet10t,backbone={tmp_path}" in capsys.readouterr().out.replace("\n", "")
    weights = {name.replace("_", "."): value for name, value in load_file(tmp_path / "run/student.safetensors").items()}
    for spec in ("gfl/resnet10t", "fcos/resnet10t"):
        built = build_detector(f"{spec},backbone={tmp_path / 'run'}", num_classes=3)
        own = {name.partition("network.")[2].replace("_", "."): value for name, value in built.network.state_dict().items()}
        taken = {name: value for name, value in weights.items() if name in own and not name.endswith("tracked")}
        assert built.notes[0].startswith(f"its backbone starts from all {len(taken)} tensors")
        assert len(taken) > 60
        assert all(torch.equal(value, own[name]) for name, value in taken.items())


@pytest.mark.parametrize(
    ("spec", "backbone"),
    [
        ("gfl/resnet18,backbone=start.pth", "timm/resnet18@start.pth"),
        ("torchvision/fcos_resnet50_fpn,backbone=pretrained", "torchvision/resnet50@pretrained"),
        ("torchvision/resnet50@start.pth", None),
        ("stillroom/gfl_24", None),
    ],
)
def test_what_a_detectors_backbone_is_called(spec: str, backbone: str | None) -> None:
    assert backbone_of(spec) == backbone


def test_a_whole_detectors_weights_are_no_backbones() -> None:
    with pytest.raises(InputError, match="without the weights of a detector"):
        backbone_of("gfl/resnet18@detector.pth")
