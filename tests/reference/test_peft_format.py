"""PEFT folders both ways: what `peft` trained gives the same scores here, and what is written here gives the same scores there."""

import copy
import json
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fewtune import artifact
from fewtune.backbone import tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Bank
from fewtune.backbone.families import FAMILIES as FAMILY_TABLE
from fewtune.data.example import Example
from fewtune.deltas import peft_format, peft_read
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.errors import ArtifactError
from fewtune.exchange import export_peft, import_peft
from fewtune.model import TunedModel
from fewtune.readout.classifiers import CLASSIFIERS
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.tasks.task import Task

TEXTS = ("great fun and a joy from start to finish!", "a dull, lifeless mess.", "it was", "the world of sports")
LABELS = ("a", "b", "c")
FAMILIES = ("bert", "roberta", "llama", "gpt2")
POOLED = ("albert", "bert")
FINE = {"atol": 1e-6, "rtol": 1e-6}


def shifted(model, seed=5):
    """Every weight that is trained, moved away from where it started: alike for all kinds of adapter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight += torch.randn(weight.shape, generator=generator) * 0.2
    return model


def classifier(family):
    """(transformers' classifier, the same stack as a backbone): the bare stack where it has a pooler, which language models leave out."""
    model, tokenizer = tiny.model(family)
    config = copy.deepcopy(model.config)
    config.num_labels = len(LABELS)
    torch.manual_seed(1)
    made = transformers.AutoModelForSequenceClassification.from_config(config)
    made.base_model.load_state_dict(model.base_model.state_dict(), strict=family not in POOLED)
    for name, weight in made.named_parameters():  # wider than they are drawn, so that scores differ from text to text
        if "pooler" in name and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    stack = copy.deepcopy(made.base_model) if family in POOLED else model
    return made.eval(), Backbone(stack, tokenizer, name=family)


def quietly(make, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft says to its own users
        return make(*arguments, **options)


def saved(model, config, folder):
    """`model` adapted by peft, trained as it were, and its folder."""
    adapted = shifted(quietly(peft.get_peft_model, model, config)).eval()
    quietly(adapted.save_pretrained, folder)
    return adapted


# Classifiers are held to each other in double precision. In single, the same sums in another order (DoRA's, above all) differ by up
# to 4e-6, which is what language models, whose head fewtune computes in single, are allowed.
ROUNDING = {"atol": 5e-6, "rtol": 5e-6}


def their_scores(model, tokenizer, texts=TEXTS):
    """One row at a time, so that nothing is padded: with vectors in front, transformers' causal classifiers read the padding."""
    model = model.double()
    with torch.no_grad():
        return torch.cat([quietly(model, **tokenizer(text, return_tensors="pt")).logits for text in texts]).float()


def our_scores(model, *, batch_size=1):
    if isinstance(model.readout, Head):
        model.backbone.stack.double()
        for weight in (weight for delta in model.deltas for weight in delta.weights.values()):
            weight.data = weight.data.double()
    return model.raw_scores([Example({"text": text}) for text in TEXTS], batch_size=batch_size)


KINDS = {
    "lora": lambda task: peft.LoraConfig(task_type=task, r=4, lora_alpha=6),
    "rslora": lambda task: peft.LoraConfig(task_type=task, r=4, lora_alpha=6, use_rslora=True),
    "dora": lambda task: peft.LoraConfig(task_type=task, r=3, use_dora=True),
    "all-linear": lambda task: peft.LoraConfig(
        task_type=task, r=2, target_modules="all-linear", exclude_modules=r".*(pooler|cls|lm_head).*"
    ),
    "ia3": lambda task: peft.IA3Config(task_type=task),
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5),
    "prefix-network": lambda task: peft.PrefixTuningConfig(
        task_type=task, num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=16
    ),
    "p-tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=5, encoder_hidden_size=16),
}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_that_peft_trained_gives_its_scores_here(family, kind, tmp_path):
    model, backbone = classifier(family)
    adapted = saved(model, KINDS[kind]("SEQ_CLS"), tmp_path)
    wanted_NC = their_scores(adapted, backbone.tokenizer)
    mine = import_peft(tmp_path, Task(labels=LABELS), backbone=backbone)
    torch.testing.assert_close(our_scores(mine), wanted_NC, **FINE)
    torch.testing.assert_close(our_scores(mine, batch_size=4), wanted_NC, **FINE)  # together, padded to the longest
    assert wanted_NC.std(0).min() > 1e-3


LANGUAGE = {
    **{f"{family} {kind}": (family, "CAUSAL_LM", kind) for family in ("llama", "gpt2") for kind in KINDS},
    **{f"{family} {kind}": (family, None, kind) for family in ("bert", "roberta") for kind in ("lora", "rslora", "dora", "ia3")},
}
WORDS = {"a": ("terrible",), "b": ("great",), "c": ("yes",)}


def slot_logits(adapted, mine, text):
    """The whole model's own logits at the slot, for the words of each label."""
    (row,) = mine.asking.rows([Example({"text": text})], 0)
    with torch.no_grad():
        logits_TV = quietly(adapted, input_ids=torch.tensor([row.ids]), attention_mask=torch.ones(1, len(row.ids))).logits[0]
    place = row.slot - len(row.ids)  # from the end, for vectors may stand in front
    return torch.stack([logits_TV[place, list(tokens)].mean() for tokens in mine.asked.words[0].ids])


@pytest.mark.parametrize("case", list(LANGUAGE))
def test_a_language_model_that_peft_trained_gives_its_logits_here(case, tmp_path):
    family, task, kind = LANGUAGE[case]
    model, tokenizer = tiny.model(family)
    adapted = saved(copy.deepcopy(model), KINDS[kind](task), tmp_path)
    asked = Task(labels=LABELS, templates=("{text} It was {slot}",), words=WORDS)
    mine = import_peft(tmp_path, asked, backbone=Backbone(model, tokenizer, name=family))
    wanted_NC = torch.stack([slot_logits(adapted, mine, text) for text in TEXTS])
    torch.testing.assert_close(our_scores(mine), wanted_NC, **ROUNDING)


# The rest of the families


def attention_names(backbone):
    """The modules of query and value, or the one that is fused, as PEFT would call them in a classifier."""
    sites = [site for name in ("query", "value") for site in backbone.sites(name)]
    return sorted({peft_format.Names(backbone).theirs(site.path) for site in sites})


OTHERS = [family for family in tiny.FAMILIES if family not in FAMILIES]
CLASSIFYING = [family for family in OTHERS if family in CLASSIFIERS or FAMILY_TABLE[family].objective == "causal"]


@pytest.mark.parametrize("family", CLASSIFYING)
def test_every_other_familys_classifier_both_ways(family, tmp_path):
    model, backbone = classifier(family)
    more = ["pooler"] if family == "deberta-v2" else None  # which the PLM does not have
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=attention_names(backbone), modules_to_save=more)
    adapted = saved(model, config, tmp_path / "theirs")
    wanted_NC = their_scores(adapted, backbone.tokenizer)
    mine = import_peft(tmp_path / "theirs", Task(labels=LABELS), backbone=backbone)
    export_peft(mine, tmp_path / "mine")
    torch.testing.assert_close(our_scores(mine), wanted_NC, **FINE)
    assert wanted_NC.std(0).min() > 1e-3
    again = quietly(peft.PeftModel.from_pretrained, classifier(family)[0], tmp_path / "mine").eval()
    torch.testing.assert_close(their_scores(again, backbone.tokenizer), wanted_NC, **FINE)


