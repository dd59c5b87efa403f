"""Uniform quantization of weights under a rate penalty, with compensation of errors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.packing.symbol_costs import MAX_INTEGER, integer_costs

_DAMPING = 0.01  # of the mean diagonal, added to the matrix of inputs, which may be singular
_NUM_PASSES = 2  # the costs of the first are those of rounding, of the next those of the pass before
_MIN_ROW_WEIGHT = 1e-3  # of a row relative to the mean row; a row without any gradient is not free to err


@dataclass(frozen=True)
class WeightedErrors:
    """Error of the outputs by errors of a weight, in a form that allows one column after the other.

    Attributes:
        factor: Upper Cholesky factor of the inverse matrix of inputs, of shape ``(inputs, inputs)``.
        rows: Weights of the rows, of mean 1.
        sensitivity: Increase of the loss by a unit error of one weight, after compensation by the others.
    """

    factor: Tensor
    rows: Tensor
    sensitivity: float

    @staticmethod
    def of(inputs: Tensor, gradients: Tensor) -> WeightedErrors:
        """Return the errors by the statistics of a layer.

        Args:
            inputs: Mean outer product of the inputs, of shape ``(inputs, inputs)``.
            gradients: Mean squared gradient of each row of outputs, of shape ``(rows,)``.
        """
        scale = inputs.diagonal().mean().clamp_min(1e-30)
        damped = inputs / scale + _DAMPING * torch.eye(len(inputs), dtype=inputs.dtype)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor = torch.linalg.cholesky(inverse, upper=True)
        mean = gradients.mean().clamp_min(1e-30)
        rows = (gradients / mean).clamp_min(_MIN_ROW_WEIGHT)
        # The variance of a weight given all others, as in Optimal Brain Surgeon, in the geometric mean.
        return WeightedErrors(factor, rows, float(mean * scale * inverse.diagonal().log().mean().neg().exp()))


def quantize_weight(weight: Tensor, errors: WeightedErrors, *, step: float, rate: float) -> Tensor:
    """Return integers that minimise the error of the outputs plus the bits in a packed file.

    Each column is rounded to the nearest integer, to the one before it or to zero, whichever costs least in error and
    bits; the columns after it make up for its error (GPTQ; Frantar et al. 2023, arXiv:2210.17323). Bits are those of
    the adaptive coder of packed files, which knows the neighbors of each weight.

    Args:
        weight: Weight of shape ``(rows, ...)``.
        errors: Errors of the layer.
        step: Distance of the values; the quantized weight is the integers times ``step``.
        rate: Error in units of ``step ** 2`` that one bit is worth. In theory about 0.12 for fine steps.

    Returns:
        Integers of the shape of the weight, float64.
    """
    matrix = weight.detach().cpu().double().flatten(1) / step
    integers = _clamped(matrix.round())
    precision = errors.factor.diagonal().square().reciprocal()
    bit_cost = rate * precision.mean()
    for _ in range(_NUM_PASSES):
        contexts, bits = (torch.from_numpy(a) for a in integer_costs(integers.flatten().numpy(), tuple(weight.shape)))
        by_column = contexts.reshape(matrix.shape).T.long()
        remaining = matrix.clone()
        integers = torch.empty_like(matrix)
        for column in range(matrix.shape[1]):
            values = remaining[:, column]
            nearest = _clamped(values.round())
            candidates = torch.stack([nearest, nearest - nearest.sign(), torch.zeros_like(nearest)])
            costs = bit_cost * bits[by_column[column], (candidates + MAX_INTEGER).long()]
            costs += precision[column] * errors.rows * (values - candidates).square()
            chosen = candidates.gather(0, costs.argmin(dim=0, keepdim=True))[0]
            integers[:, column] = chosen
            error = (values - chosen) / errors.factor[column, column]
            remaining[:, column + 1 :] -= error[:, None] * errors.factor[column, column + 1 :]
    # Without negative zeros, whose bits would be a value of their own.
    return integers.reshape(weight.shape) + 0.0


def _clamped(integers: Tensor) -> Tensor:
    return integers.clamp(-MAX_INTEGER, MAX_INTEGER)
