"""What a PEFT folder may not be, and what cannot become one: each is refused with what and why. Folders are written by fewtune."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewtune.backbone import pooler, tiny
from fewtune.backbone.backbone import Backbone
from fewtune.backbone.bank import Bank
from fewtune.data.example import Example
from fewtune.deltas import peft_format, peft_write
from fewtune.deltas.adapter import Adapter
from fewtune.deltas.lora import LoRA
from fewtune.deltas.prefix import Prefix
from fewtune.deltas.scaling import IA3
from fewtune.deltas.soft_prompt import SoftPrompt
from fewtune.deltas.subset import Subset
from fewtune.errors import ArtifactError, TaskError
from fewtune.exchange import export_peft, import_peft
from fewtune.model import TunedModel
from fewtune.readout import classifiers
from fewtune.readout.calibration import Calibrator
from fewtune.readout.cloze import Cloze
from fewtune.readout.head import Head
from fewtune.tasks.task import Task

TASK = Task(labels=("a", "b"))
HEADS = {"bert": Head(pool="front", layer="pooler"), "roberta": Head(pool="front", layer="tanh"), "llama": Head(bias=False)}
HEADS["distilbert"] = Head(pool="front", layer="relu")
HEADS["gpt2"] = HEADS["llama"]


def backbone_of(family):
    """With a pooler, where the family's classifier reads through one."""
    model, tokenizer = tiny.model(family)
    if family == "bert":
        model.bert.pooler = type(model.bert)(model.config).pooler
        torch.nn.init.normal_(model.bert.pooler.dense.weight, std=0.2, generator=torch.Generator().manual_seed(0))
        model = model.bert
    return Backbone(model, tokenizer, name=family)


def model_of(family, *deltas, readout=None, task=TASK):
    backbone, generator = backbone_of(family), torch.Generator().manual_seed(1)
    installed = tuple(delta.install(backbone, generator=generator) for delta in deltas)
    model = TunedModel.assemble(backbone, task, readout or HEADS[family], deltas=installed)
    with torch.no_grad():
        for weight in (weight for held in (*installed, model.reader) for weight in held.weights.values()):
            weight += torch.randn(weight.shape, generator=generator) * 0.1
    return model


def folder_of(path, family="roberta", *deltas):
    return export_peft(model_of(family, *(deltas or (LoRA(rank=2),))), path / "adapter")


def changed(folder, **values):
    """The config with other values; `None` takes a key away."""
    file = folder / peft_format.CONFIG
    config = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def retensored(folder, change):
    file = folder / peft_format.WEIGHTS
    save_file({key: tensor.contiguous() for key, tensor in change(load_file(file)).items()}, file)


def refusal(folder, family="roberta", task=TASK, kind=ArtifactError):
    backbone = backbone_of(family)
    before = dict(backbone.model.named_modules())
    with pytest.raises(kind) as caught:
        import_peft(folder, task, backbone=backbone)
    assert dict(backbone.model.named_modules()) == before and not any(isinstance(module, Bank) for module in before.values())
    return str(caught.value)


# Configs


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "ADALORA"}, "peft_type ADALORA. These can be read: LORA, IA3"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "peft_type MULTITASK_PROMPT_TUNING"),
        ({"bias": "all"}, "expected bias none, got bias all"),
        ({"bias": "lora_only"}, "expected bias none, got bias lora_only"),
        ({"task_type": "TOKEN_CLS"}, "task_type TOKEN_CLS"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type SEQ_2_SEQ_LM"),
        ({"init_lora_weights": "pissa"}, "a start by pissa"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "a start by olora"),
        ({"use_qalora": True}, "expected no use_qalora, got true"),
        ({"lora_bias": True}, "expected no lora_bias, got true"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "expected no layer_replication"),
        ({"trainable_token_indices": [1]}, "expected no trainable_token_indices"),
        ({"target_parameters": ["experts.weight"]}, "expected no target_parameters"),
        ({"alora_invocation_tokens": [1]}, "expected no alora_invocation_tokens"),
        ({"of_the_future": {"depth": 2}}, 'expected no of_the_future, got {"depth": 2}'),
        ({"r": 3}, "expected rank 3 at"),
        ({"rank_pattern": {"query": 4}}, "expected rank 4 at"),
        ({"use_dora": True}, "expected lora_A and lora_B and magnitude"),
        ({"alpha_pattern": {"layer.2.attention.self.query": 1}}, "expected one rank and α for all of query"),
        ({"target_modules": ["query"]}, "weights for the target_modules only, got some for"),
        ({"target_modules": ["query", "value", "key"]}, "weights for each of the target_modules, got none for"),
        ({"layers_to_transform": [1, 2]}, "weights for the target_modules only"),
        ({"exclude_modules": ["value"]}, "weights for the target_modules only"),
        ({"target_modules": "(query"}, "expected a sound config"),
        ({"lora_alpha": "much"}, "expected a sound config"),
        ({"auto_mapping": {"base_model_class": "RobertaForTokenClassification"}}, "the head of a RobertaForTokenClassification"),
    ],
)
def test_settings_that_cannot_be_had(tmp_path, values, said):
    folder = folder_of(tmp_path)
    changed(folder, **values)
    assert said in refusal(folder)