def bare(family, model):
    """The model without its LM head; of T5 the encoder, which is the stack."""
    if family != "t5":
        return model.base_model
    encoder, _ = tiny.model(family, head=False)
    own = encoder.state_dict()
    encoder.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in own})
    return encoder


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_adapter_of_the_bare_stack_is_found_below_the_language_model(family, tmp_path):
    model, tokenizer = tiny.model(family)
    backbone = Backbone(copy.deepcopy(model).double(), tokenizer, name=family)
    config = peft.LoraConfig(
        task_type="FEATURE_EXTRACTION", r=2, target_modules=[name.split(".", 1)[1] for name in attention_names(backbone)]
    )
    adapted = saved(bare(family, model), config, tmp_path).double()
    ((delta, state),) = peft_read.read(tmp_path, backbone).deltas
    delta.install(backbone, generator=torch.Generator()).load_state_dict(state)
    for weight in (weight for module in backbone.model.modules() if isinstance(module, Bank) for weight in module.held.parameters()):
        weight.data = weight.data.double()
    ids_BT = torch.randint(10, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs_BTD = adapted(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT)).last_hidden_state
        mine_BTD = backbone.forward(ids_BT, torch.ones_like(ids_BT)).hidden_BTD
    torch.testing.assert_close(mine_BTD, theirs_BTD.float(), **FINE)


