"""One pre-trained language model and its tokenizer: load, forward, layer by layer. The one place that talks to transformers'
models; knows no task, no label and no delta.

Dimensions: B rows, T tokens, P positions in front of them, D width, V vocabulary, N vectors, K chosen rows of the vocabulary, F
beginnings of an answer, J tokens of one.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewtune.backbone import bank, fingerprints, mixed, seq2seq, surgery, tree, turns, walk
from fewtune.backbone.anatomy import Anatomy
from fewtune.backbone.attention import Given, KeyValues, Prefixes, Seen
from fewtune.backbone.bank import NOBODY, Edit, Routing, Shelf
from fewtune.backbone.climb import Climb
from fewtune.backbone.front import Fronts, Packed
from fewtune.backbone.turns import Inputs
from fewtune.errors import BackboneError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Output:
    """What a forward gives: the stack's last states, after the final norm, float32; `hidden_BTD`. Where answers' beginnings were written
    they are the decoder's, of all of a row's beginnings one behind the other.

    `first_BD` are those of the very first position, which is a trained vector's where there are such in front of the tokens.
    """

    hidden_BTD: Tensor
    first_BD: Tensor | None = None


class Backbone(Anatomy):
    """A PLM, frozen and in evaluation mode, with names for its places.

    `name` is what the user calls it, `fingerprint` and `tokenizer_fingerprint` say which weights and which tokenizer it is.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, fingerprint: str = "", precision: Precision = "float32") -> None:
        super().__init__(model, name=name)
        self.tokenizer, self.precision = tokenizer, precision
        self.fingerprint = fingerprint or fingerprints.model(model)
        self.tokenizer_fingerprint = fingerprints.tokenizer(tokenizer)
        self.entry = 0
        self.routing, self.fronts = Routing(), Fronts()
        self.claims: list[str] = []
        self.takes_turns = True
        self.prefixes = Prefixes(model, self.routing)
        surgery.freeze(model)
        model.eval()

    @property
    def room(self) -> int:
        """How many tokens are left beside the trained vectors in front of them and the positions that a prefix takes."""
        return self.max_length - self.fronts.length(self.entry) - self.prefixes.shift(self.entry)

    def autocast(self) -> AbstractContextManager[Any]:
        """The mixed precision that was chosen for this backbone."""
        return mixed.halved(self.device) if self.precision == "bfloat16" else torch.autocast(self.device.type, enabled=False)

    # Deltas

    def edit(self, path: str, edit: Edit) -> surgery.Undo:
        """Let `edit` change what the module at `path` does, for the rows of the current entry."""
        return bank.put(self.model, path, edit, routing=self.routing, entry=self.entry)

    def put_in_front(self, vectors: nn.Parameter) -> surgery.Undo:
        """Let `vectors` (P, D) stand in front of the tokens' embeddings, for the rows of the current entry."""
        return self.fronts.put(vectors, entry=self.entry)

    def put_in_attention(self, prefixes: Mapping[str, KeyValues], *, shift: int) -> surgery.Undo:
        """Let keys and values stand in front of those of the attention at each path, for the rows of the current entry.

        Their tokens move `shift` positions on where transformers' own cache would move them: where the stack takes one.
        """
        taken = inspect.signature(self.stack.forward).parameters
        moved = shift if {"past_key_values", "position_ids"} <= taken.keys() else 0
        return self.prefixes.put(prefixes, entry=self.entry, shift=moved)

    def key_values(self, ids_BT: Tensor, *, top: float = 1.0) -> dict[str, list[Seen]]:
        """What the attention of each block in the upper share `top` makes of the tokens without any delta, by its path; one for
        each step that runs the block. Raises `BackboneError` for a family whose attention cannot be reached.
        """
        nobody = torch.full((len(ids_BT),), NOBODY, device=ids_BT.device)
        with torch.no_grad(), self.as_precision("float32"), self.prefixes.seeing(self._attention(top)) as seen:
            self.forward(ids_BT, torch.ones_like(ids_BT), route_B=nobody)
        return seen

    @property
    def goes_on(self) -> bool:
        """Whether `after` gives what whole rows would: attention looks back only and at everything, from positions that do not depend
        on the length, and no trained vectors stand in front of the tokens, which would have to be there once."""
        looks_back = self.causal and self.family.attention is not None and not self.scales_by_length
        return looks_back and self._window is None and not self.fronts.length(self.entry)

    @contextmanager
    def after(self, ids_T: Sequence[int]) -> Iterator[None]:
        """Within it, rows of the current entry go on after these tokens as if they stood in front of each (where `goes_on`).

        Their keys and values are computed here, once, with the deltas of the entry in the stack; a prefix stays in front of them.
        With no tokens nothing changes.
        """
        if not ids_T:
            yield
            return
        ids_1T = torch.tensor([list(ids_T)], device=self.device)
        route_1 = torch.full((1,), self.entry, device=self.device)
        with torch.no_grad(), self.prefixes.seeing(self._attention(1.0)) as seen:
            self.forward(ids_1T, torch.ones_like(ids_1T), route_B=route_1)
        given = {path: KeyValues(Given(note)) for path, (note,) in seen.items()}
        undo = self.put_in_attention(given, shift=len(ids_T))
        try:
            yield
        finally:
            undo()

    def _attention(self, top: float) -> list[str]:
        if self.family.attention is None:
            raise BackboneError(
                expected="a family whose attention goes through transformers' interface",
                got=f'model type "{self.model.config.model_type}", which computes attention by itself',
                where=f'backbone "{self.name}"',
                fix="Take a soft prompt, or another --backbone.",
            )
        return [f"{self.blocks_path}.{block}.{self.family.attention}" for block in self.upper(top)]

    def claim(self, what: str) -> surgery.Undo:
        """Keep the backbone for one model, of which `what` says why: every row runs what was changed. Undo lets others in again.

        Raises `BackboneError` where models are side by side already.
        """
        shelves = (module for module in self.model.modules() if isinstance(module, Shelf))
        entries = {self.entry, *(entry for shelf in shelves for entry in shelf.entries), *(owner for owner, _ in self.fronts.held)}
        if entries != {0}:
            raise self._claimed(what)
        self.claims.append(what)
        return lambda: self.claims.remove(what)

    def _claimed(self, what: str) -> BackboneError:
        fix = "Load it on a PLM of its own."
        return BackboneError(expected="models that share a PLM", got=what, where=f'backbone "{self.name}"', fix=fix)

    @contextmanager
    def installing(self, entry: int) -> Iterator[None]:
        """Within it, deltas are installed for the rows that are routed to `entry` (0 for all that are not routed).

        Raises `BackboneError` for a row of its own where one model has the backbone for itself.
        """
        if self.claims and entry > 0:
            raise self._claimed(self.claims[0])
        before, self.entry = self.entry, entry
        try:
            yield
        finally:
            self.entry = before

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Within it, rows go through no delta: the PLM is as it was."""
        with self.installing(NOBODY), self.routing.alone(NOBODY):
            yield

    def embed(self, ids_BT: Tensor) -> Tensor:
        """The tokens' own vectors, before positions and norms."""
        embedded: Tensor = self.model.get_input_embeddings()(ids_BT)
        return embedded

    # Forward

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within it, the rows of a batch share a pass whatever their lengths: for what looks at all of them on the way."""
        before, self.takes_turns = self.takes_turns, False
        try:
            yield
        finally:
            self.takes_turns = before

    def forward(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        types_BT: Tensor | None = None,
        *,
        start: int = 0,
        below_BTD: Tensor | None = None,
        route_B: Tensor | None = None,
        trees: Sequence[tree.Parents] = (),
        written_BFJ: Tensor | None = None,
    ) -> Output:
        """Run the stack without the LM head; `mask_BT` is 1 at real tokens, which stand on the left.

        With `below_BTD`, the states that `below` gave for step `start`, only the steps from there on are computed. Row b goes
        through the deltas of entry `route_B[b]`: those of entry 0 where it is None, and none where it is negative. With
        `trees`, one for each row or one for all, the last tokens of each row go on from one another as these say (see
        `fewtune.backbone.tree`).
        Of each row's answer the beginnings `written_BFJ` are read by the decoder, whose states are given then.
        """
        return self._in_turns(Inputs(ids_BT, mask_BT, types_BT, below_BTD, route_B, trees, written_BFJ), start)

    def _in_turns(self, given: Inputs, start: int) -> Output:
        turning = turns.of(self.model, self.family.unrouted, given.route_B) or (turns.by_length(given.mask_BT) if self.takes_turns else [])
        if not turning:
            return self.at_once(given, start=start)
        outputs = [self._in_turns(given.rows(rows_N), start) for rows_N in turning]
        first = [output.first_BD for output in outputs if output.first_BD is not None]
        width = given.ids_BT.shape[1] if given.written_BFJ is None else None
        hidden_BTD = turns.in_order([output.hidden_BTD for output in outputs], turning, width=width)
        return Output(hidden_BTD, turns.in_order(first, turning) if first else None)

    def at_once(self, given: Inputs, *, start: int = 0) -> Output:
        """`forward` with all rows in one pass."""
        with self.routing.of(given.route_B):
            packed = self._pack(given.ids_BT, given.mask_BT, given.types_BT, given.trees)
            if given.below_BTD is None:
                with self.autocast():
                    hidden_BTD = self.stack(**self._inputs(packed)).last_hidden_state.float()
            else:
                for hidden_BTD in self._walk(packed, start=start, below_BTD=given.below_BTD):
                    last_BTD = hidden_BTD  # of all steps only this one is held
                hidden_BTD = self.norm(last_BTD)
            if given.written_BFJ is not None:
                return Output(self._written(hidden_BTD, packed.mask_BT, given.written_BFJ, given.route_B))
            return Output(packed.unpack(hidden_BTD), hidden_BTD[:, 0])

    def read(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(states_BSD, mask_BS) of all positions, those of the trained vectors in front of the tokens included."""
        packed = self._pack(ids_BT, mask_BT, None, ())
        with self.autocast():
            return self.stack(**self._inputs(packed)).last_hidden_state.float(), packed.mask_BT

    def _written(self, hidden_BSD: Tensor, mask_BS: Tensor, written_BFJ: Tensor, route_B: Tensor | None) -> Tensor:
        """What the decoder makes of beginnings; it sees the trained vectors in front of the prompt, too (Lester et al. 2021)."""
        routes = None if route_B is None else route_B.repeat_interleave(written_BFJ.shape[1])
        with self.routing.of(routes), self.autocast():
            return seq2seq.decode(self.model, self.family, hidden_BSD, mask_BS, written_BFJ)

    def below(self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, *, start: int, trees: Sequence[tree.Parents] = ()) -> Tensor:
        """The states hidden_BTD that step number `start` would be given."""
        if turning := turns.by_length(mask_BT):
            given = Inputs(ids_BT, mask_BT, types_BT, trees=trees)
            parts = (given.rows(rows_N) for rows_N in turning)
            states = [self.below(part.ids_BT, part.mask_BT, part.types_BT, start=start, trees=part.trees) for part in parts]
            return turns.in_order(states, turning, width=ids_BT.shape[1])
        return next(itertools.islice(self.layers(ids_BT, mask_BT, types_BT, trees=trees), start, None))

    def layers(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        types_BT: Tensor | None = None,
        *,
        route_B: Tensor | None = None,
        trees: Sequence[tree.Parents] = (),
    ) -> Iterator[Tensor]:
        """Walk the stack: yields the embeddings, then each step's output `hidden_BTD`, before the final norm.

        The arguments of each block are what the model's own forward hands to it (masks, positions), recorded with the blocks
        left out; so the walk is the model's own computation in every family.
        """
        if turning := turns.of(self.stack, self.family.unrouted, route_B):
            walks = [
                list(self.layers(ids_BT[rows_N], mask_BT[rows_N], turns.rows(types_BT, rows_N), route_B=turns.rows(route_B, rows_N)))
                for rows_N in turning
            ]
            yield from (turns.in_order(states, turning) for states in zip(*walks, strict=True))
            return
        with self.routing.of(route_B):
            packed = self._pack(ids_BT, mask_BT, types_BT, trees)
        steps = self._walk(packed, start=0, below_BTD=None)
        while True:
            # Only while a step runs, for between two of them another batch may go through.
            with self.routing.of(route_B):
                hidden_BTD = next(steps, None)
            if hidden_BTD is None:
                return
            yield packed.unpack(hidden_BTD)

    def climb(self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None = None, *, route_B: Tensor | None = None) -> Climb:
        """Walk the stack step by step, so that rows may leave on the way; the same computation as `layers`.

        Raises `BackboneError` for a batch that `forward` would have to run entry by entry.
        """
        if turns.of(self.stack, self.family.unrouted, route_B):
            raise BackboneError(
                expected="rows of one entry",
                got="rows of several, one of which has a delta where this family cannot tell rows apart",
                where="a batch with exits",
                fix="Give the rows of each model a batch of their own.",
            )
        with self.routing.of(route_B):
            packed = self._pack(ids_BT, mask_BT, types_BT, ())
        return Climb(packed, route_B, record=self._record, run=self._run)

    def _record(self, packed: Packed, route_B: Tensor | None) -> list[walk.Call]:
        with self.routing.of(route_B), self.autocast():
            return walk.record(self.stack, self.family, self._inputs(packed))

    def _run(self, call: walk.Call, hidden_BTD: Tensor, carried: Tensor | None, route_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with self.routing.of(route_B), self.autocast():
            return walk.run(self.blocks, self.family, call, hidden_BTD, carried)

    def _pack(self, ids_BT: Tensor, mask_BT: Tensor, types_BT: Tensor | None, trees: Sequence[tree.Parents]) -> Packed:
        packed = self.fronts.pack(ids_BT, mask_BT, types_BT, routing=self.routing, embed=self.embed)
        return replace(packed, trees=tuple(trees))

    def _inputs(self, packed: Packed) -> dict[str, Any]:
        inputs: dict[str, Any] = {"attention_mask": packed.mask_BT}
        inputs |= {"input_ids": packed.ids_BT} if packed.vectors_BTD is None else {"inputs_embeds": packed.vectors_BTD}
        if packed.types_BT is not None and self._numbers_segments:
            inputs["token_type_ids"] = packed.types_BT
        if self.causal:
            inputs["use_cache"] = False
        positions_BT = self.prefixes.positions(packed.mask_BT, first=self.first_position)
        if positions_BT is not None:
            inputs["position_ids"] = positions_BT
        return inputs | tree.inputs(packed.mask_BT, packed.trees, positions_BT, window=self._window) if packed.trees else inputs

    @property
    def _window(self) -> int | None:
        """How many tokens back some blocks see; None where all see everything."""
        config = self.model.config
        return int(config.sliding_window) if tree.WINDOW in (getattr(config, "layer_types", None) or ()) else None

    @cached_property
    def _numbers_segments(self) -> bool:
        # A tokenizer may number segments although the model has no place for it, or, as RoBERTa, for one only.
        several = (getattr(self.stack.config, "type_vocab_size", 2) or 0) > 1
        return several and "token_type_ids" in inspect.signature(self.stack.forward).parameters

    def _walk(self, packed: Packed, *, start: int, below_BTD: Tensor | None) -> Iterator[Tensor]:
        with self.autocast():
            calls = walk.record(self.stack, self.family, self._inputs(packed))
            carried = walk.carried(self.blocks, self.family, calls) if start else None
        hidden_BTD: Tensor = calls[0].arguments[0] if below_BTD is None else below_BTD
        yield hidden_BTD
        for call in calls[start:]:
            with self.autocast():
                hidden_BTD, carried = walk.run(self.blocks, self.family, call, hidden_BTD, carried)
            yield hidden_BTD

    def norm(self, hidden_BTD: Tensor) -> Tensor:
        """The stack's final norm, where the family has one, in float32."""
        if self.family.final_norm is None:
            return hidden_BTD.float()
        with self.autocast():
            normed: Tensor = self.stack.get_submodule(self.family.final_norm)(hidden_BTD)
        return normed.float()

    def lm_logits(self, hidden_ND: Tensor, tokens_K: Tensor | None) -> Tensor:
        """The LM head's logits_NK for the tokens asked for only, or for the whole vocabulary where it is None; `hidden_ND` are states
        after the final norm."""
        self.require_lm_head()
        with self.autocast():
            for step in self.family.transform:
                hidden_ND = self._step(step)(hidden_ND)
            decoder = self.model.get_submodule(self.family.decoder)
            weight, bias = decoder.weight, decoder.bias
            if tokens_K is not None:
                weight, bias = weight[tokens_K], None if bias is None else bias[tokens_K]
            logits_NK = nn.functional.linear(hidden_ND, weight, bias)
        return logits_NK.float()

    @property
    def lm_weights(self) -> list[nn.Parameter]:
        """What of the LM head is trained, deltas' own weights included; each once."""
        places = [step for step in (*self.family.transform, self.family.decoder) if not step.startswith("act:")]
        held = {id(weight): weight for place in places for weight in self.model.get_submodule(place).parameters()}
        return [weight for weight in held.values() if weight.requires_grad]

    def _step(self, step: str) -> Callable[[Tensor], Tensor]:
        if step.startswith("act:"):
            from transformers.activations import ACT2FN

            activation: Callable[[Tensor], Tensor] = ACT2FN[step.removeprefix("act:")]
            return activation
        module: nn.Module = self.model.get_submodule(step)
        return module

    @contextmanager
    def as_precision(self, precision: Precision) -> Iterator[None]:
        """Compute in `precision` for a while."""
        before, self.precision = self.precision, precision
        try:
            yield
        finally:
            self.precision = before
