"""Linear maps in whole numbers of eight bits, weights and inputs alike. Knows tensors only; no family, no delta.

    x ──► / most of the token ──► rounded to 1/127 ──► · W (int8) ──► · most · scale ──► + bias ──► y
    x ──► / 255 of its span ──────► rounded, cut off ──► · W (int8) ──► · span · scale ──► + bias ──► y

Weights are rounded once, with a scale for each output, inputs when they come: with a scale for each token (vector-wise quantisation:
Dettmers et al. 2022), or within a span that was measured before (static quantisation: Jacob et al. 2018), which spares two passes over
them. Either way what a row is answered does not depend on the rows beside it. Scales of weights are such that the sum of two neighbours
fits the sixteen bits in which older processors add them, so that nothing is cut off there.

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
_MOST = 255  # the greatest of the numbers without a sign, which inputs become
_ZERO = 128  # where the nought of a token with a scale of its own stands among them
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
        version, last = _version(inputs), self._last
        if last is None or last[0] is not inputs or last[1] != version:
            self._last = last = (inputs, version, scaled(inputs))
        return last[2]


def scaled(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(inputs with every token's most at ±1, that most); a token of nothing but noughts stays as it is."""
    made = inputs.abs()
    most = made.amax(-1, keepdim=True).clamp_(min=_LEAST)
    return torch.div(inputs, most, out=made), most


class Int8Map(nn.Module):
    """A linear map of values_OI and scale_O. Where the processor has no product of whole numbers, the same in float32.

    `span` is (the least, the greatest) of the inputs, or none where each token has a scale of its own.
    """

    values_OI: Tensor
    scale_O: Tensor

    def __init__(self, values_OI: Tensor, scale_O: Tensor, shared: Shared, packed: _Packed | None = None) -> None:
        super().__init__()
        self.register_buffer("values_OI", values_OI)
        self.register_buffer("scale_O", scale_O)
        self.span: tuple[float, float] | None = None
        self._seen: tuple[float, float] | None = None
        self._shared, self._packed = shared, {} if packed is None else packed

    @classmethod
    def of(cls, weight_OI: Tensor, shared: Shared) -> Int8Map:
        """The map nearest to the weight."""
        return cls(*rounded(weight_OI), shared)

    def twin(self) -> Int8Map:
        """The same values, held once, for inputs of another span."""
        return Int8Map(self.values_OI, self.scale_O, self._shared, self._packed)

    def load(self, values_OI: Tensor, scale_O: Tensor) -> None:
        """Take other values."""
        device = self.scale_O.device
        self.values_OI, self.scale_O = values_OI.to(device), scale_O.to(device)
        self._packed = {}

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Whatever comes meanwhile makes the span."""
        self.span, self._seen = None, (0.0, 0.0)
        try:
            yield
            self.span = self._seen if self._seen != (0.0, 0.0) else None
        finally:
            self._seen = None

    def forward(self, inputs: Tensor, bias_O: Tensor | None) -> Tensor:
        """The map of each token; gradients flow to the inputs through the restored weight, as if nothing were rounded on the way."""
        if torch.is_grad_enabled() and inputs.requires_grad:
            through: Tensor = _Through.apply(inputs, self)  # type: ignore[no-untyped-call]
            return through if bias_O is None else through + bias_O
        return self.product(inputs, bias_O)

    @torch.no_grad()
    def product(self, inputs: Tensor, bias_O: Tensor | None) -> Tensor:
        """The map without a graph, in the type of the inputs."""
        if self._seen is not None and inputs.numel():
            self._seen = min(self._seen[0], float(inputs.min())), max(self._seen[1], float(inputs.max()))
        fast = inputs.device.type == "cpu" and has_kernel()
        made = self._by_span(inputs.float(), bias_O, self.span, fast) if self.span else self._by_token(inputs.float(), bias_O, fast)
        return made.to(inputs.dtype)

    def _by_token(self, inputs: Tensor, bias_O: Tensor | None, fast: bool) -> Tensor:
        single, most = self._shared.scaled(inputs)
        bias_O = self.scale_O.new_zeros(()) if bias_O is None else bias_O.detach().float()
        if fast:
            made: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(single, 1 / STEPS, _ZERO, self._pack(None))
            return torch.addcmul(bias_O, made, most, out=made)
        return nn.functional.linear((single * STEPS).round(), self.values_OI.float()) * (self.scale_O / STEPS) * most + bias_O

    def _by_span(self, inputs: Tensor, bias_O: Tensor | None, span: tuple[float, float], fast: bool) -> Tensor:
        step = (span[1] - span[0]) / _MOST
        zero = round(-span[0] / step)
        if fast:
            made: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(inputs, step, zero, self._pack(bias_O))
            return made
        steps = ((inputs / step).round() + zero).clamp(0, _MOST) - zero
        return nn.functional.linear(steps, self.values_OI.float()) * (self.scale_O * step) + (0.0 if bias_O is None else bias_O.float())

    def _pack(self, bias_O: Tensor | None) -> Any:
        """The values, and the bias, as the processor's kernel wants them, made once for each bias."""
        version = 0 if bias_O is None else _version(bias_O)
        held = self._packed.get(id(bias_O))
        if held is None or held[1] != version:
            zeros_O = torch.zeros(len(self.scale_O), dtype=torch.long)
            with _engine(_ENGINE), warnings.catch_warnings():
                # The kernel has no other door yet; where a later torch has none at all, there is the same in float32.
                warnings.simplefilter("ignore")
                weight_OI = torch.quantize_per_channel(restored(self.values_OI, self.scale_O), self.scale_O, zeros_O, 0, torch.qint8)
                packed = torch.ops.quantized.linear_prepack(weight_OI, None if bias_O is None else bias_O.detach().float())
            self._packed[id(bias_O)] = held = (bias_O, version, packed)
        return held[2]

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed, which is made anew."""
        return {**self.__dict__, "_packed": {}}


_Packed = dict[int, tuple[Tensor | None, int, Any]]
"""By the bias's id, which is held so that nobody else has it: the bias, its version then, and what the kernel wants."""


def _version(tensor: Tensor) -> int:
    """Changes whenever the tensor is changed in place."""
    return -1 if tensor.is_inference() else tensor._version


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