def test_an_adapter_of_a_decoder_is_refused(tmp_path):
    model, tokenizer = tiny.model("t5")
    saved(model.base_model, peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["q", "v"]), tmp_path)
    with pytest.raises(ArtifactError, match=r"another place: decoder\.block\.0"):
        peft_read.read(tmp_path, Backbone(model, tokenizer, name="t5"))


PATTERNS = {
    "a rank for each kind of place": {"target_modules": ["query", "output.dense"], "rank_pattern": {"query": 5}},
    "an alpha for each kind of place": {"target_modules": ["query", "value"], "alpha_pattern": {"value": 3}},
    "both": {"target_modules": ["query", "value", "key"], "rank_pattern": {"query": 5}, "alpha_pattern": {"key": 3, "query": 1}},
    "the upper layers": {"target_modules": ["query", "value"], "layers_to_transform": [1, 2], "layers_pattern": "layer"},
    "the last layer": {"target_modules": ["dense"], "exclude_modules": ["pooler.dense", "classifier.dense"], "layers_to_transform": 2},
    "a regular expression": {"target_modules": r"roberta\.encoder\.layer\.[12]\.(intermediate|output)\.dense"},
    "whole names": {"target_modules": ["roberta.encoder.layer.2.attention.self.key"]},
}


@pytest.mark.parametrize("case", list(PATTERNS))
def test_patterns_and_layers(case, tmp_path):
    model, backbone = classifier("roberta")
    adapted = saved(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, **PATTERNS[case]), tmp_path / "theirs")
    wanted_NC = their_scores(adapted, backbone.tokenizer)
    mine = import_peft(tmp_path / "theirs", Task(labels=LABELS), backbone=backbone)
    torch.testing.assert_close(our_scores(mine), wanted_NC, **FINE)
    export_peft(import_peft(tmp_path / "theirs", Task(labels=LABELS), backbone=classifier("roberta")[1]), tmp_path / "mine")
    again = quietly(peft.PeftModel.from_pretrained, classifier("roberta")[0], tmp_path / "mine").eval()
    torch.testing.assert_close(their_scores(again, backbone.tokenizer), wanted_NC, **FINE)


