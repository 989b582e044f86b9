"""Linear maps in whole numbers of eight bits, weights and inputs alike. Knows tensors only; no family, no delta.

    x ──► / most of the token ──► rounded to 1/127 ──► · W (int8) ──► · most · scale ──► + bias ──► y

Weights are rounded once, with a scale for each output, inputs when they come, with a scale for each token (vector-wise quantisation:
Dettmers et al. 2022): so what a row is answered does not depend on the rows beside it. Scales of weights are such that the sum of two
neighbours fits the sixteen bits in which older processors add them, so that nothing is cut off there.

Dimensions: O outputs, I inputs, N tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 127
"""The most that a weight or an input is, in steps of its scale."""
_ENGINE = "fbgemm"
_ZERO = 128  # where inputs' nought stands among the numbers without a sign
_LEAST = 1e-30


def rounded(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """(values_OI int8, scale_O) whose product is nearest to the weight: at most half a scale away.

    No value is beyond ±127, and no two that stand side by side (0 and 1, 2 and 3, …) and have the same sign are beyond ±128 together:
    times 255 that is below 2^15.

    >>> values_OI, scale_O = rounded(torch.tensor([[1.0, -0.5], [0.25, 0.25]]))
    >>> values_OI.tolist(), (scale_O * 127).tolist()
    ([[127, -64], [64, 64]], [1.0, 0.5])
    """
    weight_OI = weight_OI.detach().float()
    paired_OJ2 = nn.functional.pad(weight_OI, (0, weight_OI.shape[1] % 2)).view(len(weight_OI), -1, 2)
    together_OJ = torch.maximum(paired_OJ2.relu().sum(-1), (-paired_OJ2).relu().sum(-1))
    scale_O = (together_OJ.amax(1) / STEPS).clamp(min=_LEAST)
    return (weight_OI / scale_O[:, None]).round().to(torch.int8), scale_O


def restored(values_OI: Tensor, scale_O: Tensor) -> Tensor:
    """The weight_OI that the values stand for, float32."""
    return values_OI.float() * scale_O[:, None]


class Shared:
    """The inputs that were scaled last, for maps that are given the same ones (those of query, key and value)."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None

    def scaled(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(inputs with every token's most at ±1, that most)."""
        version = -1 if inputs.is_inference() else inputs._version
        last = self._last
        if last is None or last[0] is not inputs or last[1] != version:
            self._last = last = (inputs, version, scaled(inputs))
        return last[2]


def scaled(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(inputs with every token's most at ±1, that most); a token of nothing but noughts stays as it is."""
    made = inputs.abs()
    most = made.amax(-1, keepdim=True).clamp_(min=_LEAST)
    return torch.div(inputs, most, out=made), most


class Int8Map(nn.Module):
    """A linear map of values_OI and scale_O. Where the processor has no product of whole numbers, the same in float32."""

    values_OI: Tensor
    scale_O: Tensor

    def __init__(self, weight_OI: Tensor, shared: Shared) -> None:
        super().__init__()
        values_OI, scale_O = rounded(weight_OI)
        self.register_buffer("values_OI", values_OI)
        self.register_buffer("scale_O", scale_O)
        self._shared, self._packed = shared, None

    def load(self, values_OI: Tensor, scale_O: Tensor) -> None:
        """Take other values."""
        device = self.scale_O.device
        self.values_OI, self.scale_O = values_OI.to(device), scale_O.to(device)
        self._packed = None

    def forward(self, inputs: Tensor, bias_O: Tensor | None) -> Tensor:
        """The map of each token; gradients flow to the inputs through the restored weight, as if nothing were rounded on the way."""
        if torch.is_grad_enabled() and inputs.requires_grad:
            through: Tensor = _Through.apply(inputs, self)  # type: ignore[no-untyped-call]
            return through if bias_O is None else through + bias_O
        return self.product(inputs, bias_O)

    @torch.no_grad()
    def product(self, inputs: Tensor, bias_O: Tensor | None) -> Tensor:
        """The map without a graph, in the type of the inputs."""
        single, most = self._shared.scaled(inputs.float())
        bias_O = self.scale_O.new_zeros(()) if bias_O is None else bias_O.detach().float()
        if inputs.device.type == "cpu" and has_kernel():
            made: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(single, 1 / STEPS, _ZERO, self._pack())
            torch.addcmul(bias_O, made, most, out=made)
        else:
            made = nn.functional.linear((single * STEPS).round(), self.values_OI.float()) * (self.scale_O / STEPS) * most + bias_O
        return made.to(inputs.dtype)

    def _pack(self) -> Any:
        """The values as the processor's kernel wants them, made once."""
        if self._packed is None:
            zeros_O = torch.zeros(len(self.scale_O), dtype=torch.long)
            with _engine(_ENGINE), warnings.catch_warnings():
                # The kernel has no other door yet; where a later torch has none at all, there is the same in float32.
                warnings.simplefilter("ignore")
                weight_OI = torch.quantize_per_channel(restored(self.values_OI, self.scale_O), self.scale_O, zeros_O, 0, torch.qint8)
                self._packed = torch.ops.quantized.linear_prepack(weight_OI, None)
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed, which is made anew."""
        return {**self.__dict__, "_packed": None}


def has_kernel() -> bool:
    """Whether torch multiplies whole numbers faster on this processor."""
    there = hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32") and hasattr(torch, "quantize_per_channel")
    return there and _ENGINE in torch.backends.quantized.supported_engines


class _Through(torch.autograd.Function):
    """The product on the way up, the restored weight on the way back."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, own: Int8Map) -> Tensor:
        ctx.own = own
        return own.product(inputs, None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        weight_OI = restored(ctx.own.values_OI, ctx.own.scale_O)
        return grads[0] @ weight_OI.to(grads[0].dtype), None


@contextmanager
def _engine(name: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
