"""Cameras around an ego: from points to pixels, and from pixels and depths back to points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.errors import InputError


@dataclass(frozen=True)
class Cameras:
    """Geometry of N cameras for each of B samples.

    A pixel of the network's input is `post_rot (u, v, depth) + post_trans` of the pixel (u, v) of the original picture: resizing,
    cropping, flipping and turning a picture are written there and leave the intrinsics alone.

    Args:
        intrinsics: [B, N, 3, 3].
        cam2ego: [B, N, 4, 4].
        post_rot: [B, N, 3, 3], its last row and column those of the identity; None: pictures are as they were taken.
        post_trans: [B, N, 3], its last entry 0.

    Raises:
        InputError: a shape is wrong, or a camera has no usable calibration.
    """

    intrinsics: Tensor
    cam2ego: Tensor
    post_rot: Tensor | None = None
    post_trans: Tensor | None = None

    def __post_init__(self) -> None:
        lead = self.intrinsics.shape[:2]
        if self.post_rot is None:
            object.__setattr__(self, "post_rot", torch.eye(3).to(self.intrinsics).expand(*lead, 3, 3))
        if self.post_trans is None:
            object.__setattr__(self, "post_trans", self.intrinsics.new_zeros(*lead, 3))
        for name, tail in (("intrinsics", (3, 3)), ("cam2ego", (4, 4)), ("post_rot", (3, 3)), ("post_trans", (3,))):
            value: Tensor = getattr(self, name)
            if value.shape != (*lead, *tail):
                raise InputError(name, list(value.shape), f"the shape {[*lead, *tail]}")
            if not value.isfinite().all():
                raise InputError(name, "NaN or infinity", "a calibration for every camera")
        focal = self.intrinsics[..., [0, 1], [0, 1]]
        if not (focal != 0).all():
            raise InputError("intrinsics", "a focal length of 0", "a calibration for every camera")

    def to(self, target: torch.device | torch.dtype) -> Cameras:
        """The same cameras on another device or in another precision."""
        return Cameras(*(value.to(target) for value in self._tensors()))

    def float(self) -> Cameras:
        """The same cameras in float32."""
        return self.to(torch.float32)

    def __getitem__(self, samples: slice) -> Cameras:
        """The cameras of some samples."""
        return Cameras(*(value[samples] for value in self._tensors()))

    def moved(self, a2b: Tensor) -> Cameras:
        """The cameras once the ego's frame a has become b (augmentation, another sweep); `a2b` [B, 4, 4] or [4, 4]."""
        a2b = a2b.to(self.cam2ego)
        return Cameras(self.intrinsics, (a2b[:, None] if a2b.ndim == 3 else a2b) @ self.cam2ego, self.post_rot, self.post_trans)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert self.post_rot is not None
        assert self.post_trans is not None
        return self.intrinsics, self.cam2ego, self.post_rot, self.post_trans

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where points of the ego frame appear.

        Args:
            points: [B, P, 3] or [B, N, P, 3], metres.

        Returns:
            Pixels (u, v) of the network's input [B, N, P, 2], and the depth along the optical axis [B, N, P], metres. What lies behind a
            camera has a depth of 0 or less and pixels without meaning.
        """
        intrinsics, cam2ego, post_rot, post_trans = self._tensors()
        points = points if points.ndim == 4 else points[:, None]
        # the linear part is inverted, not transposed: a mirrored or scaled frame (augmentation) is no rotation
        local = (points - cam2ego[:, :, None, :3, 3]) @ cam2ego[..., :3, :3].inverse().transpose(-1, -2)
        seen = local @ intrinsics.transpose(-1, -2)
        depth = seen[..., 2:]
        flat = seen[..., :2] / torch.where(depth.abs() > 1e-6, depth, 1e-6)
        pixels = torch.cat((flat, depth), -1) @ post_rot.transpose(-1, -2) + post_trans[:, :, None]
        return pixels[..., :2], depth[..., 0]

    def unproject(self, pixels: Tensor) -> Tensor:
        """Points of the ego frame behind pixels of the network's input.

        Args:
            pixels: (u, v, depth), [..., 3], pixels and metres, the same for all cameras.

        Returns:
            [B, N, ..., 3], metres.
        """
        intrinsics, cam2ego, post_rot, post_trans = self._tensors()
        flat = pixels.reshape(1, 1, -1, 3) - post_trans[:, :, None]
        original = flat @ post_rot.inverse().transpose(-1, -2)
        rays = torch.cat((original[..., :2] * original[..., 2:], original[..., 2:]), -1)
        to_ego = cam2ego[..., :3, :3] @ intrinsics.inverse()
        points = rays @ to_ego.transpose(-1, -2) + cam2ego[:, :, None, :3, 3]
        return points.reshape(*points.shape[:2], *pixels.shape)

    def frustum(self, input_size: tuple[int, int], stride: int, depths: Tensor) -> Tensor:
        """The points that each cell of a picture's feature map can stand for.

        Args:
            input_size: (height, width) of the network's input, pixels.
            stride: pixels per cell of the feature map.
            depths: [D], metres along the optical axis.

        Returns:
            [B, N, D, height // stride, width // stride, 3] in the ego frame. The outermost cells look along the outermost pixels.
        """
        height, width = input_size
        v = torch.linspace(0, height - 1, height // stride, device=depths.device, dtype=depths.dtype)
        u = torch.linspace(0, width - 1, width // stride, device=depths.device, dtype=depths.dtype)
        d, v, u = torch.meshgrid(depths, v, u, indexing="ij")
        return self.unproject(torch.stack((u, v, d), -1).to(self.intrinsics))