def test_settings_that_say_nothing_are_no_matter(tmp_path):
    folder = folder_of(tmp_path)
    changed(folder, use_qalora=False, lora_bias=False, of_the_future={}, merge_weights=False, init_lora_weights="gaussian")
    assert import_peft(folder, TASK, backbone=backbone_of("roberta")).deltas


def test_adapterhub_folders_are_recognised(tmp_path):
    config = {"config": {"reduction_factor": 16}, "hidden_size": 768, "model_type": "bert", "name": "sst-2", "version": "1.2.0"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "an AdapterHub folder" in refusal(tmp_path)
    for name in ("head_config.json", "adapter_fusion_config.json"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_text("{}")
        assert "an AdapterHub folder" in refusal(tmp_path / "other")
        (tmp_path / "other" / name).unlink()


def test_folders_that_are_none(tmp_path):
    assert "no adapter_config.json" in refusal(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{")
    assert "a readable config" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    assert "peft_type" in refusal(tmp_path)


def test_a_folder_of_several_adapters_names_them(tmp_path):
    for name in ("first", "second"):
        (tmp_path / "all" / name).mkdir(parents=True)
        folder_of(tmp_path / "all" / name).rename(tmp_path / "all" / f"{name}-adapter")
        (tmp_path / "all" / name).rmdir()
    said = refusal(tmp_path / "all")
    assert "first-adapter" in said and "second-adapter" in said


# Weights

PATH = "base_model.model.roberta.encoder.layer"


def renamed(old, new):
    return lambda state: {key.replace(old, new): tensor for key, tensor in state.items()}


def without(part):
    return lambda state: {key: tensor for key, tensor in state.items() if part not in key}


def added(key, *shape):
    return lambda state: {**state, key: torch.zeros(*shape)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("layer.1.attention.self.query.lora_B"), "expected lora_A and lora_B at"),
        (without("layer.0."), "weights for each of the target_modules, got none for roberta.encoder.layer.0"),
        (without("lora_"), "expected weights of an adapter, got none"),
        (without("out_proj.weight"), "expected classifier.out_proj.weight, got none"),
        (without("out_proj.bias"), "expected classifier.out_proj.bias, got none"),
        (without("classifier.dense"), "It was drawn at random and not saved"),
        (without("classifier.dense.bias"), "expected classifier.dense.bias, got none"),
        (added("base_model.model.roberta.embeddings.word_embeddings.lora_embedding_A", 2, 9), "an update of the embeddings"),
        (added(f"{PATH}.0.attention.self.query.lora_B.bias", 32), "a bias beside B"),
        (added(f"{PATH}.0.attention.self.query.base_layer.bias", 32), "a weight of the base model"),
        (added("base_model.model.roberta.embeddings.word_embeddings.weight", 9, 32), "expected a classifier beside the adapter"),
        (added("base_model.model.lm_head.weight", 9, 32), "got lm_head.weight"),
        (added(f"{PATH}.0.attention.self.query.lora_magnitude_vector", 32), "expected lora_A and lora_B at"),
        (renamed("attention.self.value", "attention.self.worth"), "weights for each of the target_modules"),
    ],
)
def test_tensors_that_do_not_belong(tmp_path, change, said):
    folder = folder_of(tmp_path)
    retensored(folder, change)
    assert said in refusal(folder)


def test_tensors_of_another_shape(tmp_path):
    folder = folder_of(tmp_path)
    retensored(folder, lambda state: {key: tensor[:, :-1] if "lora_A" in key else tensor for key, tensor in state.items()})
    assert "of shape (2, 32), got shape (2, 31)" in refusal(folder).replace("expected", "")
    folder = folder_of(tmp_path / "heads")
    retensored(folder, lambda state: {key: tensor[:-1] if "classifier.dense.weight" in key else tensor for key, tensor in state.items()})
    assert '"dense.weight" of shape (32, 32)' in refusal(folder)


def test_a_place_that_is_no_whole_site(tmp_path):
    folder = folder_of(tmp_path, "llama", LoRA(rank=2, sites=("ffn_in",)))
    changed(folder, target_modules=["up_proj"])
    retensored(folder, without("gate_proj"))
    assert "a part of one, or another place: model.layers.0.mlp.up_proj" in refusal(folder, "llama")


@pytest.mark.parametrize("left_out", [2, 1])
def test_layers_that_are_not_the_top(tmp_path, left_out):
    folder = folder_of(tmp_path)
    layers = [layer for layer in range(3) if layer != left_out]
    changed(folder, layers_to_transform=layers, layers_pattern="layer")
    retensored(folder, without(f"layer.{left_out}."))
    assert f"expected the top of the stack, got blocks {layers[0]}, {layers[1]}" in refusal(folder)


def test_files_that_are_no_tensors(tmp_path):
    folder = folder_of(tmp_path)
    (folder / peft_format.WEIGHTS).write_bytes((folder / peft_format.WEIGHTS).read_bytes()[:-9])
    assert "expected a safetensors file" in refusal(folder)
    (folder / peft_format.WEIGHTS).unlink()
    assert "expected adapter_model.safetensors or adapter_model.bin, got neither" in refusal(folder)
    (folder / peft_format.PICKLED).write_bytes(b"nothing")
    assert "expected a file of tensors" in refusal(folder)
    torch.save([1, 2], folder / peft_format.PICKLED)
    assert "expected a file of tensors" in refusal(folder)


class Evil:
    def __reduce__(self):
        return print, ("code that a file brings along",)


def test_a_pickle_with_code_is_not_run(tmp_path, capsys):
    folder = folder_of(tmp_path)
    (folder / peft_format.WEIGHTS).unlink()
    torch.save({"tensor": Evil()}, folder / peft_format.PICKLED)
    assert "Save the adapter again as safetensors" in refusal(folder)
    assert capsys.readouterr().out == ""


def test_factors_that_go_the_other_way(tmp_path):
    folder = folder_of(tmp_path, "roberta", IA3())
    changed(folder, feedforward_modules=["output.dense", "value"])
    assert "expected factors of shape (1, 32) at roberta.encoder.layer.0.attention.self.value" in refusal(folder)


def test_vectors_that_are_not_what_the_config_says(tmp_path):
    folder = folder_of(tmp_path, "roberta", SoftPrompt(length=3))
    changed(folder, num_virtual_tokens=4)
    assert "expected prompt_embeddings of 4 positions, got shape (3, 32)" in refusal(folder)
    changed(folder, num_virtual_tokens=3, num_transformer_submodules=2)
    assert "expected one stack" in refusal(folder)
    prefix = folder_of(tmp_path / "prefix", "roberta", Prefix(length=3))
    changed(prefix, token_dim=16)
    assert "keys and values of 16 numbers for 3 blocks, got 192 numbers" in refusal(prefix)


# Heads and labels


def test_labels_are_counted(tmp_path):
    said = refusal(folder_of(tmp_path), task=Task(labels=("a", "b", "c")), kind=TaskError)
    assert "expected 2 labels, one for each row of the classifier, got 3" in said


def test_a_language_models_adapter_asks_for_its_template(tmp_path):
    task = Task(labels=("a", "b"), templates=("{text} It was {slot}",), words={"a": ("terrible",), "b": ("great",)})
    folder = export_peft(model_of("llama", LoRA(), readout=Cloze(), task=task), tmp_path / "adapter")
    assert "expected a template, got none" in refusal(folder, "llama", kind=TaskError)


def test_a_pooler_that_is_nowhere_to_be_had(tmp_path):
    folder = folder_of(tmp_path, "bert")
    model, tokenizer = tiny.model("bert")  # with an LM head, made in memory
    backbone = Backbone(model, tokenizer, name="bert")
    assert pooler.of(backbone) is None
    with pytest.raises(ArtifactError, match="expected the PLM's pooler, got none"):
        import_peft(folder, TASK, backbone=backbone)


def test_a_pooler_that_was_drawn_when_the_folder_was_loaded_is_none(tmp_path):
    model, tokenizer = tiny.model("bert")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    assert pooler.stored(str(tmp_path)) is None and pooler.stored(str(tmp_path / "nowhere")) is None


def test_a_family_without_a_known_classifier():
    with pytest.raises(ArtifactError, match='expected a family whose classifier fewtune knows, got "t5"'):
        classifiers.read({"classification_head.dense.weight": torch.zeros(3, 3)}, backbone_of("t5"), where="adapter")


def test_tensors_of_half_the_size_are_read(tmp_path):
    folder = folder_of(tmp_path)
    wanted = import_peft(folder, TASK, backbone=backbone_of("roberta")).predict(["great fun"])[0].probabilities
    retensored(folder, lambda state: {key: tensor.bfloat16() for key, tensor in state.items()})
    model = import_peft(folder, TASK, backbone=backbone_of("roberta"))
    assert all(weight.dtype == torch.float32 for held in (*model.deltas, model.reader) for weight in held.weights.values())
    assert model.predict(["great fun"])[0].probabilities == pytest.approx(wanted, abs=0.01)


# From here to there


@pytest.mark.parametrize(
    ("family", "deltas", "said"),
    [
        ("roberta", (Adapter(),), "deltas of one kind that PEFT has, got Adapter"),
        ("roberta", (Subset("norms"),), "got Subset. PEFT can hold one of: LoRA, IA3, SoftPrompt, Prefix"),
        ("roberta", (LoRA(), IA3()), "got IA3 and LoRA"),
        ("roberta", (), "got none"),
        ("gpt2", (LoRA(),), "a slice of transformer.h.0.attn.c_attn (query)"),
        ("gpt2", (IA3(),), "a slice of transformer.h.0.attn.c_attn (key)"),
        ("roberta", (LoRA(), LoRA(sites=("value",))), "several for roberta.encoder.layer.0.attention.self.value"),
        ("roberta", (IA3(outputs=("ffn_out",)),), "several for roberta.encoder.layer.0.output.dense"),
        ("roberta", (LoRA(), LoRA(sites=("key",), dora=True)), "low-rank updates of one make"),
        ("roberta", (SoftPrompt(length=2), SoftPrompt(length=3)), "expected one soft prompt, got 2"),
        ("roberta", (Prefix(length=2, zero=True),), "one with gates"),
        ("roberta", (Prefix(length=2, top=0.4),), "one with top=0.4"),
    ],
)
def test_deltas_that_peft_cannot_hold(tmp_path, family, deltas, said):
    with pytest.raises(ArtifactError) as caught:
        export_peft(model_of(family, *deltas), tmp_path / "adapter")
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "head", "said"),
    [
        ("bert", Head(), "pool=front,layer=pooler,bias=true, got pool=auto"),
        ("bert", Head(pool="mean"), "got pool=mean"),
        ("bert", Head(pool="first"), "got layer=none"),
        ("roberta", Head(pool="first", layer="gelu"), "got layer=gelu"),
        ("roberta", Head(pool="front", layer="tanh", bias=False), "got bias=false"),
        ("llama", Head(), "got bias=true. Train with --readout head:pool=last,layer=none,bias=false"),
        ("llama", Head(pool="mean", bias=False), "got pool=mean"),
    ],
)
def test_heads_that_the_familys_classifier_is_not(tmp_path, family, head, said):
    with pytest.raises(ArtifactError) as caught:
        export_peft(model_of(family, LoRA(), readout=head), tmp_path / "adapter")
    assert said in str(caught.value)


