"""Pruning tuned models: which weights go, what the others start from, what is counted and stored, and what is refused."""

from dataclasses import replace

import pytest
import torch

import fewtune as ft
from fewtune import artifact, job, plm
from fewtune.backbone import tiny
from fewtune.data.example import Example, Split
from fewtune.deltas.mask import BLOCKS, Mask, gone
from fewtune.deltas.shallow import Shallow
from fewtune.deltas.subset import Subset
from fewtune.errors import SpecError, TaskError
from fewtune.strategies.prune import Prune
from fewtune.strategies.thinning import Thin
from fewtune.train import masks
from fewtune.train.fit import FitOptions, Session

GOOD, BAD = ("great", "fun", "joy"), ("dull", "mess", "terrible")
ROWS = tuple(
    Example({"text": f"{one} and {other}"}, label) for label, words in (("pos", GOOD), ("neg", BAD)) for one in words for other in words
)
TEXTS = [row.fields["text"] for row in ROWS]
TASK = ft.Task.classification(["neg", "pos"])
QUERY, WORDS = "bert.encoder.layer.0.attention.self.query.weight", "bert.embeddings.word_embeddings.weight"
SHOWN = ft.Demonstrations(per_label=1, similar=1.0, draws=1)
ONCE = Prune(by="magnitude", steps=0)
FEW = {"steps": 6, "batch_size": 6, "learning_rate": 0.003}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.save("bert", tmp_path_factory.mktemp("plm") / "bert", blocks=2))


def tuned(folder, *deltas, steps=20):
    settings = job.Settings(
        strategy="supervised", readout=ft.Head(), deltas=deltas, fit=FitOptions(steps=steps, learning_rate=0.003), seed=3
    )
    return job.tune(TASK, Split(train=ROWS), plm.load(folder), settings, session=Session())


@pytest.fixture(scope="module")
def model(folder):
    return tuned(folder, Subset("all"))


def prune(model, spec, session=None, rows=ROWS):
    return spec.run(model, Split(train=rows), session=session or Session())


def weights(model):
    """All weights that the model computes with."""
    return plm.merged(model.backbone, model.deltas)


def bare(model):
    """The PLM as it is."""
    return plm.load(model.backbone.name)


def out(model):
    return sum(gone(part) for part in model.deltas if isinstance(part.delta, Mask))


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("words", ["own", "trained"])
def test_the_share_is_of_all_weights_of_the_plm(model, share, words):
    made = prune(model, replace(ONCE, share=share, words=words))
    total = model.backbone.parameters
    matrices = len(Mask(sites=(*BLOCKS, "words")).weights(bare(model)))
    assert out(made) == pytest.approx(share * total, abs=matrices)  # each is rounded for itself
    assert made.about["pruned"] == {"by": "magnitude", "weights": total, "gone": out(made), "share": out(made) / total}
    assert sum(int((tensor == 0).sum()) for name, tensor in weights(made).items() if "position_ids" not in name) >= out(made)


def test_what_was_shown_is_shown_beside_a_pruned_model_too(folder):
    cloze = ft.Task(("neg", "pos"), ("text",), ("{text} It was {slot}",), {"neg": ("terrible",), "pos": ("great",)})
    settings = job.Settings(
        strategy="supervised", readout=ft.Cloze(), deltas=(ft.LoRA(rank=2),), fit=FitOptions(steps=2), demonstrations=SHOWN, seed=3
    )
    model = job.tune(cloze, Split(train=ROWS), plm.load(folder), settings, session=Session())
    made = prune(model, replace(ONCE, share=0.001))
    assert made.demonstrations is not None and made.demonstrations == model.demonstrations
    torch.testing.assert_close(made.probabilities(ROWS), model.probabilities(ROWS), atol=0.01, rtol=0)


def test_at_once_by_magnitude_the_tuned_weights_remain_that_are_largest(model):
    made = prune(model, replace(ONCE, words="trained"))
    before, after = weights(model), weights(made)
    held = Mask(sites=(*BLOCKS, "words")).weights(bare(model)).keys()
    share = 0.5 * model.backbone.parameters / sum(before[name].numel() for name in held)
    assert [name for name in held if not torch.equal(after[name], before[name] * masks.largest(before[name].abs(), share))] == []
    others = dict(bare(model).model.named_parameters()).keys() - held
    assert others and all(torch.equal(after[name], before[name]) for name in others)
    assert all(torch.equal(made.reader.weights[name], weight) for name, weight in model.reader.weights.items())


