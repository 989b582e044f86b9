"""The loop against torch's own optimiser written out, and that a run cut anywhere ends with the bytes of one that was not."""

import math
import os
import signal
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fewtune.errors import BackboneError, Interrupted, SpecError
from fewtune.train.fit import FitOptions, Group, Session, fit, schedule

STEPS = 30


class Cut(Exception):
    """Stands for whatever ends a process."""


def problem(*, seed=0):
    """Two groups of weights, batches that are a function of the step, and a loss with dropout in it."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 3), (3,)))
    groups = [Group({"first": first}, 0.05), Group({"second": second}, 0.2)]

    def batches(step):
        drawn = torch.Generator().manual_seed(1000 + step)
        return torch.randn(8, 4, generator=drawn), torch.randn(8, 3, generator=drawn)

    def loss(batch):
        inputs, aims = batch
        return (nn.functional.dropout(inputs, 0.3, training=True) @ first + second - aims).square().mean()

    return groups, batches, loss


def run(*, steps=STEPS, session=None, options=None, seed=7, problem_seed=0):
    groups, batches, loss = problem(seed=problem_seed)
    losses = fit(groups, batches, loss, steps=steps, options=options or FitOptions(), seed=seed, session=session)
    return losses, {name: weight.detach().clone() for group in groups for name, weight in group.weights.items()}


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def cut_at(step):
    def progress(what, done, steps, loss):
        if done == step:
            raise Cut

    return progress


def ctrl_c_at(step):
    def progress(what, done, steps, loss):
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


# The schedule


@settings(max_examples=200)
@given(st.integers(1, 500), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_then_falls_and_is_never_zero(steps, warmup):
    shares = [schedule(step, steps=steps, warmup=warmup) for step in range(steps)]
    rising = max(1, round(steps * warmup))
    assert all(0 < share <= 1 for share in shares)
    assert shares[rising - 1] == 1
    assert shares[:rising] == sorted(shares[:rising]) and shares[rising:] == sorted(shares[rising:], reverse=True)
    if rising < steps:
        assert shares[-1] == pytest.approx(1 / (steps - rising))


def test_the_schedule_by_hand():
    assert [schedule(step, steps=5, warmup=0.4) for step in range(5)] == pytest.approx([1 / 2, 1, 1, 2 / 3, 1 / 3])
    assert schedule(0, steps=1, warmup=0.1) == 1


# The optimisation


@pytest.mark.parametrize(("average", "steps", "first"), [(0.5, 8, 4), (1.0, 5, 0), (0.25, 7, 5), (0.5, 1, 1)])
def test_the_weights_given_back_are_the_mean_of_the_last_steps(average, steps, first):
    groups, batches, loss = problem()
    (weight,) = groups[0].weights.values()
    seen = []
    session = Session(progress=lambda what, done, steps, loss: seen.append(weight.detach().clone()))
    fit(groups, batches, loss, steps=steps, options=FitOptions(average=average), seed=3, session=session)
    expected = torch.stack(seen[first:]).mean(0) if first < steps else seen[-1]
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-6)
    assert steps == 1 or not torch.equal(weight, seen[-1])


def test_equals_torch_written_out():
    """AdamW with two groups, LambdaLR and clipping over all weights together (dropout left out, for its seeds are the loop's own)."""
    options = FitOptions(warmup=0.2, weight_decay=0.1, clip=0.5, average=0)

    def without_dropout(groups, batches):
        first, second = (weight for group in groups for weight in group.weights.values())
        return first, second, lambda step: (batches(step)[0] @ first + second - batches(step)[1]).square().mean()

    groups, batches, _ = problem()
    first, second, loss = without_dropout(groups, batches)
    losses = fit(groups, lambda step: step, loss, steps=STEPS, options=options, seed=1)

    groups, batches, _ = problem()
    plain_first, plain_second, plain_loss = without_dropout(groups, batches)
    parts = [{"params": [plain_first], "lr": 0.05}, {"params": [plain_second], "lr": 0.2}]
    optimizer = torch.optim.AdamW(parts, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 6 if step < 6 else (STEPS - step) / 24)
    expected = []
    for step in range(STEPS):
        optimizer.zero_grad()
        value = plain_loss(step)
        value.backward()
        nn.utils.clip_grad_norm_([plain_first, plain_second], 0.5)
        optimizer.step()
        scheduler.step()
        expected.append(value.item())
    assert losses == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(first, plain_first, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(second, plain_second, atol=1e-6, rtol=1e-6)


def test_learns():
    losses, _ = run(steps=60)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before():
    torch.manual_seed(1)
    one = run()
    torch.manual_seed(2)
    torch.rand(5)
    before = torch.get_rng_state()
    other = run()
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator was moved"
    assert_same(one, other)
    assert run(seed=8)[0] != one[0]


def test_no_steps_change_nothing():
    losses, weights = run(steps=0)
    groups, _, _ = problem()
    assert losses == [] and all(torch.equal(weights[name], weight) for group in groups for name, weight in group.weights.items())


def test_weights_that_no_loss_has_reached_are_left_alone(tmp_path):
    groups, batches, loss = problem()
    idle = nn.Parameter(torch.ones(2))
    session = Session(tmp_path, progress=cut_at(STEPS), every_seconds=-1)
    with pytest.raises(Cut):
        fit([*groups, Group({"idle": idle}, 0.1)], batches, loss, steps=STEPS, options=FitOptions(), seed=7, session=session)
    groups, batches, loss = problem()
    fit([*groups, Group({"idle": idle}, 0.1)], batches, loss, steps=STEPS, options=FitOptions(), seed=7, session=Session(tmp_path))
    expected = run()[1]
    assert torch.equal(idle, torch.ones(2))
    assert all(torch.equal(expected[name], weight) for group in groups for name, weight in group.weights.items())


def test_a_loss_that_is_not_finite_is_refused_before_it_spoils_the_weights(tmp_path):
    groups, batches, loss = problem()

    def exploding(step):
        return loss(batches(step)) * (math.inf if step == 4 else 1)

    kept = {}

    def progress(what, done, steps, value):
        kept.update({name: weight.detach().clone() for group in groups for name, weight in group.weights.items()})

    with pytest.raises(BackboneError, match=r"step 5: expected a finite loss, got inf\. Lower --learning-rate"):
        fit(groups, lambda step: step, exploding, steps=STEPS, options=FitOptions(), seed=0, session=Session(tmp_path, progress=progress))
    assert all(torch.equal(kept[name], weight) for group in groups for name, weight in group.weights.items())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("steps", -1, "at least 0"),
        ("learning_rate", 0.0, "above 0"),
        ("batch_size", 0, "at least 1"),
        ("warmup", 1.5, "from 0 to 1"),
        ("warmup", -0.1, "from 0 to 1"),
        ("weight_decay", -1.0, "at least 0"),
        ("clip", 0.0, "above 0"),
        ("average", 1.5, "from 0 to 1"),
    ],
)
def test_options_out_of_range_are_refused_by_name(field, value, expected):
    with pytest.raises(SpecError, match=rf"fit\.{field}: expected {expected}, got {value}"):
        FitOptions(**{field: value})