def test_a_file_of_pickled_tensors(tmp_path):
    model, backbone = classifier("bert")
    adapted = shifted(quietly(peft.get_peft_model, model, peft.LoraConfig(task_type="SEQ_CLS"))).eval()
    quietly(adapted.save_pretrained, tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").is_file() and not (tmp_path / "adapter_model.safetensors").exists()
    mine = import_peft(tmp_path, Task(labels=LABELS), backbone=backbone)
    torch.testing.assert_close(our_scores(mine), their_scores(adapted, backbone.tokenizer), **FINE)


def test_a_pooler_of_its_own(tmp_path):
    model, backbone = classifier("bert")
    adapted = saved(model, peft.LoraConfig(task_type="SEQ_CLS", modules_to_save=["pooler"]), tmp_path / "theirs")
    wanted_NC = their_scores(adapted, backbone.tokenizer)
    mine = import_peft(tmp_path / "theirs", Task(labels=LABELS), backbone=backbone)
    assert mine.readout == Head(pool="front", layer="tanh")
    torch.testing.assert_close(our_scores(mine), wanted_NC, **FINE)
    export_peft(mine, tmp_path / "mine")
    again = quietly(peft.PeftModel.from_pretrained, classifier("bert")[0], tmp_path / "mine").eval()
    torch.testing.assert_close(their_scores(again, backbone.tokenizer), wanted_NC, **FINE)


def test_the_pooler_of_a_language_model_that_leaves_it_out_is_found_in_its_folder(tmp_path):
    language, tokenizer = tiny.model("bert")
    whole = transformers.BertForPreTraining(language.config)
    whole.bert.load_state_dict(language.bert.state_dict(), strict=False)
    whole.cls.load_state_dict(language.cls.state_dict(), strict=False)
    torch.nn.init.normal_(whole.bert.pooler.dense.weight, std=0.2)
    for part in (whole, tokenizer):
        part.save_pretrained(tmp_path / "plm")

    def fresh():
        torch.manual_seed(3)
        return transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plm", num_labels=3).eval()

    adapted = saved(fresh(), peft.LoraConfig(task_type="SEQ_CLS"), tmp_path / "theirs")
    wanted_NC = their_scores(adapted, tokenizer)
    mine = import_peft(tmp_path / "theirs", Task(labels=LABELS), backbone=str(tmp_path / "plm"))
    assert mine.backbone.has_lm_head and mine.readout == Head(pool="front", layer="tanh")
    torch.testing.assert_close(our_scores(mine), wanted_NC, **FINE)
    export_peft(mine, tmp_path / "mine")
    assert not any("pooler" in key for key in load_file(tmp_path / "mine/adapter_model.safetensors"))
    again = quietly(peft.PeftModel.from_pretrained, fresh(), tmp_path / "mine").eval()
    torch.testing.assert_close(their_scores(again, tokenizer), wanted_NC, **FINE)
    mine.save(tmp_path / "artifact")
    torch.testing.assert_close(our_scores(artifact.load(tmp_path / "artifact")), wanted_NC, **FINE)


# From here to there

FULL = {"bert": ("query", "value"), "roberta": ("query", "value"), "llama": ("query", "value"), "gpt2": ("attention_in",)}
KEYS = {"bert": ("key", "value"), "roberta": ("key", "value"), "llama": ("key", "value"), "gpt2": ("attention_in",)}
HEADS = {
    "bert": Head(pool="front", layer="pooler"),
    "roberta": Head(pool="front", layer="tanh"),
    "llama": Head(pool="last", bias=False),
    "gpt2": Head(bias=False),
}
OURS = {
    "lora": lambda family: [LoRA(rank=3, alpha=5, sites=FULL[family])],
    "rslora": lambda family: [LoRA(rank=3, alpha=5.5, sites=FULL[family], rslora=True)],
    "dora": lambda family: [LoRA(rank=3, sites=FULL[family], dora=True)],
    "top": lambda family: [LoRA(rank=3, sites=FULL[family], top=0.6)],
    "ffn-out": lambda family: [LoRA(rank=2, sites=("ffn_out",))],
    "ranks": lambda family: [LoRA(sites=("ffn_in", "ffn_out"), ranks=(2, 5), top=0.4)],
    "two": lambda family: [LoRA(rank=2, sites=FULL[family]), LoRA(rank=4, alpha=3, sites=("ffn_out", "attention_out"), top=0.4)],
    "ia3": lambda family: [IA3(outputs=KEYS[family])],
    "ia3-top": lambda family: [IA3(outputs=("attention_out",), inputs=("ffn_out",), top=0.5)],
    "prompt": lambda family: [SoftPrompt(length=4)],
    "prefix": lambda family: [Prefix(length=4)],
    "prefix-network": lambda family: [Prefix(length=4, hidden=6)],
}


IN_FRONT = ("prompt", "prefix")


def tuned(backbone, deltas, readout, task):
    """A model of ours whose every weight has moved."""
    generator = torch.Generator().manual_seed(9)
    installed = tuple(delta.install(backbone, generator=generator) for delta in deltas)
    model = TunedModel.assemble(backbone, task, readout, deltas=installed)
    with torch.no_grad():
        for weights in (*(one.weights for one in installed), model.reader.weights):
            for weight in weights.values():
                weight += torch.randn(weight.shape, generator=generator) * 0.2
    return model


@pytest.mark.parametrize("kind", list(OURS))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_ours_gives_its_scores_in_peft(family, kind, tmp_path):
    model, backbone = classifier(family)
    mine = tuned(backbone, OURS[kind](family), HEADS[family], Task(labels=LABELS))
    said = []
    assert export_peft(mine, tmp_path / "out", say=said.append) == tmp_path / "out"
    adapted = quietly(peft.PeftModel.from_pretrained, model, tmp_path / "out").eval()
    wanted_NC = our_scores(mine)
    torch.testing.assert_close(their_scores(adapted, backbone.tokenizer), wanted_NC, **FINE)
    assert wanted_NC.std(0).min() > 1e-3
    assert said[0] == "Labels, in the order of the scores: a, b, c."
    # Back here, it is the same model.
    fresh = classifier(family)[1]
    again = import_peft(tmp_path / "out", Task(labels=LABELS), backbone=fresh)
    torch.testing.assert_close(our_scores(again), wanted_NC, **FINE)


# PEFT puts nothing in front of a masked language model.
SPOKEN = [
    (family, kind)
    for family in FAMILIES
    for kind in ("lora", "dora", "ia3", *IN_FRONT)
    if family in ("llama", "gpt2") or kind not in IN_FRONT
]


@pytest.mark.parametrize(("family", "kind"), SPOKEN)
def test_a_language_model_of_ours_gives_its_logits_in_peft(family, kind, tmp_path):
    model, tokenizer = tiny.model(family)
    asked = Task(labels=LABELS, templates=("{text} It was {slot}",), words=WORDS)
    mine = tuned(Backbone(copy.deepcopy(model), tokenizer, name=family), OURS[kind](family), Cloze(), asked)
    export_peft(mine, tmp_path / "out")
    adapted = quietly(peft.PeftModel.from_pretrained, model, tmp_path / "out").eval()
    wanted_NC = torch.stack([slot_logits(adapted, mine, text) for text in TEXTS])
    torch.testing.assert_close(our_scores(mine), wanted_NC, **ROUNDING)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prompt", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_saves_again_is_what_we_wrote(family, kind, tmp_path):
    model, backbone = classifier(family)
    export_peft(tuned(backbone, OURS[kind](family), HEADS[family], Task(labels=LABELS)), tmp_path / "ours")
    quietly(quietly(peft.PeftModel.from_pretrained, model, tmp_path / "ours").save_pretrained, tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    mine, other = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    assert mine.keys() <= other.keys() and list(mine) == sorted(mine)
    for key in mine.keys() - {"modules_to_save", "target_modules", "feedforward_modules"}:
        assert mine[key] == other[key], key
    for key in ("modules_to_save", "target_modules", "feedforward_modules"):
        assert set(mine.get(key) or ()) == set(other.get(key) or ())


def test_endings_are_written_where_they_mean_these_modules_and_no_other(tmp_path):
    written = {}
    for name, delta in {
        "query and value": LoRA(rank=1),
        "their upper share": LoRA(rank=1, top=0.6),
        "ffn_in": LoRA(rank=1, sites=("ffn_in",)),
        "both outputs": LoRA(rank=1, sites=("attention_out", "ffn_out")),
        "one of them": LoRA(rank=1, sites=("ffn_out",), top=0.4),
    }.items():
        mine = tuned(classifier("bert")[1], [delta], HEADS["bert"], Task(labels=LABELS))
        config = json.loads((export_peft(mine, tmp_path / name) / "adapter_config.json").read_text())
        written[name] = (config["target_modules"], config["layers_to_transform"])
    assert written == {
        "query and value": (["query", "value"], None),
        "their upper share": (["query", "value"], [1, 2]),
        "ffn_in": (["intermediate.dense"], None),
        "both outputs": (["output.dense"], None),
        "one of them": (["bert.encoder.layer.2.output.dense"], None),  # the ending "output.dense" would mean attention's, too
    }


NAMES = ("h.1.attn.c_attn", "x.h.1.attn.c_attn", "x.h.12.attn.c_attn", "x.layers.3.experts.0.w", "layers.3.mlp.up_proj", "score", "x.score")
MEANT = (
    {"target_modules": ["c_attn", "w", "score"]},
    {"target_modules": ["attn", "h.1.attn.c_attn", "mlp.up_proj"]},
    {"target_modules": ["c_attn", "w", "up_proj", "score"], "layers_to_transform": [1, 3]},
    {"target_modules": ["c_attn", "w", "up_proj", "score"], "layers_to_transform": 3, "layers_pattern": "layers"},
    {"target_modules": ["c_attn", "w", "up_proj"], "layers_to_transform": [12], "layers_pattern": ["layers", "h"]},
    {"target_modules": ["x.h.1.attn.c_attn", "w"], "layers_to_transform": [0]},
    {"target_modules": r".*\.(c_attn|w)"},
    {"target_modules": ["c_attn", "score", "w"], "exclude_modules": ["x.score", "attn.c_attn"]},
    {"target_modules": r".*", "exclude_modules": r"x\..*"},
)


@pytest.mark.parametrize("config", MEANT)
def test_the_modules_that_a_config_means_are_those_that_peft_takes(config):
    theirs = peft.LoraConfig(**config)
    taken = [bool(peft.tuners.tuners_utils.check_target_module_exists(theirs, name)) for name in NAMES]
    assert [peft_format.targets(name, config) for name in NAMES] == taken