@pytest.mark.slow
def test_of_the_words_bits_are_stored_and_the_values_are_the_plms_own(model):
    made = prune(model, ONCE)
    blocks, words, rest = made.deltas
    assert (blocks.delta.sites, words.delta.sites, rest.delta) == (BLOCKS, ("words",), Subset("all"))
    assert list(words.state_dict()) == [f"{WORDS}.keep"]
    own = bare(model).model.get_input_embeddings().weight
    keep = masks.unpacked(words.state_dict()[f"{WORDS}.keep"], own.shape)
    assert torch.equal(weights(made)[WORDS], own * keep) and not torch.equal(own, weights(model)[WORDS])
    assert WORDS not in rest.weights


def test_whole_words_are_left_to_what_is_trained_beside(model):
    made = prune(model, replace(ONCE, share=0.2, words="whole"))
    assert torch.equal(weights(made)[WORDS], weights(model)[WORDS])
    with pytest.raises(SpecError, match="expected a share that leaves something"):
        prune(model, replace(ONCE, share=0.9, words="whole"))


@pytest.mark.slow
@pytest.mark.parametrize("by", ["magnitude", "movement", "soft-movement", "lottery"])
def test_it_is_saved_and_answers_the_same_in_a_smaller_file(model, by, tmp_path):
    made = prune(model, Prune(by=by, rounds=2, strength=3.0, score_rate=0.5, threshold=0.4, **FEW))
    answers = made.predict(TEXTS)
    full, small = model.save(tmp_path / "full"), made.save(tmp_path / "small")
    loaded = artifact.load(small)
    assert loaded.predict(TEXTS) == answers
    assert out(loaded) == out(made) > 0
    assert f"| pruned | {out(made):,} of {model.backbone.parameters:,} weights are gone (" in (small / "README.md").read_text()
    tensors = [sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (full, small)]
    assert by == "soft-movement" or tensors[1] < 0.75 * tensors[0]
    kept = artifact.tensors(made)
    assert all(torch.equal(tensor, kept[name][key]) for name, state in artifact.tensors(loaded).items() for key, tensor in state.items())


def test_scores_begin_with_a_head_start_of_the_large():
    start = torch.tensor([[1.0, -3.0], [0.0, 4.0]])
    assert Thin(start, scored=0.5).score.tolist() == [[0.25, 0.75], [0.0, 1.0]]
    assert Thin(start, scored=0.0).score.tolist() == [[0.0, 0.0], [0.0, 0.0]] and Thin(start, scored=None).score is None


def test_movement_that_moves_nothing_prunes_by_magnitude(model):
    made = prune(model, Prune(steps=2, score_rate=1e-9, learning_rate=1e-9))
    before, keep = weights(model)[QUERY].abs(), weights(made)[QUERY] != 0
    assert before[keep].min() >= before[~keep].max()


@pytest.mark.slow
def test_movement_trains_weights_and_goes_by_scores(model):
    made = prune(model, Prune(head_start=0.0, **FEW))
    before, after = weights(model)[QUERY], weights(made)[QUERY]
    keep = after != 0
    assert not torch.equal(keep, masks.largest(before.abs(), 1 - float(keep.float().mean())))
    assert not torch.equal(after[keep], before[keep])
    together = prune(model, Prune(within="all", head_start=0.0, **FEW))
    shares = {round(float((tensor == 0).float().mean()), 2) for name, tensor in weights(together).items() if "query.weight" in name}
    assert len(shares) == 2, "each matrix loses its own share"


@pytest.mark.slow
def test_the_harder_scores_are_pulled_the_more_go(model):
    few = {"by": "soft-movement", "score_rate": 0.3, "threshold": 0.4, **FEW}
    assert out(prune(model, Prune(strength=1e4, **few))) > out(prune(model, Prune(strength=0.0, **few)))


def test_a_ticket_is_found_in_what_was_trained_and_starts_from_what_was_not(model):
    """One round, hardly trained: the tuned model's largest weights, with the PLM's own values."""
    made = prune(model, Prune(by="lottery", rounds=1, steps=1, learning_rate=1e-9))
    own = bare(model)
    plain, before = own.model.get_parameter(QUERY), weights(model)[QUERY].abs()
    keep = weights(made)[QUERY] != 0
    torch.testing.assert_close(weights(made)[QUERY], plain * keep, atol=1e-6, rtol=0)
    assert before[keep].min() >= before[~keep].max() and plain[keep].abs().min() < plain[~keep].abs().max()


