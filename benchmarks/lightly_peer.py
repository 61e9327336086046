"""lightly-train's distillation, a step at a time, in an environment of its own; `features.py --peer-python` starts it.

    python lightly_peer.py FOLDER

FOLDER holds `setting.json`, `images.pt` [B, 3, S, S], and without their heads `teacher.pt` (torchvision's ViT-B/16) and `student.pt` (its
ResNet-18). Two method objects are built around these networks, as its `train` builds them: `distillationv1` (pooled features, a queue)
and `distillation` (those and the last maps). A step is their `training_step_impl`, the backward pass, clipping
by their norm of 1, and their AdamW. What the teacher answers to the images is written to `answers.pt`; then every line on stdin that names
a method is answered with the processor's seconds of one step.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightly_train._methods.distillation import distillation
from lightly_train._methods.distillationv3.distillationv3 import DistillationV3, DistillationV3AdamWArgs, DistillationV3Args
from lightly_train._models.embedding_model import EmbeddingModel
from lightly_train._models.package_helpers import get_wrapped_model
from lightly_train._optim import optimizer_helpers
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18


class Teacher(nn.Module):
    """A ViT in the form that both methods ask: as a network that answers with its first token, and as a wrapped model."""

    def __init__(self, folder: Path, side: int) -> None:
        super().__init__()
        vit = VisionTransformer(image_size=side, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072)
        vit.heads = nn.Identity()
        vit.load_state_dict(torch.load(folder / "teacher.pt"))
        self.vit, self.embed_dim = vit.eval().requires_grad_(False), 768

    def feature_dim(self) -> int:
        return 768

    def get_model(self) -> nn.Module:
        return self.vit

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.vit(images_BCHW)

    def forward_features(self, images_BCHW: Tensor, masks: Any = None) -> dict[str, Tensor]:
        patches_BND = self.vit._process_input(images_BCHW)
        first_B1D = self.vit.class_token.expand(len(patches_BND), -1, -1)
        tokens_BND = self.vit.encoder(torch.cat([first_B1D, patches_BND], 1))
        side = images_BCHW.shape[-1] // 16
        return {"features": tokens_BND[:, 1:].mT.unflatten(2, (side, side)), "cls_token": tokens_BND[:, 0]}

    def forward_pool(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pooled_features": found["cls_token"][:, :, None, None]}


def made(folder: Path, name: str, teacher: Teacher, setting: dict[str, Any]) -> Any:
    student = resnet18(weights=None)
    student.load_state_dict(torch.load(folder / "student.pt"), strict=False)  # all but its head, which takes no part
    args: dict[str, Any] = {
        "embedding_model": EmbeddingModel(get_wrapped_model(student, num_input_channels=3)),
        "global_batch_size": setting["batch"],
        "num_input_channels": 3,
    }
    if name == "distillation":
        options = DistillationV3Args(teacher=teacher, queue_size=setting["queue"])
        return DistillationV3(method_args=options, optimizer_args=DistillationV3AdamWArgs(weight_decay=1e-6), **args).train()
    distillation.get_teacher = lambda *args, **kwargs: teacher  # which else knows DINOv2 and DINOv3 alone
    options = distillation.DistillationArgs(queue_size=setting["queue"])
    return distillation.Distillation(method_args=options, optimizer_args=distillation.DistillationAdamWArgs(), **args).train()


def main() -> None:
    folder = Path(sys.argv[1])
    setting = json.loads((folder / "setting.json").read_text())
    torch.set_num_threads(setting["threads"])
    images, teacher = torch.load(folder / "images.pt"), Teacher(folder, setting["side"])
    with torch.no_grad():
        found = teacher.forward_features(images)
    torch.save({"pooled": teacher(images), "dense": found["features"]}, folder / "answers.pt")
    methods = {name: made(folder, name, teacher, setting) for name in ("distillationv1", "distillation")}
    optimizers = {
        name: optimizer_helpers.get_optimizer(method.optimizer_args, method.trainable_modules(), lr_scale=1.0)
        for name, method in methods.items()
    }
    teacher.eval()
    print(json.dumps({"version": version("lightly-train"), "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        method, optimizer = methods[line.strip()], optimizers[line.strip()]
        began = time.process_time()
        optimizer.zero_grad()
        method.training_step_impl({"views": [images]}, 0).loss.backward()
        nn.utils.clip_grad_norm_([one for group in optimizer.param_groups for one in group["params"]], 1.0)
        optimizer.step()
        print(json.dumps(time.process_time() - began), flush=True)


if __name__ == "__main__":
    main()
