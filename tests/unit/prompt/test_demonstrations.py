"""Which examples are shown: LM-BFF's filter and sampling, every label alike, never the query itself."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewtune.data.example import Example
from fewtune.data.sampling import derive
from fewtune.errors import SpecError, TaskError
from fewtune.prompt.demonstrations import Demonstrations, nearest, read
from fewtune.tasks.task import Task

TASK = Task(labels=("no", "yes"))
LETTERS = "abcdefgh"
ANGLES = dict(zip(LETTERS, [0, 10, 20, 30, 5, 15, 25, 35], strict=True))
POOL = tuple(Example({"text": letter}, "no" if letter in "abcd" else "yes") for letter in LETTERS)


def embed(texts):
    """Unit vectors in the plane, a letter's at its angle in degrees; of any other text at 0."""
    radians = torch.deg2rad(torch.tensor([float(ANGLES.get(text, 0)) for text in texts]))
    return torch.stack([radians.cos(), radians.sin()], 1)


def ready(pool=POOL, *, task=TASK, seed=1, in_front=False, **fields):
    return Demonstrations(**fields).of(pool, task, seed=seed, in_front=in_front, embed=embed)


def query(text):
    return Example({"text": text})


def drawn(shown, texts, number=0):
    queries = [query(text) for text in texts]
    return shown.draw(queries, number, shown.similarity(queries))


def texts(shown, chosen):
    return "".join(shown.examples[number].fields["text"] for number in chosen)


# LM-BFF


def test_the_most_similar_half_of_each_label_is_drawn_from_and_all_of_it():
    shown = ready(similar=0.5)  # the query lies at 0: of a b c d the nearest are a and b, of e f g h they are e and f
    seen = {texts(shown, drawn(shown, ["query"], number)[0]) for number in range(60)}
    assert seen == {"ae", "af", "be", "bf"}


