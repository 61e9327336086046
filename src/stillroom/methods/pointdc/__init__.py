"""PointDC - Unsupervised Semantic Segmentation of 3D Point Clouds via Cross-Modal Distillation and Super-Voxel Clustering (ICCV 2023).

Classes of points in rooms, without a single label. First a 3D network learns the features of a frozen 2D network, which posed pictures
carry to the points, averaged over views and super-voxels (cross-modal distillation); then its own features are clustered over all
training scans, super-voxel by super-voxel, the clusters are taken for labels, and clustering and training alternate.

    L_cmd = mean ( s / |s| - t / |t| )^2          L_svc = CE( <z, mu_k>, cluster of the super-voxel )

In the paper's order: `lifting` and `teacher` the 2D side, `loss`, `distiller` the three trainings, `recipe` the experiment; super-voxels
are in `tasks.points.supervoxels`, backbone and k-means in `tasks.segmentation3d`.
"""

from stillroom.methods.pointdc.distiller import CMD, Clusters, IterativeClustering, WarmUp
from stillroom.methods.pointdc.recipe import ROOM, recipe

__all__ = ["CMD", "ROOM", "Clusters", "IterativeClustering", "WarmUp", "recipe"]
