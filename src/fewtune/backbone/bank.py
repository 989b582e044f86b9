"""Banks: several deltas side by side at one module, each for its own rows of a batch. Knows no method, no family and no task.

    rows of entry 1 ──► before ─┐                 ┌─► after ──►
    rows of entry 2 ──► before ─┼──► base module ─┼─► after ──►
    rows of none   ─────────────┘                 └───────────►

The frozen module sees all rows at once; only what an entry adds is computed for its own rows alone.
Dimensions: B rows of a batch, N rows of one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fewtune.backbone import surgery
from fewtune.errors import BackboneError

M = TypeVar("M", bound=nn.Module)
Product = Callable[[Tensor, Tensor | None], Tensor]
"""(inputs, bias) → outputs of a linear map."""
NOBODY = -1
"""The entry of rows that the backbone treats as it is."""


class Edit(nn.Module):
    """What a delta does at one module: to its inputs, to its outputs, or to its own parameters. Each row for itself."""

    def before(self, inputs: Tensor) -> Tensor:
        """What the module is given instead of `inputs`."""
        return inputs

    def after(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What goes on instead of `outputs`, which the module made of `inputs`."""
        del inputs
        return outputs

    def instead(self) -> Mapping[str, Tensor]:
        """Parameters, by name, that stand in for the module's own."""
        return {}

    def product(self) -> Product | None:
        """What multiplies where the module's own weight would, unless a weight stands in for that; None: nothing else does."""
        return None

    def replaces(self) -> Collection[str]:
        """Names of the module's own parameters that nobody needs while this is there."""
        return self.instead()

    def merged(self, base: nn.Module) -> Mapping[str, Tensor] | None:
        """Parameters with which `base` alone gives the same, or None where there are none such."""
        del base
        return None


class Routing:
    """Which entry each row of the running batch uses; shared by all banks of one backbone.

    `rows` maps the entries of the batch to their rows; None stands for all of them.
    """

    def __init__(self) -> None:
        self.rows: Mapping[int, Tensor | None] = {0: None}
        self.size: int | None = None

    @contextmanager
    def of(self, route_B: Tensor | None) -> Iterator[None]:
        """Within it, row number b uses entry `route_B[b]`; entry 0 for all of them where nothing is said."""
        before = self.rows, self.size
        if route_B is not None:
            entries = sorted(set(route_B.tolist()))
            alone = len(entries) == 1
            self.rows = {entry: None if alone else (route_B == entry).nonzero()[:, 0] for entry in entries}
            self.size = len(route_B)
        try:
            yield
        finally:
            self.rows, self.size = before

    @contextmanager
    def alone(self, entry: int) -> Iterator[None]:
        """Within it, every row of which nothing else is said uses `entry`."""
        before = self.rows, self.size
        self.rows, self.size = {entry: None}, None
        try:
            yield
        finally:
            self.rows, self.size = before


