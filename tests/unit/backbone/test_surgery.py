"""Replacing by path and the way back: the very objects, in any nesting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fewtune.backbone import surgery


class Wrapper(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, inputs):
        return self.base(inputs) + 1


def stack():
    model = nn.Module()
    model.low = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model.high = nn.ModuleDict({"head": nn.Linear(3, 3, bias=False)})
    model.high["head"].weight = model.low[0].weight  # tied
    return model


def snapshot(model):
    return {name: id(module) for name, module in model.named_modules()}, {
        name: (id(weight), weight.requires_grad) for name, weight in model.named_parameters(remove_duplicate=False)
    }


def test_replace_puts_a_module_at_a_path_and_undo_puts_the_same_one_back():
    model, new = stack(), nn.Linear(3, 3)
    before = snapshot(model)
    undo = surgery.replace(model, "low.1", new)
    assert model.low[1] is new and snapshot(model) != before
    undo()
    assert snapshot(model) == before


def test_at_the_top_of_the_tree_too():
    model, new = stack(), nn.Identity()
    before = snapshot(model)
    undo = surgery.replace(model, "low", new)
    assert model.low is new
    undo()
    assert snapshot(model) == before


@pytest.mark.parametrize("path", ["none", "low.7", "low.0.none", "none.0"])
def test_nothing_at_the_path_is_said_and_nothing_is_changed(path):
    model = stack()
    before = snapshot(model)
    with pytest.raises(AttributeError):
        surgery.replace(model, path, nn.Identity())
    assert snapshot(model) == before


def test_wrap_keeps_what_it_wraps_and_unwrapped_finds_it_below_any_number():
    model, inputs = stack(), torch.ones(1, 3)
    own = model.low[0]
    before = own(inputs)
    undos = [surgery.wrap(model, "low.0", Wrapper) for _ in range(3)]
    assert torch.allclose(model.low[0](inputs), before + 3)
    assert surgery.unwrapped(model.low[0]) is own and surgery.unwrapped(own) is own
    for undo in reversed(undos):
        undo()
    assert model.low[0] is own


def test_a_parameter_is_replaced_wherever_it_stands():
    model = stack()
    before, own = snapshot(model), model.low[0].weight
    new = nn.Parameter(own.detach().clone())
    undo = surgery.replace_parameter(model, own, new)
    assert model.low[0].weight is new and model.high["head"].weight is new
    with torch.no_grad():
        new += 1
    assert torch.equal(model.high["head"](torch.eye(3)), own.T + 1)
    undo()
    assert snapshot(model) == before


def test_a_parameter_that_stands_nowhere_changes_nothing():
    model = stack()
    before = snapshot(model)
    surgery.replace_parameter(model, nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)))()
    assert snapshot(model) == before


def test_freeze_gives_each_parameter_its_own_setting_back():
    model = stack()
    model.low[1].bias.requires_grad_(False)
    before = snapshot(model)
    undo = surgery.freeze(model)
    assert not any(weight.requires_grad for weight in model.parameters())
    undo()
    assert snapshot(model) == before


moves = st.lists(
    st.sampled_from(["wrap low.0", "wrap low.1", "wrap high.head", "replace low.1", "parameter", "freeze", "undo"]), max_size=14
)


@settings(max_examples=100)
@given(moves)
def test_any_moves_undone_from_the_last_leave_every_object_in_its_place(listed):
    model = stack()
    before, bits = snapshot(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    undos = []
    for move in listed:
        verb, _, path = move.partition(" ")
        if verb == "undo":
            if undos:
                undos.pop()()
        elif verb == "wrap":
            undos.append(surgery.wrap(model, path, Wrapper))
        elif verb == "replace":
            undos.append(surgery.replace(model, path, nn.Linear(3, 3)))
        elif verb == "freeze":
            undos.append(surgery.freeze(model))
        else:
            own = next(iter(model.parameters()))
            undos.append(surgery.replace_parameter(model, own, nn.Parameter(own.detach() + 1)))
    for undo in reversed(undos):
        undo()
    assert snapshot(model) == before
    assert model.state_dict().keys() == bits.keys() and all(torch.equal(model.state_dict()[name], bits[name]) for name in bits)