def test_the_first_token_is_not_the_first_position_behind_a_soft_prompt(tmp_path):
    first = Head(pool="first", layer="tanh")
    assert export_peft(model_of("roberta", LoRA(), readout=first), tmp_path / "lora").is_dir()
    with pytest.raises(ArtifactError, match="got pool=first"):
        export_peft(model_of("roberta", SoftPrompt(length=2), readout=first), tmp_path / "prompt")


def test_a_prompt_in_front_of_a_masked_language_model_would_be_left_out(tmp_path):
    with pytest.raises(ArtifactError, match="PROMPT_TUNING for a masked language model"):
        export_peft(model_of("roberta", SoftPrompt(length=2), readout=Cloze()), tmp_path / "prompt")


def test_what_stands_beside_the_weights_is_said(tmp_path):
    task = Task(labels=("bad", "good"), templates=("{text} It was {slot}",), words={"bad": ("terrible",), "good": ("great", "joy")})
    model = model_of("llama", LoRA(), readout=Cloze(), task=task)
    said = []
    export_peft(model.calibrated(Calibrator((0.1, -0.1))), tmp_path / "adapter", say=said.append)
    assert said[0] == "Labels, in the order of the scores: bad, good."
    assert said[1] == "Not in the folder: the template '{text} It was {slot}'."
    assert said[2].startswith("Not in the folder: the label words bad=' ") and "good=' great'" in said[2]
    assert said[3] == "Not in the folder: the calibration; scores are those before it."


