"""What a run says about its student, and what a user's specification names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from stillroom.engine.card import read_card, read_specification, write_card
from stillroom.engine.specification import with_files
from stillroom.engine.task import Built
from stillroom.errors import InputError


class Data:
    """As much of a task's data as a card needs."""

    fingerprint = "1234"

    def describe(self) -> dict[str, Any]:
        return {"classes": ["ant", "bee"], "image_size": 8}


def named(spec: str, **options: Any) -> tuple[str, str, tuple[str, ...] | None]:
    found = read_specification(spec, trust_pickle=False, argument="teacher", **options)
    return found.source, found.weights, found.classes


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_card(tmp_path, "sorting", "stillroom/net@weights.pt", Data(), head={"width": 3})
    card = read_card(tmp_path, trust_pickle=False)
    assert (card.task, card.model, card.num_classes, card.classes) == ("sorting", "stillroom/net", 2, ("ant", "bee"))
    assert card.weights == tmp_path / "student.safetensors"
    assert card.parsed(lambda content: (content["head"]["width"], content["fingerprint"]), "head") == (3, "1234")
    with pytest.raises(InputError, match=r"run: got .*student\.json, expected JSON with the student's tail"):
        card.parsed(lambda content: content["tail"], "tail")


def test_a_card_from_before_there_were_tasks_is_a_classifier_s(tmp_path: Path) -> None:
    (tmp_path / "student.json").write_text(json.dumps({"model": "stillroom/net", "num_classes": 5}))
    card = read_card(tmp_path, trust_pickle=False)
    assert (card.task, card.num_classes, card.classes) == ("classification", 5, None)


def test_what_a_specification_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "timm/net"):
        (tmp_path / folder).mkdir(parents=True)
        write_card(tmp_path / folder, "sorting", "stillroom/net", Data())
    assert named("timm/net") == ("timm/net", "", None), "a folder that is called as a library's network is not meant"
    assert named("./timm/net") == ("stillroom/net", "timm/net/student.safetensors", ("ant", "bee"))
    assert named("run") == ("stillroom/net", "run/student.safetensors", ("ant", "bee"))
    assert named("torchvision/net@run") == ("torchvision/net", "run", ("ant", "bee")), "weights know what they were trained for"
    assert named("torchvision/net@pretrained") == ("torchvision/net", "pretrained", None)
    (tmp_path / "student.json").write_text((tmp_path / "run" / "student.json").read_text())
    assert named("torchvision/net") == ("torchvision/net", "", None), "a card where the reader stands is none of its business"
    with pytest.raises(InputError, match="teacher: got timm/net@, expected after @ a file or folder of weights"):
        named("timm/net@")


def test_a_specification_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tail = ",known=4,hidden=8,projection=8,layers=1,temperature=0.1"
    for source, absolute in (
        ("nets.py:build", f"{tmp_path}/nets.py:build"),
        ("my.nets:build", "my.nets:build"),
        ("timm/net", "timm/net"),
        (f"novel:nets.py:build{tail}", f"novel:{tmp_path}/nets.py:build{tail}"),
    ):
        assert read_specification(source, trust_pickle=False, argument="teacher").spec == absolute
        assert with_files(absolute, lambda file: file.name) == source


def test_a_network_of_other_classes_is_told_how_they_differ() -> None:
    built = Built(nn.Identity(), "net", "run", ("ant", "bee"))
    assert built.of_classes(["ant", "bee"], "run", "teacher") is built
    assert Built(nn.Identity(), "net", None).of_classes(["wasp"], "net", "teacher").classes is None
    with pytest.raises(InputError, match="teacher: got run, whose classes are not those of the data: their order differs"):
        built.of_classes(["bee", "ant"], "run", "teacher")
    with pytest.raises(InputError, match=r"only the model has \['bee'\], only the data have \['wasp'\]"):
        built.of_classes(["ant", "wasp"], "run", "teacher")
