"""Gradients of a 1x1 head, one for each image, in closed form; their moments over a domain's images, averaged over the steps.

For logits z = W f + b and the cross-entropy averaged over N images of P pixels:

    E_n(p) = (softmax z_n(p) - onehot y_n(p)) / (N P),   g_n^W = sum_p E_n(p) f_n(p)^T,   g_n^b = sum_p E_n(p)
    mu = mean_n g_n,   sigma = mean_n (g_n - mu)^2,   x_bar <- m stopgrad(x_bar) + (1 - m) x,  from 0

All are differentiable in f, and in z where the head's parameters are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from stillroom.engine.distributed import world_size
from stillroom.losses.precision import at_least_float32


def head_gradients(features_NDHW: Tensor, logits_NCHW: Tensor, labels_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """g^W [N, C, D] and g^b [N, C] of every image's share in the loss of all of them, of all processes together.

    Computed outside autocast in float32 at least: the moments are of 1e-4 to 1e-9. An image of one pixel is a pooled feature.

    Args:
        features_NDHW: f, what the head reads.
        logits_NCHW: z, what it answers.
        labels_NHW: y, int64.
    """
    with torch.autocast(features_NDHW.device.type, enabled=False):
        p_NCP = at_least_float32(logits_NCHW).flatten(2).softmax(1)
        onehot_NCP = one_hot(labels_NHW.flatten(1), p_NCP.shape[1]).mT
        e_NCP = (p_NCP - onehot_NCP) / (len(p_NCP) * world_size() * p_NCP.shape[2])
        return e_NCP @ at_least_float32(features_NDHW).flatten(2).mT, e_NCP.sum(2)


def flattened(weight_NCD: Tensor, bias_NC: Tensor) -> Tensor:
    """[N, C + C D]: the bias first, then the weight row by row."""
    return torch.cat((bias_NC, weight_NCD.flatten(1)), 1)


def moments(rows_Bd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the rows, each of a row's shape; of one row the variance is 0."""
    mean = rows_Bd.mean(0)
    return mean, ((rows_Bd - mean) ** 2).mean(0)


class MovingAverage(nn.Module):
    """x_bar: starts from zeros, without correction for that; what comes back has the gradient of this step's share.

    Args:
        shape: of the values.
        momentum: m, share of what was.
    """

    value: Tensor

    def __init__(self, shape: tuple[int, ...], momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """The average with `x` in it."""
        average = self.momentum * self.value + (1 - self.momentum) * x
        self.value = average.detach()
        return average
