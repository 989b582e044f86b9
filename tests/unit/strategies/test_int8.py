"""A tuned model in eight bits: what is stored of it, which deltas stay as they are, and that it is the model that was tuned."""

import pytest
import torch

import fewtune as ft
from fewtune import artifact, job, plm
from fewtune.backbone import tiny
from fewtune.data.example import Example, Split
from fewtune.deltas.int8 import Int8
from fewtune.deltas.mask import Mask
from fewtune.deltas.narrow import Narrow
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.sharing import Sharing
from fewtune.errors import SpecError
from fewtune.sizing import bytes_of
from fewtune.strategies.int8 import ToInt8
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great", "fun", "joy"), ("dull", "mess", "terrible")
ROWS = tuple(
    Example({"text": f"{one} and {other}"}, label) for label, words in (("pos", GOOD), ("neg", BAD)) for one in words for other in words
)
TEXTS = [row.fields["text"] for row in ROWS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.save("bert", tmp_path_factory.mktemp("plm") / "bert", blocks=4))


def tuned(folder, *deltas):
    settings = job.Settings(
        strategy="supervised", readout=ft.Head(), deltas=deltas, fit=FitOptions(steps=30, learning_rate=0.003, batch_size=8), seed=3
    )
    return job.tune(ft.Task.classification(["neg", "pos"]), Split(train=ROWS), plm.load(folder), settings, session=Session())


def in_eight_bits(model, **options):
    return ToInt8(**options).run(model, Split(train=ROWS), session=Session())


DELTAS = {
    "lora": ((ft.LoRA(rank=2),), ["int8", "lora"]),
    "biases": ((ft.Subset("biases"), ft.LoRA(rank=1)), ["int8", "subset", "lora"]),
    "all": ((ft.Subset("all"),), ["int8"]),
    "last": ((ft.Subset("last"), ft.Prefix(length=2)), ["int8", "prefix"]),
    "mask": ((Mask(),), ["int8"]),
    "shallow": ((Shallow(2), ft.Subset("all")), ["shallow", "int8"]),
    "narrow": ((Narrow(),), ["narrow", "int8"]),
    "none": ((ft.Subset("none"),), ["int8", "subset"]),
}
STORED = ("all", "last", "mask", "shallow", "narrow")


@pytest.mark.slow
@pytest.mark.parametrize("name", DELTAS)
def test_the_answers_are_near_and_come_back_from_the_folder_to_the_bit(folder, name, tmp_path):
    deltas, expected = DELTAS[name]
    model = tuned(folder, *deltas)
    before = model.probabilities(ROWS)
    made = in_eight_bits(model)
    after = made.probabilities(ROWS)
    assert not torch.equal(before, after)
    assert (before - after).abs().max() < 0.1
    assert torch.equal(model.probabilities(ROWS), before)
    assert [one["name"] for one in artifact._body(made)["deltas"]] == expected
    assert [one.delta.values for one in made.deltas if isinstance(one.delta, Int8)] == ["stored" if name in STORED else "own"]
    made.save(tmp_path / "small")
    assert torch.equal(artifact.load(tmp_path / "small").probabilities(ROWS), after)


@pytest.mark.slow
def test_what_is_tuned_whole_is_stored_in_about_a_quarter(folder, tmp_path):
    model = tuned(folder, ft.Subset("all"))

    def size(model, name):
        return sum(file.stat().st_size for file in model.save(tmp_path / name).glob("delta*"))

    assert size(in_eight_bits(model), "small") < 0.35 * size(model, "full")  # headers and scales of matrices this narrow take much of it


@pytest.mark.slow
def test_inputs_are_measured_on_some_rows_or_scaled_for_each_token(folder):
    model = tuned(folder, ft.Subset("none"))
    token, none = in_eight_bits(model, inputs="token"), ToInt8().run(model, Split(), session=Session())
    assert torch.equal(token.probabilities(ROWS), none.probabilities(ROWS))
    measured, unlabeled = in_eight_bits(model), ToInt8().run(model, Split(unlabeled=ROWS), session=Session())
    assert torch.equal(measured.probabilities(ROWS), unlabeled.probabilities(ROWS))
    assert not torch.equal(measured.probabilities(ROWS), token.probabilities(ROWS))
    few = in_eight_bits(model, rows=1)
    spans = [next(iter(one.deltas[0].maps.values())).span for one in (few, measured, token)]
    assert spans[1][0] <= spans[0][0] < spans[0][1] <= spans[1][1] and spans[2] is None
    with pytest.raises(SpecError, match="rows"):
        ToInt8(rows=0)


@pytest.mark.slow
def test_a_low_rank_update_is_stored_alone(folder, tmp_path):
    made = in_eight_bits(tuned(folder, ft.LoRA(rank=2)), inputs="token")
    assert sorted(file.name for file in made.save(tmp_path / "small").glob("delta*")) == ["delta-1.safetensors"]


@pytest.mark.slow
def test_a_model_in_eight_bits_is_refused(folder):
    made = in_eight_bits(tuned(folder, ft.LoRA(rank=2)))
    with pytest.raises(SpecError, match="got one in eight bits"):
        in_eight_bits(made)
    with pytest.raises(SpecError, match="got shared ones"):
        in_eight_bits(tuned(folder, Sharing(groups=2)))


@pytest.mark.slow
def test_the_bytes_that_are_needed_are_those_of_the_folder_where_all_is_stored(folder, tmp_path):
    made = in_eight_bits(tuned(folder, ft.Subset("all")))
    whole = bytes_of(made.save(tmp_path / "small"), made)
    assert whole.needed == whole.artifact + sum(buffer.nbytes for buffer in plm.load(folder).model.buffers())
    made = in_eight_bits(tuned(folder, ft.LoRA(rank=2)))
    low = bytes_of(made.save(tmp_path / "low"), made)
    assert low.needed - low.artifact - (whole.needed - whole.artifact) == 4 * made.backbone.parameters