def test_without_a_filter_every_example_has_its_turn():
    shown = ready(similar=1)
    seen = Counter(texts(shown, drawn(shown, ["query"], number)[0]) for number in range(400))
    assert set(seen) == {no + yes for no in "abcd" for yes in "efgh"}
    assert max(seen.values()) < 60  # of sixteen alike, 25 are expected of each


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("number", range(5))
def test_equals_the_papers_filter_and_sampling_written_as_loops(rate, number):
    """Gao et al. 2021, section 6.2 and their `select_context`: sort by cosine, keep the first so many of each label; then walk through a
    permutation and take the first of each label."""
    angles = {f"t{place}": 37 * place % 90 for place in range(24)}
    pool = tuple(Example({"text": name}, ("no", "yes", "maybe")[place % 3]) for place, name in enumerate(angles))
    task = Task(labels=("maybe", "no", "yes"))

    def turned(names):
        radians = torch.deg2rad(torch.tensor([float(angles.get(name, 40)) for name in names]))
        return torch.stack([radians.cos(), radians.sin()], 1)

    shown = Demonstrations(similar=rate).of(pool, task, seed=5, in_front=False, embed=turned)
    (chosen,) = shown.draw([query("new")], number, shown.similarity([query("new")]))

    scored = sorted(range(24), key=lambda one: abs(angles[f"t{one}"] - 40))  # cosine falls with the angle between
    limit, kept, counts = int(24 // 3 * rate), [], Counter()
    for one in scored:
        if counts[pool[one].label] < limit:
            counts[pool[one].label] += 1
            kept.append(one)
    turn = np.random.default_rng(derive(5, "demonstrations", "draw", number)).permutation(24)
    selection = {}
    for one in sorted(kept, key=lambda one: turn[one]):
        selection.setdefault(pool[one].label, one)
    assert chosen == tuple(selection[label] for label in task.labels)


def test_each_query_has_its_own_draw_in_an_epoch_and_another_in_the_next():
    shown = ready(similar=1)
    queries = [query("query")] * 30
    first, again, second = (shown.epoch(queries, number, None) for number in (0, 0, 1))
    assert first == again != second
    assert len(set(first)) > 5


def test_at_inference_all_queries_share_a_draw():
    shown = ready(similar=1)
    assert len(set(drawn(shown, ["one", "two", "three"]))) == 1
    assert len({drawn(shown, ["one"], number)[0] for number in range(20)}) > 3
    assert len({drawn(ready(similar=1, seed=seed), ["one"])[0] for seed in range(20)}) > 3


# Order


def test_labels_stand_in_the_tasks_order():
    shown = ready(similar=1, per_label=2, task=Task(labels=("yes", "no")))
    for number in range(10):
        labels = [shown.examples[one].label for one in drawn(shown, ["query"], number)[0]]
        assert labels == ["yes", "yes", "no", "no"]


def test_a_random_order_mixes_the_labels():
    shown = ready(similar=1, order="random")
    first = Counter(shown.examples[drawn(shown, ["query"], number)[0][0]].label for number in range(60))
    assert min(first["no"], first["yes"]) > 15


@pytest.mark.parametrize(("in_front", "expected"), [(False, "aebf"), (True, "fbea")])
def test_the_nearest_stands_next_to_the_query(in_front, expected):
    shown = ready(similar=0.5, per_label=2, order="nearest", in_front=in_front)
    assert texts(shown, drawn(shown, ["query"])[0]) == expected


def test_nearest_takes_all_where_nothing_was_compared_and_the_first_of_equals():
    assert nearest([4, 2], [], 1) == [4, 2]
    assert nearest([3, 1, 2], [0.0, 0.5, 0.5, 0.5], 2) == [3, 1]


# No leak, and every label alike

words = st.sampled_from(["good", "bad", "dull", "fun"])
said = st.lists(words, min_size=1, max_size=2).map(" ".join)


@pytest.mark.slow
@settings(max_examples=300)
@given(
    pool=st.lists(st.tuples(said, st.sampled_from("xyz")), min_size=1, max_size=14),
    asked=st.one_of(said, said.map(lambda text: f"  {text.upper()}\t")),
    per_label=st.integers(1, 3),
    similar=st.sampled_from([0.2, 0.5, 1]),
    order=st.sampled_from(["labels", "random", "nearest"]),
    number=st.integers(0, 3),
    seed=st.integers(0, 3),
    training=st.booleans(),
)
def test_each_label_is_shown_as_often_as_another_and_the_query_never(pool, asked, per_label, similar, order, number, seed, training):
    def lengths(names):
        wide = torch.tensor([[len(name) / 10, 1.0] for name in names])
        return wide / wide.norm(dim=1, keepdim=True)

    examples = [Example({"text": text}, label) for text, label in pool]
    spec = Demonstrations(per_label=per_label, similar=similar, order=order)
    shown = spec.of(examples, Task(labels=("x", "y", "z", "never")), seed=seed, in_front=True, embed=lengths)
    similarity = shown.similarity([query(asked)])
    (chosen,) = (shown.epoch if training else shown.draw)([query(asked)], number, similarity)

    plain = " ".join(asked.split()).casefold()
    first = {}
    for text, label in pool:
        first.setdefault(text, label)
    left = Counter(label for text, label in first.items() if text != plain)
    labels = set(first.values())
    counts = Counter(shown.examples[one].label for one in chosen)
    assert all(shown.examples[one].fields["text"] != plain for one in chosen)
    assert len(set(chosen)) == len(chosen)
    expected = min(per_label, *(left[label] for label in labels))
    assert counts == (Counter(dict.fromkeys(labels, expected)) if expected else Counter())
    if similarity is not None:
        for one in chosen:
            label = shown.examples[one].label
            nearer = [other for other in shown.members[label] if similarity[0, other] > similarity[0, one]]
            kept = max(expected, int(similar * left[label]))
            assert sum(shown.examples[other].fields["text"] != plain for other in nearer) < kept


def test_the_only_example_of_its_label_is_shown_nothing_that_would_give_the_label_away():
    shown = ready((Example({"text": "a"}, "no"), Example({"text": "e"}, "yes"), Example({"text": "f"}, "yes")), similar=1)
    assert drawn(shown, ["a"]) == [()] and texts(shown, drawn(shown, ["e"])[0]) == "af" and texts(shown, drawn(shown, ["f"])[0]) == "ae"


def test_of_a_pair_both_texts_make_the_query():
    pool = [Example({"one": "x", "two": two}, label) for two, label in (("y", "no"), ("z", "no"), ("y z", "yes"))]
    task = Task(labels=("no", "yes"), fields=("one", "two"))
    shown = Demonstrations(similar=1).of(pool, task, seed=0, in_front=False)
    for number in range(8):
        (chosen,) = shown.draw([Example({"one": "x", "two": "y"})], number, None)
        assert [shown.examples[one].fields["two"] for one in chosen] == ["z", "y z"]


# What is refused


@pytest.mark.parametrize("fields", [{"per_label": 0}, {"similar": 0}, {"similar": 1.5}, {"draws": 0}, {"budget": 0}])
def test_values_out_of_range(fields):
    with pytest.raises(SpecError, match=f"demonstrations.{next(iter(fields))}: "):
        Demonstrations(**fields)


def test_a_label_of_another_task_and_a_missing_encoder():
    with pytest.raises(TaskError, match="expected a label of the task, got 'maybe'"):
        ready([*POOL, Example({"text": "q"}, "maybe")])
    with pytest.raises(SpecError, match="similar=1"):
        Demonstrations().of(POOL, TASK, seed=0, in_front=False).similarity([query("q")])


def test_only_what_compares_needs_embeddings():
    compared = [(similar, order) for similar in (0.5, 1) for order in ("labels", "random", "nearest")]
    assert [Demonstrations(similar=similar, order=order).compares for similar, order in compared] == [True] * 3 + [False, False, True]


def test_written_forms():
    assert read("per_label=2,similar=1/2,order=nearest", "flag") == Demonstrations(per_label=2, order="nearest")
    assert read({"draws": 3, "similar": 1}, "file") == Demonstrations(draws=3, similar=1.0)
    assert read(None, "flag") is read("none", "flag") is None
    for wrong, message in (("lm-bff", 'flag: expected field=value, got "lm-bff"'), ("draw=3", 'got "draw". Did you mean "draws"')):
        with pytest.raises(SpecError, match=message):
            read(wrong, "flag")