def test_a_folder_is_written_whole_and_the_same_bytes_each_time(tmp_path):
    once, again = (folder_of(tmp_path / name) for name in ("once", "again"))
    assert [path.name for path in sorted(once.iterdir())] == ["adapter_config.json", "adapter_model.safetensors"]
    for path in once.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    config = (once / "adapter_config.json").read_text()
    assert list(json.loads(config)) == sorted(json.loads(config)) and config.endswith("}\n")
    with pytest.raises(ArtifactError, match="a folder that is not there yet"):
        folder_of(tmp_path / "once")
    model = model_of("roberta", LoRA(rank=3))
    assert json.loads((export_peft(model, once, overwrite=True) / "adapter_config.json").read_text())["r"] == 3
    assert sorted(path.name for path in (tmp_path / "once").iterdir()) == ["adapter"]
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("")
    with pytest.raises(ArtifactError):
        export_peft(model, stranger, overwrite=True)


# Going on


@pytest.mark.parametrize("delta", [LoRA(rank=2), LoRA(rank=2, dora=True), IA3(), SoftPrompt(length=3), Prefix(length=3)])
@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_an_imported_model_can_be_trained_on_and_taken_out(tmp_path, family, delta):
    folder = folder_of(tmp_path, family, delta)
    model = import_peft(folder, TASK, backbone=backbone_of(family))
    weights = [weight for held in (*model.deltas, model.reader) for weight in held.weights.values()]
    before = [weight.detach().clone() for weight in weights]
    examples = [Example({"text": "great fun and a joy"}), Example({"text": "a dull, lifeless mess"})]
    batch = model.asking.collate(model.asking.rows(examples, 0), 0)
    aims_B = torch.tensor([1, 0])
    optimizer = torch.optim.SGD(weights, lr=1e-3)
    loss = torch.nn.functional.cross_entropy(model.batch_scores(batch), aims_B)
    loss.backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, weights, strict=True))
    assert all(weight.grad is None for weight in backbone_frozen(model))
    with torch.no_grad():
        assert torch.nn.functional.cross_entropy(model.batch_scores(batch), aims_B) < loss
    model.remove()
    assert not any(isinstance(module, Bank) for module in model.backbone.model.modules())


