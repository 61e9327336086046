"""What a run's folder holds for other libraries."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from stillroom.engine.card import Described
from stillroom.engine.run.written import put, refuse_links


def deliver(folder: Path, network: nn.Module, model: str, data: Described) -> None:
    """Writes, for a timm network, the folder `student`, which timm itself loads (`local-dir:`)."""
    if model.startswith("timm/"):
        from timm.models import save_for_hf

        about = data.describe()
        transform = about["transform"]
        settings = {
            "mean": transform["mean"],
            "std": transform["std"],
            "input_size": [3, about["image_size"], about["image_size"]],
            "interpolation": transform["interpolation"],
            "crop_pct": transform["crop"] / transform["resize"],
            "crop_mode": "center",
            "test_input_size": None,  # the published weights' own recommendation, and so the next
            "test_crop_pct": None,
        }
        config = {"label_names": list(about["classes"]), "pretrained_cfg": settings}
        part = folder / ".student.part"  # timm writes in place: whoever reads or kills meanwhile would be left with half a file
        refuse_links(part / "any")
        save_for_hf(network, str(part), model_config=config, safe_serialization=True)
        (folder / "student").mkdir(exist_ok=True)
        for file in part.iterdir():
            put(file, folder / "student" / file.name)
        part.rmdir()
