"""Draws are disjoint, nested and stable; folds partition the rows."""

import itertools
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.data.example import Example
from fewtune.data.sampling import capped, derive, distinct, folds, pool, rates, shots, spread, turns
from fewtune.errors import DataError, SpecError

seeds = st.integers(0, 2**63)
quick = settings(max_examples=50)


@st.composite
def examples(draw, least=1):
    labels = draw(st.lists(st.sampled_from("abc"), min_size=least, max_size=30))
    return [Example({"text": f"text {row}"}, label) for row, label in enumerate(labels)]


def fewest(given):
    return min(Counter(example.label for example in given).values())


@quick
@given(examples(), seeds, st.data())
def test_shots_are_k_of_each_label_nested_and_in_order(given_examples, seed, data):
    most = fewest(given_examples)
    k = data.draw(st.integers(1, most))
    few, many = shots(given_examples, k, seed=seed), shots(given_examples, most, seed=seed)
    assert Counter(example.label for example in few) == dict.fromkeys({example.label for example in given_examples}, k)
    assert few == tuple(example for example in many if example in few)
    assert list(few) == [example for example in given_examples if example in few]
    assert few == shots(given_examples, k, seed=seed)


@quick
@given(st.lists(st.sets(st.sampled_from("abc"), max_size=3), min_size=1, max_size=30), seeds, st.data())
def test_shots_of_several_names_are_at_least_k_of_each_nested_and_in_order(names, seed, data):
    given_examples = [Example({"text": str(row)}, "|".join(sorted(own))) for row, own in enumerate(names)]
    groups = [sorted(own) for own in names]
    count = Counter(name for own in groups for name in own)
    most = min(count.values(), default=1)
    k = data.draw(st.integers(1, most))
    few, many = (shots(given_examples, n, seed=seed, groups=groups) for n in (k, most))
    drawn = Counter(name for example in few for name in filter(None, example.label.split("|")))
    assert all(drawn[name] >= k for name in count) and all(example.label for example in few) and len(few) <= k * len(count)
    assert list(few) == [example for example in given_examples if example in few] and set(map(id, few)) <= set(map(id, many))
    with pytest.raises(DataError, match="examples of label"):
        shots([*given_examples, Example({"text": "x"}, "a")], 1 + len(names) + 1, seed=seed, groups=[*groups, ["a"]])


@quick
@given(examples(), seeds)
def test_shots_of_one_name_each_are_those_of_labels(given_examples, seed):
    k = fewest(given_examples)
    assert shots(given_examples, k, seed=seed, groups=[[example.label] for example in given_examples]) == shots(
        given_examples, k, seed=seed
    )


def test_shots_of_one_label_do_not_depend_on_the_others():
    first = [Example({"text": str(row)}, "a") for row in range(20)]
    more = [Example({"text": f"b{row}"}, "b") for row in range(20)]
    assert shots(first, 5, seed=13) == tuple(example for example in shots(first + more, 5, seed=13) if example.label == "a")


def test_seeds_draw_differently():
    many = [Example({"text": str(row)}, "a") for row in range(100)]
    assert len({tuple(example.fields["text"] for example in shots(many, 5, seed=seed)) for seed in range(20)}) == 20


@quick
@given(examples(), examples(), seeds, st.integers(1, 40))
def test_pools_are_unlabelled_disjoint_and_nested(given_examples, without, seed, n):
    drawn = pool(given_examples, n, seed=seed, without=without)
    texts = [example.fields["text"] for example in drawn]
    left = [example.fields["text"] for example in given_examples[len(without) :]]
    assert len(texts) == min(n, len(left))
    assert texts == [text for text in left if text in texts]
    assert {example.label for example in drawn} <= {None}
    assert set(drawn_texts(given_examples, n - 1, seed, without)) <= set(texts)


def drawn_texts(given_examples, n, seed, without):
    return [example.fields["text"] for example in pool(given_examples, n, seed=seed, without=without)] if n else []


def test_pools_leave_out_the_same_text_under_another_name():
    given_examples = [Example({"review": " fine"}, "a"), Example({"review": "dull"}, "b")]
    assert pool(given_examples, 9, seed=0, without=[Example({"text": "fine "}, "c")]) == (Example({"review": "dull"}),)


