"""The forecast leaves no trace, counts memory to the byte, and follows what a step is made of."""

from dataclasses import replace

import pytest
import torch

from fewtune import forecast
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.costs import Step, probe
from fewtune.deltas import DELTAS
from fewtune.model import TunedModel
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.tasks.task import Task
from fewtune.train.fit import FitOptions, Group, fit
from fewtune.train.losses import cross_entropy

DELTA_TEXTS = (
    "lora:dropout=0.3",
    "lora:top=0.33",
    "adapter:size=4",
    "ia3",
    "soft-prompt:length=3",
    "prefix:length=3",
    "subset:part=all",
    "subset:part=last",
)
STEP = Step(length=12, batch_size=4)


def made(family="bert", text="lora", *, readout=None):
    backbone = Backbone(*tiny.model(family), name=family)
    model = TunedModel.assemble(backbone, Task(labels=("negative", "positive")), readout or Cloze())
    return replace(model, deltas=(DELTAS.from_text(text).install(backbone, generator=torch.Generator().manual_seed(0)),))


def state(model):
    """Everything that a trace could be left in."""
    weights = {**dict(model.backbone.model.named_parameters()), **dict(enumerate(forecast.trained(model)))}
    modes = {name: module.training for name, module in model.backbone.model.named_modules() if isinstance(module, torch.nn.Dropout)}
    return {name: (weight.requires_grad, weight.grad, weight.detach().clone()) for name, weight in weights.items()}, modes


def looked(model, *, cached=True):
    batch = probe(model, STEP)
    return forecast.seconds(model, batch, cached=cached), forecast.memory(model, batch, cached=cached)


def train(model):
    batches = [probe(model, STEP, seed=seed) for seed in range(3)]
    group = Group(dict(zip("0123456789" * 30, forecast.trained(model), strict=False)), 0.01)

    def loss(number):
        return cross_entropy(model.batch_scores(batches[number]), torch.arange(STEP.batch_size) % 2)

    with model.training():
        losses = fit([group], lambda step: step % 3, loss, steps=4, options=FitOptions(), seed=1)
    return losses, [weight.detach().clone() for weight in forecast.trained(model)]


@pytest.mark.parametrize("text", DELTA_TEXTS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_no_trace_is_left(family, text):
    model = made(family, text)
    (before, modes), random = state(model), torch.random.get_rng_state()
    for cached in (True, False):
        looked(model, cached=cached)
    after, modes_after = state(model)
    assert modes_after == modes and torch.equal(torch.random.get_rng_state(), random)
    assert after.keys() == before.keys()
    for name, (takes, gradient, bits) in after.items():
        assert takes == before[name][0] and gradient is None and torch.equal(bits, before[name][2])


@pytest.mark.parametrize("text", ["lora:dropout=0.3", "subset:part=all"])
def test_training_gives_the_same_bits_with_and_without(text):
    one, other = made("bert", text), made("bert", text)
    looked(one)
    (losses, weights), (wanted_losses, wanted) = train(one), train(other)
    assert losses == wanted_losses
    assert all(torch.equal(weight, want) for weight, want in zip(weights, wanted, strict=True))


@pytest.mark.parametrize(("text", "frozen_below"), [("lora", False), ("lora:top=0.33", True), ("subset:part=last", True)])
def test_only_what_lies_below_the_first_trained_block_goes_into_the_cache(text, frozen_below):
    seconds, _ = looked(made("llama", text))
    assert seconds.step > 0 and (seconds.states > 0) == frozen_below
    assert looked(made("llama", text), cached=False)[0].states == 0


def test_where_nothing_is_trained_a_step_is_nothing():
    model = made("llama", "subset:part=none")
    seconds, memory = looked(model)
    assert (seconds.step, seconds.states) == (0, 0)
    assert memory.kept == memory.working == 0 and memory.total == memory.weights >= 4 * model.backbone.parameters


def test_a_head_alone_is_trained():
    model = made("bert", "subset:part=none", readout=Head())
    seconds, memory = looked(model)
    assert seconds.step > 0 and memory.kept == 3 * 4 * (2 * model.backbone.width + 2)


@pytest.mark.parametrize("text", DELTA_TEXTS)
def test_weights_are_counted_once_and_what_is_kept_follows_from_them(text):
    model = made("bert", text)
    buffers = sum(buffer.untyped_storage().nbytes() for buffer in model.backbone.model.buffers())
    _, memory = looked(model)
    assert memory.weights == 4 * (model.backbone.parameters + model.trained_parameters) + buffers
    assert memory.kept == 3 * 4 * model.trained_parameters


@pytest.mark.parametrize("text", ["lora", "subset:part=all"])
def test_longer_rows_and_larger_batches_need_more(text):
    model = made("llama", text)

    def working(length, batch_size):
        return forecast.memory(model, probe(model, Step(length, batch_size))).working

    assert working(8, 2) < working(64, 2) < working(64, 8)


def test_less_is_kept_for_the_way_back_where_less_is_trained():
    needed = [forecast.memory(model, probe(model, Step(64, 8))).working for model in map(made, ["bert"] * 2, ["lora", "lora:top=0.33"])]
    assert needed[1] < needed[0] / 2


def test_the_peak_is_what_is_alive_at_a_time():
    """1000 numbers are 4000 bytes: x · 2 and its sum with x are alive together, the view costs nothing, then one is let go."""
    x = torch.ones(1000)

    def run():
        doubled = x * 2
        summed = doubled + x
        view = summed.view(10, 100)
        del doubled
        return view.t() * 3

    assert forecast._peak(run) == 8000
    assert forecast._peak(lambda: x.view(10, 100).t()) == 0


def test_the_way_back_is_followed_too():
    """exp keeps its result for the way back; the gradients of the sum, expanded without memory, and of x are made there."""
    x = torch.zeros(1000, requires_grad=True)
    assert forecast._peak(lambda: torch.autograd.grad(x.exp().sum(), [x])) in range(8000, 8064)


def test_what_the_optimizer_needs_beside_a_weight_grows_with_it():
    size = 2**18
    update = forecast._update([size], torch.device("cpu"))
    update()
    assert forecast._peak(update) / (4 * size) == pytest.approx(forecast._update_temporaries(), rel=0.05, abs=0.01)
