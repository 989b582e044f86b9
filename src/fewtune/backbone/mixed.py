"""Mixed precision: products in bfloat16, and attention that is as fast backwards as forwards. Knows no model.

torch's fused attention takes many times as long backwards on a CPU in bfloat16 as two products and a softmax do, which are what
is trained through instead.

Dimensions: B rows, H heads of keys and values, G heads of queries, Q queries, K keys, E size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

_MOST = 1 << 26
"""Shares of attention that are kept for the way back: 128 MiB of them. More are left to torch, which does not keep any."""


@contextmanager
def halved(device: torch.device) -> Iterator[None]:
    """Within it, products are computed in bfloat16 (torch's autocast), and attention that is trained through by `by_products`."""
    with torch.autocast(device.type, dtype=torch.bfloat16):
        if device.type != "cpu" or not torch.is_grad_enabled():
            yield
            return
        with _Instead():
            yield


def by_products(
    query_BGQE: Tensor,
    key_BHKE: Tensor,
    value_BHKE: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ · scale + mask) v, out (B, G, Q, E): what `torch.nn.functional.scaled_dot_product_attention` computes of the same
    arguments, but for dropout, which it has none of. Scores are float32, as they are there: in bfloat16 large ones lose too much.
    """
    assert dropout_p == 0
    query_BGQE, key_BHKE, value_BHKE = (states.bfloat16() for states in (query_BGQE, key_BHKE, value_BHKE))
    if enable_gqa:
        each = query_BGQE.shape[1] // key_BHKE.shape[1]
        key_BHKE, value_BHKE = key_BHKE.repeat_interleave(each, 1), value_BHKE.repeat_interleave(each, 1)
    if is_causal:
        attn_mask = torch.ones(query_BGQE.shape[2], key_BHKE.shape[2], dtype=torch.bool, device=query_BGQE.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.finfo(torch.float32).min)
    scale = query_BGQE.shape[-1] ** -0.5 if scale is None else scale
    out_BGQE: Tensor = _Attention.apply(query_BGQE, key_BHKE, value_BHKE, attn_mask, scale)  # type: ignore[no-untyped-call]
    return out_BGQE


class _Attention(torch.autograd.Function):
    """Keeps the shares of attention in bfloat16 for the way back, and no scores."""

    @staticmethod
    def forward(ctx: Any, query_BGQE: Tensor, key_BGKE: Tensor, value_BGKE: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        scores_BGQK = (query_BGQE.float() @ key_BGKE.float().transpose(-1, -2)).mul_(scale)
        if mask is not None:
            scores_BGQK += mask
        shares_BGQK = scores_BGQK.softmax(-1).bfloat16()
        ctx.save_for_backward(query_BGQE, key_BGKE, value_BGKE, shares_BGQK)
        ctx.scale, ctx.mask_shape = scale, None if mask is None else mask.shape
        return shares_BGQK @ value_BGKE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above_BGQE: Tensor) -> tuple[Tensor | None, ...]:
        query_BGQE, key_BGKE, value_BGKE, shares_BGQK = ctx.saved_tensors
        byvalue_BGQK = above_BGQE @ value_BGKE.transpose(-1, -2)
        scores_BGQK = torch._softmax_backward_data(byvalue_BGQK, shares_BGQK, -1, shares_BGQK.dtype)
        mask = scores_BGQK.float().sum_to_size(ctx.mask_shape) if ctx.needs_input_grad[3] else None
        scores_BGQK = scores_BGQK * ctx.scale
        return scores_BGQK @ key_BGKE, scores_BGQK.transpose(-1, -2) @ query_BGQE, shares_BGQK.transpose(-1, -2) @ above_BGQE, mask, None


class _Instead(TorchFunctionMode):
    """Calls of torch's fused attention become `by_products` where it gains."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention and _gains(*args, **named):
            with torch.autocast("cpu", enabled=False):
                return by_products(*args, **named)
        return func(*args, **named)


def _gains(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **others: Any) -> bool:
    learns = any(states.requires_grad for states in (query, key, value))
    return learns and not dropout_p and query.shape[:-1].numel() * key.shape[-2] <= _MOST