class Shelf(nn.Module, Generic[M]):
    """Modules of several entries side by side, those of one in the order in which they were put in."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.held = nn.ModuleDict()

    @property
    def entries(self) -> list[int]:
        """The entries that have something here."""
        return [int(entry) for entry in self.held]

    def of(self, entry: int) -> list[M]:
        """What `entry` has here."""
        key = str(entry)
        return list(self.held[key]) if key in self.held else []  # type: ignore[call-overload]

    def groups(self) -> list[tuple[Tensor | None, list[M]]]:
        """The entries of the running batch that have something here: (their rows, None standing for all; what it is)."""
        return [(rows, own) for entry, rows in self.routing.rows.items() if (own := self.of(entry))]

    def add(self, module: M, *, entry: int) -> surgery.Undo:
        """Put `module` in for the rows of `entry`; undo takes it out, whatever else came and went."""
        key = str(entry)
        if key not in self.held:
            self.held[key] = nn.ModuleList()
        own: Any = self.held[key]
        own.append(module)

        def undo() -> None:
            del own[next(number for number, other in enumerate(own) if other is module)]
            if not len(own):
                del self.held[key]

        return undo


class Bank(Shelf[Edit]):
    """Stands where `base` stood and gives each row what its entry makes of it."""

    def __init__(self, base: nn.Module, routing: Routing) -> None:
        super().__init__(routing)
        self.base: nn.Module = base

    def __getattr__(self, name: str) -> Any:
        """Whatever is asked of the module, such as its `weight`, is the entry's own or the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            for entry, rows in self.routing.rows.items():
                for edit in reversed(self.of(entry)):
                    if name in (instead := edit.instead()):
                        return self._alone(instead[name], rows)
            return getattr(super().__getattr__("base"), name)

    def apart(self, edits: Sequence[Edit]) -> bool:
        """Whether these edits and all others here do nothing but stand in for parameters, others for each; or there are no others."""
        others = [edit for entry in self.entries for edit in self.of(entry) if not any(edit is one for one in edits)]
        with torch.no_grad():
            names = [{name for edit in part for name in edit.instead()} for part in (edits, others)]
        plain = all(type(edit).before is Edit.before and type(edit).after is Edit.after for edit in (*edits, *others))
        return not others or (plain and not names[0] & names[1])

    def without(self, edits: Sequence[Edit], base: nn.Module) -> nn.Module:
        """`base` with the other edits that are here; itself where there are none."""
        rest = Bank(base, self.routing)
        for entry in self.entries:
            for edit in self.of(entry):
                if not any(edit is one for one in edits):
                    rest.add(edit, entry=entry)
        return rest if rest.entries else base

    @staticmethod
    def _alone(weight: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return weight
        raise BackboneError(
            expected="rows of one entry",
            got="rows of several, where the model reads a weight that one of them has for itself",
            where="a mixed batch",
            fix="Give the rows of this model a batch of their own.",
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """What the base makes of `inputs`, whose rows come first, with each row's own edits."""
        groups = self.groups()
        if not groups:
            outputs: Tensor = self.base(inputs)
            return outputs
        rows, edits = groups[0]
        if rows is None:
            inputs = _before(edits, inputs)
            return _after(edits, inputs, self._made(edits, inputs))
        return self._mixed([(rows, edits) for rows, edits in groups if rows is not None], inputs)

    def _mixed(self, groups: Sequence[tuple[Tensor, list[Edit]]], inputs: Tensor) -> Tensor:
        size = self.routing.size
        if size is not None and len(inputs) != size:  # one row of positions stands for all
            inputs = inputs.expand(size, *inputs.shape[1:])
        for rows_N, edits in groups:
            if any(type(edit).before is not Edit.before for edit in edits):
                inputs = inputs.index_copy(0, rows_N, _before(edits, inputs[rows_N]))
        products = [_product(edits) for _, edits in groups]
        everybody = sum(len(rows_N) for rows_N, _ in groups) == len(inputs)
        common = products[0] if everybody and all(product is products[0] for product in products) else None
        outputs: Tensor = common(inputs, self._bias({})) if common else self.base(inputs)
        for (rows_N, edits), product in zip(groups, products, strict=True):
            mine = inputs[rows_N]
            made = outputs[rows_N] if product is common and not _instead(edits) else self._made(edits, mine)
            outputs = outputs.index_copy(0, rows_N, _after(edits, mine, made).to(outputs.dtype))
        return outputs

    def _made(self, edits: Sequence[Edit], inputs: Tensor) -> Tensor:
        """What the base makes of `inputs` with what stands in for its parameters, or for its product."""
        instead, product = _instead(edits), _product(edits)
        return run(self.base, instead, inputs) if product is None else product(inputs, self._bias(instead))

    def _bias(self, instead: Mapping[str, Tensor]) -> Tensor | None:
        return instead.get("bias", getattr(self.base, "bias", None))


def _before(edits: Sequence[Edit], inputs: Tensor) -> Tensor:
    for edit in edits:
        inputs = edit.before(inputs)
    return inputs


def _after(edits: Sequence[Edit], inputs: Tensor, outputs: Tensor) -> Tensor:
    for edit in edits:
        outputs = edit.after(inputs, outputs)
    return outputs


def _instead(edits: Sequence[Edit]) -> dict[str, Tensor]:
    return {name: weight for edit in edits for name, weight in edit.instead().items()}


def _product(edits: Sequence[Edit]) -> Product | None:
    """The last one's, where no edit has a weight of its own."""
    products = [product for edit in edits if (product := edit.product()) is not None]
    return products[-1] if products and "weight" not in _instead(edits) else None


def run(module: nn.Module, instead: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """`module(inputs)` with other parameters; the plain cases without the cost of a general call."""
    if not instead:
        outputs: Tensor = module(inputs)
        return outputs
    if isinstance(module, nn.Linear):
        return nn.functional.linear(inputs, instead.get("weight", module.weight), instead.get("bias", module.bias))
    if isinstance(module, nn.LayerNorm):
        weight, bias = instead.get("weight", module.weight), instead.get("bias", module.bias)
        return nn.functional.layer_norm(inputs, module.normalized_shape, weight, bias, module.eps)
    outputs = torch.func.functional_call(module, dict(instead), (inputs,))
    return outputs


def put(root: nn.Module, path: str, edit: Edit, *, routing: Routing, entry: int) -> surgery.Undo:
    """Add `edit` to the bank at `path`, which is made for the first edit and goes with the last."""
    module = root.get_submodule(path)
    bank = module if isinstance(module, Bank) else Bank(module, routing)
    if bank is not module:
        surgery.replace(root, path, bank)
    take_out = bank.add(edit, entry=entry)

    def undo() -> None:
        take_out()
        if not bank.entries:
            surgery.replace(root, path, bank.base)

    return undo
