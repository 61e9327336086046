from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Teacher, Training
from stillroom.engine.weights import save_weights
from stillroom.errors import InputError
from stillroom.methods.kd import KD
from stillroom.tasks.classification import ImageData, build_classifier

STUDENT = "stillroom/convnet4"
PAIR = Networks(STUDENT, STUDENT)


def saved_network(path: Path) -> Path:
    torch.manual_seed(0)
    network = build_classifier(STUDENT, num_classes=10).network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
    save_weights(network, path)
    return path


def test_teacher_of_other_statistics_is_scored_and_asked_with_its_own(tmp_path: Path) -> None:
    weights = saved_network(tmp_path / "teacher.safetensors")
    own, others = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}, {"mean": (0.1, 0.1, 0.1), "std": (0.9, 0.8, 0.7)}
    sizes = {"subset": 40, "val_subset": 60}
    at_home = ImageData("digits", **own, **sizes)
    abroad = ImageData("digits", **others, **sizes, teacher_mean=own["mean"], teacher_std=own["std"])
    lost = ImageData("digits", **others, **sizes)
    taught = {}
    for name, data in (("home", at_home), ("abroad", abroad), ("lost", lost)):
        lab = Lab(LabOptions(out=tmp_path / name, teacher_precision="fp32"))
        taught[name] = Experiment(lab, data, Training(epochs=1), Networks(f"{STUDENT}@{weights}", STUDENT, accept_teacher=True)).teacher()
        answers = lab.teach(taught[name])(next(iter(data.eval_loader())))
        taught[f"{name} answers"] = answers
    assert taught["abroad"].result.metrics["nll"] == pytest.approx(taught["home"].result.metrics["nll"], rel=1e-4)
    assert taught["lost"].result.metrics["nll"] != pytest.approx(taught["home"].result.metrics["nll"], rel=1e-3)
    torch.testing.assert_close(taught["abroad answers"], taught["home answers"], rtol=1e-3, atol=1e-3)


def test_teacher_statistics_need_a_teacher_with_weights(tmp_path: Path) -> None:
    data = ImageData("digits", subset=40, teacher_mean=(0.1, 0.1, 0.1))
    with pytest.raises(InputError, match="a teacher without weights, expected none"):
        Experiment(Lab(LabOptions(out=tmp_path)), data, Training(epochs=1), PAIR).teacher()


def test_what_is_wrong_with_the_method_is_said_before_anything_is_trained(tmp_path: Path, digits: ImageData) -> None:
    def wrong(student: nn.Module, teacher: Teacher) -> KD:
        return KD(student, teacher, temperature=-1.0)

    with pytest.raises(InputError, match="temperature"):
        Experiment(Lab(LabOptions(out=tmp_path / "run")), digits, Training(epochs=1), PAIR).run("kd", {"distilled": wrong})
    assert not (tmp_path / "run").exists()


def test_students_of_both_arms_start_from_the_same_weights(tmp_path: Path, digits: ImageData) -> None:
    started: list[torch.Tensor] = []

    class Watched(KD):
        def on_train_start(self) -> None:
            started.append(torch.cat([p.detach().flatten() for p in self.student.parameters()]))

    lab = Lab(LabOptions(out=tmp_path))
    Experiment(lab, digits, Training(epochs=1), PAIR).run("kd", {"distilled": Watched})
    fresh = build_classifier(STUDENT, num_classes=10).network  # built at the same place: after a stage
    assert torch.equal(started[-1], torch.cat([p.detach().flatten() for p in fresh.parameters()]))