@pytest.mark.slow
def test_a_ticket_in_rounds_is_as_small_and_another(model):
    found = [prune(model, Prune(by="lottery", rounds=rounds, steps=2, learning_rate=0.01)) for rounds in (1, 2)]
    assert out(found[0]) == out(found[1]), "the share that is asked for, in any number of rounds"
    keep = [weights(one)[QUERY] != 0 for one in found]
    assert not torch.equal(*keep), "the second round ranks what the first has trained"


@pytest.mark.slow
def test_a_model_of_low_rank_updates_starts_from_them_merged(folder):
    model = tuned(folder, ft.LoRA(rank=2))
    made = prune(model, ONCE)
    assert [part.delta for part in made.deltas][-1] == Subset("norms")
    before = weights(model)[QUERY]
    assert not torch.equal(before, bare(model).model.get_parameter(QUERY))
    keep = weights(made)[QUERY] != 0
    assert torch.equal(weights(made)[QUERY], before * keep) and before[keep].abs().min() >= before[~keep].abs().max()


def test_fewer_layers_stay_fewer(folder, model):
    backbone = plm.load(folder)
    shallow = Shallow(1).install(backbone, generator=torch.Generator())
    settings = job.Settings(strategy="supervised", readout=ft.Head(), deltas=(), fit=FitOptions(steps=5), seed=3)
    small = job.tune(TASK, Split(train=ROWS), backbone, settings, session=Session())
    small = replace(small, deltas=(shallow, *small.deltas))
    made = prune(small, replace(ONCE, share=0.3))
    assert made.backbone.depth == 1 and isinstance(made.deltas[0].delta, Shallow)
    assert made.about["pruned"]["weights"] < model.backbone.parameters


@pytest.mark.slow
@pytest.mark.parametrize("by", ["movement", "lottery"])
def test_a_run_that_is_cut_goes_on_to_the_same_bytes(model, by, tmp_path):
    spec = Prune(by=by, rounds=2, steps=7, batch_size=6, learning_rate=0.003)
    whole = artifact.tensors(prune(model, spec))

    class Cut(Exception):
        pass

    def session(stop):
        left = iter(range(stop))

        def progress(what, done, steps, loss):
            if done > 1 and next(left, None) is None:
                raise Cut

        return Session(tmp_path / by, "key", progress=progress, every_seconds=0)

    for stop in (1, 2):
        with pytest.raises(Cut):
            prune(model, spec, session(stop))
    assert list((tmp_path / by).iterdir())
    resumed = artifact.tensors(prune(model, spec, session(99)))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name][key]) for name, state in resumed.items() for key, tensor in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("words", ["own", "trained"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family, words, tmp_path):
    model = tuned(str(tiny.save(family, tmp_path / "plm", blocks=2)), Subset("all"), steps=2)
    made = prune(model, Prune(share=0.2, words=words, **FEW))
    answers = made.predict(TEXTS)
    assert made.about["pruned"]["share"] == pytest.approx(0.2, abs=2e-3)
    loaded = artifact.load(made.save(tmp_path / "small"))
    assert loaded.predict(TEXTS) == answers
    assert sum(int((tensor == 0).sum()) for tensor in weights(loaded).values()) >= out(made)


def test_what_cannot_be_pruned_is_refused_and_stays_as_it_was(folder, model):
    prefixed = tuned(folder, ft.SoftPrompt(length=1), steps=1)
    before = prefixed.predict(TEXTS)
    with pytest.raises(SpecError, match=r"prune: expected a model whose deltas are changes of weights.*lora, ia3 or subset"):
        prune(prefixed, ONCE)
    assert prefixed.predict(TEXTS) == before
    with_exits = replace(model, exits=object())
    with pytest.raises(TaskError, match="expected a model without exits"):
        prune(with_exits, ONCE)
    for wrong in ({"share": 1.0}, {"warmup": 0.8, "cooldown": 0.3}, {"steps": 0}, {"by": "lottery", "rounds": 0}, {"score_rate": 0.0}):
        with pytest.raises(SpecError, match="prune"):
            Prune(**wrong)