@quick
@given(st.integers(0, 40), st.integers(1, 40))
def test_a_spread_takes_no_more_than_it_may_and_leaves_no_long_gap(size, most):
    rows = [int(example.fields["text"]) for example in spread([Example({"text": str(row)}) for row in range(size)], most)]
    assert len(rows) == min(size, most)
    assert all(0 < after - before <= -(-size // most) for before, after in itertools.pairwise([-1, *rows, size])) or not rows


@quick
@given(examples(least=5), seeds, st.integers(2, 5))
def test_folds_hold_every_row_out_once_and_spread_labels(given_examples, seed, n):
    split = folds(given_examples, n, seed=seed)
    assert len(split) == n
    assert sorted(row for _, held_out in split for row in held_out) == list(range(len(given_examples)))
    for train, held_out in split:
        assert sorted((*train, *held_out)) == list(range(len(given_examples)))
        assert list(train) == sorted(train)
    for label in {example.label for example in given_examples}:
        counts = [sum(given_examples[row].label == label for row in held_out) for _, held_out in split]
        assert max(counts) - min(counts) <= 1
    sizes = [len(held_out) for _, held_out in split]
    assert max(sizes) - min(sizes) <= 1
    assert split == folds(given_examples, n, seed=seed)


@quick
@given(st.lists(st.sampled_from("xyz"), min_size=5, max_size=30), seeds, st.integers(2, 5))
def test_folds_spread_groups_where_they_stand_in_for_labels(groups, seed, n):
    rows = [Example({"text": str(number)}) for number in range(len(groups))]
    split = folds(rows, n, seed=seed, groups=groups)
    assert sorted(row for _, held_out in split for row in held_out) == list(range(len(rows)))
    for group in set(groups):
        counts = [sum(groups[row] == group for row in held_out) for _, held_out in split]
        assert max(counts) - min(counts) <= 1


@quick
@given(st.dictionaries(st.text(max_size=3), examples(), max_size=3), seeds, st.integers(1, 20))
def test_mixtures_cap_each_task(by_task, seed, cap):
    mixture = capped(by_task, cap, seed=seed)
    for task, given_examples in by_task.items():
        drawn = [example for name, example in mixture if name == task]
        assert len(drawn) == min(cap, len(given_examples))
        assert drawn == [example for example in given_examples if example in drawn]
    assert list(dict.fromkeys(name for name, _ in mixture)) == list(by_task)


@quick
@given(seeds, st.lists(st.one_of(st.text(max_size=4), st.integers(-5, 5)), max_size=3))
def test_derived_seeds_fit_every_generator_and_tell_names_apart(seed, names):
    derived = derive(seed, *names)
    assert 0 <= derived < 2**63
    assert derived == derive(seed, *names)
    others = [
        derive(seed + 1, *names),
        derive(seed, *names, ""),
        derive(seed, *map(str, names), 0),
        derive(seed, "".join(map(str, names)), "x"),
    ]
    assert derived not in others


def test_nothing_depends_on_the_process():
    code = (
        "from fewtune.data.sampling import derive, shots, folds; from fewtune.data.example import Example\n"
        "data = [Example({'text': str(row)}, 'abc'[row % 3]) for row in range(30)]\n"
        "print(derive(13, 'order', 3), [e.fields['text'] for e in shots(data, 4, seed=13)], folds(data, 4, seed=13))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(outputs) == 1
    assert derive(13, "order", 3) == int(outputs.pop().split()[0])


@pytest.mark.parametrize(
    ("draw", "kind", "told"),
    [
        (lambda data: shots(data, 3, seed=0), DataError, 'expected 3 examples of label "b", got 1'),
        (lambda data: shots(data, 0, seed=0), SpecError, "shots: expected a number above 0, got 0"),
        (lambda data: shots([*data, Example({"text": "x"}, None, "a.csv:9")], 1, seed=0), DataError, "a.csv:9: expected a label, got none"),
        (lambda data: shots([], 1, seed=0), DataError, "expected labelled examples, got 0"),
        (lambda data: folds(data, 9, seed=0), DataError, "expected 9 rows for 9 folds, got 4"),
        (lambda data: folds(data, 1, seed=0), SpecError, "folds: expected at least two folds, got 1"),
        (lambda data: pool(data, 0, seed=0, without=[]), SpecError, "pool: expected a number above 0, got 0"),
        (lambda data: capped({"t": data}, 0, seed=0), SpecError, "capped: expected a number above 0, got 0"),
    ],
)
def test_draws_that_cannot_be_made(draw, kind, told):
    data = [Example({"text": str(row)}, label) for row, label in enumerate("aaab")]
    with pytest.raises(kind, match=told):
        draw(data)


def test_a_text_counts_once():
    texts = [("a",), ("b",), (" a ",), ("b", ""), ("b",)]
    examples = [Example(dict(zip("xy", text, strict=False)), where=str(row)) for row, text in enumerate(texts)]
    assert [int(example.where) for example in distinct(examples)] == [0, 1, 3]


@quick
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.integers(1, 10**6), st.floats(0.5, 8))
def test_rates_are_shares_that_a_cap_and_a_temperature_bring_together(sizes, cap, temperature):
    plain, warmer = rates(sizes, cap=cap), rates(sizes, cap=cap, temperature=temperature)
    assert sum(plain) == pytest.approx(1) and sum(warmer) == pytest.approx(1)
    assert [share / max(plain) for share in plain] == pytest.approx([min(size, cap) / min(max(sizes), cap) for size in sizes])
    assert [share / max(warmer) for share in warmer] == pytest.approx([(share / max(plain)) ** (1 / temperature) for share in plain])
    with pytest.raises(SpecError):
        rates(sizes, cap=cap, temperature=0)


@quick
@given(st.integers(0, 60), st.integers(0, 60), seeds)
def test_turns_count_each_set_and_fewer_are_the_first_of_more(few, more, seed):
    found = turns((0.5, 0.3, 0.2), few + more, seed=seed)
    assert turns((0.5, 0.3, 0.2), few, seed=seed) == found[:few]
    for place in range(3):
        assert [before for drawn, before in found if drawn == place] == list(range(sum(drawn == place for drawn, _ in found)))