# Checkpoints


@pytest.mark.slow
@settings(max_examples=12)
@given(cuts=st.lists(st.integers(1, STEPS), min_size=1, max_size=3))
def test_cut_anywhere_any_number_of_times_ends_with_the_same_bytes(tmp_path_factory, cuts):
    folder, whole = tmp_path_factory.mktemp("fit"), run()
    for cut in cuts:
        try:
            run(session=Session(folder, "job", progress=cut_at(cut), every_seconds=-1))
        except Cut:
            continue
    assert_same(run(session=Session(folder, "job")), whole)


def test_goes_on_instead_of_starting_again(tmp_path):
    with pytest.raises(Cut):
        run(session=Session(tmp_path, "job", progress=cut_at(20), every_seconds=-1))
    seen, said = [], []
    run(session=Session(tmp_path, "job", progress=lambda what, done, steps, loss: seen.append(done), say=said.append))
    assert seen == list(range(20, STEPS + 1))  # step 20 was told of, but not kept any more
    assert said == ["Going on with fit after step 19 of 30."]


def test_a_run_that_is_done_is_not_run_again(tmp_path):
    whole = run(session=Session(tmp_path, "job"))
    seen = []
    again = run(session=Session(tmp_path, "job", progress=lambda *told: seen.append(told)), problem_seed=5)
    assert seen == []
    assert_same(again, whole)


def test_a_checkpoint_of_another_job_is_not_gone_on_with(tmp_path):
    run(session=Session(tmp_path, "job"), seed=8)
    assert_same(run(session=Session(tmp_path, "another")), run())


def test_a_checkpoint_with_more_steps_than_asked_for_is_not_gone_on_with(tmp_path):
    run(session=Session(tmp_path, "job"))
    assert_same(run(steps=10, session=Session(tmp_path, "job")), run(steps=10))


def test_a_damaged_checkpoint_is_said_and_not_gone_on_with(tmp_path):
    run(session=Session(tmp_path, "job"), seed=8)
    path = Session(tmp_path, "job").checkpoint
    said = []
    for size in (len(path.read_bytes()) - 1, 20, 0):
        path.write_bytes(path.read_bytes()[:size])
        assert_same(run(session=Session(tmp_path, "job", say=said.append)), run())
    assert len(said) == 3 and all("starting fit anew" in line for line in said)


def test_labels_keep_the_fits_of_one_job_apart(tmp_path):
    session = Session(tmp_path / "new", "job")
    run(session=session.child("a"), seed=1)
    assert_same(run(session=session.child("b"), seed=2), run(seed=2))
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["fit.a.safetensors", "fit.b.safetensors"]
    assert Session().checkpoint is None


def test_a_child_is_its_session_but_for_the_label(tmp_path):
    def told(*event):
        raise AssertionError

    session = Session(tmp_path, "job", "fit", told, print, 3.0)
    assert session.child("a") == Session(tmp_path, "job", "fit.a", told, print, 3.0, session.cache)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(session=Session(every_seconds=-1))
    assert list(tmp_path.iterdir()) == []


# Ctrl-C


@pytest.mark.parametrize("step", [1, 11, STEPS])
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path, step):
    before = signal.getsignal(signal.SIGINT)
    session = Session(tmp_path, "job", progress=ctrl_c_at(step), every_seconds=1e9)
    with pytest.raises(
        Interrupted, match=rf"expected 30 steps, got Ctrl-C after {step}\. What is done is kept: type the same command again"
    ):
        run(session=session)
    assert signal.getsignal(signal.SIGINT) is before
    seen = []
    again = run(session=Session(tmp_path, "job", progress=lambda what, done, steps, loss: seen.append(done)))
    assert seen == list(range(step + 1, STEPS + 1))
    assert_same(again, run())


def test_ctrl_c_without_a_folder_says_that_nothing_is_kept():
    with pytest.raises(Interrupted, match="Nothing was to be kept"):
        run(session=Session(progress=ctrl_c_at(3)))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def progress(what, done, steps, loss):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(session=Session(tmp_path, progress=progress))
    assert signal.getsignal(signal.SIGINT) is before


def test_runs_beside_the_main_thread_too():
    results = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert_same(results[0], run())
