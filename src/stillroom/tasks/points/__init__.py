"""What every task on point clouds stands on: boxes, grids, voxels, sparse convolutions, cameras, heads from above, scores.

Conventions, everywhere: right-handed frames with z up, metres, radians; yaw counter-clockwise about +z, 0 along +x. A box is
(x, y, z, dx, dy, dz, yaw[, vx, vy]) with its **geometric** centre and dx along its own x axis. A transform is 4x4, acts on column
vectors and is named `a2b`. A camera looks along its z, x to the right and y down; pixel centres are integers. Maps from above are
[B, C, ny, nx]: a row is a y, a column an x. Points of a batch are one tensor [sum N, D] with `batch_index` [sum N], int64, sorted; the
number of samples is always passed along, since the last sample may be empty. Voxels are int64 [M, 4] = (batch, z, y, x).
"""
