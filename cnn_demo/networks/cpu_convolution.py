"""A convolution before BN: its bias is not trained, and on the CPU 1x1 kernels and small maps are faster."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """nn.Conv2d (same weights, same result) that runs as a matrix product on the CPU where that is faster.

    oneDNN takes two to four times as long for the backward pass of a 1x1 convolution, and of a 3x3 one on a map of
    4x4 or less: a third of vgg16's step, most of resnet50's. On a GPU cuDNN does all of it.

    BN, which follows, subtracts its mean, so in training a bias changes nothing and has no gradient: it is not added.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """`N,C,H,W` -> `N,K,H/stride,W/stride`."""
        pointwise = self.kernel_size == (1, 1)
        small = (*self.kernel_size, *self.stride, *self.padding) == (3, 3, 1, 1, 1, 1) and max(input.shape[-2:]) <= 4
        bias = None if self.training else self.bias
        if input.device.type != "cpu" or not (pointwise or small):
            output: Tensor = self._conv_forward(input, self.weight, bias)
            return output
        pixels = input.permute(0, 2, 3, 1)  # N,H,W,C: the order of channels-last memory, so nothing is copied
        if small:
            output = Convolve3x3.apply(pixels, self.weight, bias)  # type: ignore[no-untyped-call]
            return output.permute(0, 3, 1, 2)
        # contiguous: without gradients, linear turns a strided view into a slow batched product
        pixels = pixels[:, :: self.stride[0], :: self.stride[1]].contiguous()
        return F.linear(pixels, self.weight.flatten(1), bias).permute(0, 3, 1, 2)


class Convolve3x3(torch.autograd.Function):
    """A 3x3 convolution with padding 1: `N,H,W,C`, weight `K,C,3,3`, bias `K` or None -> `N,H,W,K`."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution, in autocast's dtype where that is on."""
        ctx.save_for_backward(pixels, weight)  # not the neighbours, nine times as large: they are gathered again
        return F.linear(neighbours(pixels), weight.permute(0, 2, 3, 1).flatten(1), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients for pixels, weight and bias."""
        pixels, weight = (tensor.to(gradient.dtype) for tensor in ctx.saved_tensors)  # the dtype of the forward pass
        outputs, inputs = weight.shape[:2]
        rows = gradient.flatten(0, 2)  # N*H*W,K
        for_weight = None
        if ctx.needs_input_grad[1]:  # not for Grad-CAM
            for_weight = (rows.T @ neighbours(pixels).flatten(0, 2)).view(outputs, 3, 3, inputs).permute(0, 3, 1, 2)
        rotated = weight.permute(2, 3, 0, 1).flip(0, 1).flatten(0, 2)  # 9*K,C, by 180 degrees: nothing is scattered
        for_pixels = neighbours(gradient) @ rotated if ctx.needs_input_grad[0] else None
        return for_pixels, for_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def neighbours(pixels: Tensor) -> Tensor:
    """Return `N,H,W,9*C`: the 3x3 surroundings of each pixel of `N,H,W,C`, zero beyond the edge."""
    windows = F.pad(pixels, (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)  # N,H,W,C,3,3
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)