def backbone_frozen(model):
    own = {id(weight) for held in model.deltas for weight in held.weights.values()}
    return [weight for weight in model.backbone.model.parameters() if id(weight) not in own]


# Names


@pytest.mark.parametrize(
    ("name", "config", "meant"),
    [
        ("h.1.attn.c_attn", {"target_modules": ["c_attn"]}, True),
        ("h.1.attn.c_attn", {"target_modules": ["attn"]}, False),
        ("h.1.attn.c_attn", {"target_modules": ["_attn"]}, False),
        ("h.1.attn.c_attn", {"target_modules": "c_attn"}, False),
        ("h.1.attn.c_attn", {"target_modules": r".*\.c_attn"}, True),
        ("h.1.attn.c_attn", {"target_modules": "all-linear"}, True),
        ("h.1.attn.c_attn", {"target_modules": ["c_attn"], "exclude_modules": r"h\.1\..*"}, False),
        ("x.h.1.attn.c_attn", {"target_modules": ["c_attn"], "layers_to_transform": [1]}, True),
        ("x.h.1.attn.c_attn", {"target_modules": ["c_attn"], "layers_to_transform": 2}, False),
        ("x.h.12.attn.c_attn", {"target_modules": ["c_attn"], "layers_to_transform": [1, 2]}, False),
        ("x.h.1.attn.c_attn", {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": ["block"]}, False),
        ("x.h.1.attn.c_attn", {"target_modules": ["x.h.1.attn.c_attn"], "layers_to_transform": [7]}, True),
        ("x.score", {"target_modules": ["score"], "layers_to_transform": [0]}, False),
    ],
)
def test_which_modules_are_meant(name, config, meant):
    assert peft_format.targets(name, config) is meant


def test_rescaling_of_inputs_looks_at_the_letters_of_the_ending():
    assert peft_format.fed_forward("layer.0.attention.output.dense", ["output.dense"])
    assert peft_format.fed_forward("layer.0.my_output.dense", ["output.dense"])
    assert not peft_format.fed_forward("layer.0.output.dense", r".*attention\.output\.dense")


def test_files_are_named_as_peft_names_them():
    files = peft_write.write(model_of("roberta", LoRA()).deltas, backbone_of("roberta"), peft_write.Saved({}))
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors"}
