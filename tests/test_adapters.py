"""Adapters of every key layout match tensor by tensor, or are refused with the counts."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_policy import logps
from tiny import FAMILIES, processor_of, tiny_folder, tiny_policy

from medgrpo.adapters import base_of, public_name, read_adapter
from medgrpo.policy import Policy, check_quantised
from medgrpo.types import SettingsError

LAYERS = range(3)
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]

# Published module names of each version of transformers: language model, vision tower.
LAYOUTS = {
    "4.51": ("model.layers", "visual.blocks"),
    "4.52 to 5": ("model.language_model.layers", "model.visual.blocks"),
}
VISION = {
    "qwen2_vl": ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    "qwen2_5_vl": ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "qwen3_vl": ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"),
}


def module_names(family, layout):
    language, vision = LAYOUTS[layout]
    names = [f"{language}.{i}.{name}" for i in LAYERS for name in ATTENTION + MLP]
    return names, [f"{vision}.{i}.{name}" for i in range(2) for name in VISION[family]]


def targets(family, layout, how):
    names, vision = module_names(family, layout)
    language, tower = (re.escape(name) for name in LAYOUTS[layout])
    return {
        "suffixes": sorted({name.rsplit(".", 1)[1] for name in names + vision}),
        "full names": names + vision,
        "regex": rf"(?:{language}\.\d+\.\w+\.\w+_proj|{tower}\.\d+\.(?:attn\.\w+|mlp\.\w*(?:fc|proj)\w*))",
    }[how]


def write_adapter(folder, family, layout, how="suffixes", **config):
    """As that version of transformers and PEFT wrote it; returns the tensors under today's module names."""
    generator = torch.Generator().manual_seed(0)
    network = tiny_policy(family, use_peft=False).network
    today = [name for names in module_names(family, "4.52 to 5") for name in names]
    then = [name for names in module_names(family, layout) for name in names]
    file, expected = {}, {}
    for new, old in zip(today, then, strict=True):
        layer = network.get_submodule(new)
        for part, shape in (("lora_A", (4, layer.in_features)), ("lora_B", (layer.out_features, 4))):
            tensor = torch.randn(shape, generator=generator) / 10
            file[f"base_model.model.{old}.{part}.weight"] = expected[f"{new}.{part}"] = tensor
    folder.mkdir(exist_ok=True)
    save_file(file, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    # Suffixes would match these as well.
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": targets(family, layout, how)}
    about |= {
        "exclude_modules": r".*(patch_embed|merger).*",
        "base_model_name_or_path": f"owner/{family}",
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return expected


def load(family, folder, **options):
    policy = Policy(tiny_folder(family), adapter=str(folder), freeze_vision=False, **options)
    policy.load(with_reference=False)
    return policy


@pytest.mark.parametrize("how", ["suffixes", "full names", "regex"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_every_layout_is_loaded(family, layout, how, tmp_path, caplog):
    expected = write_adapter(tmp_path / "adapter", family, layout, how)
    with caplog.at_level("INFO"):
        policy = load(family, tmp_path / "adapter")
    assert f"{len(expected)} of {len(expected)} LoRA tensors matched" in caplog.text
    loaded = {name: p for name, p in policy.network.named_parameters() if "lora_" in name}
    assert len(loaded) == len(expected) == 2 * (3 * 7 + 2 * len(VISION[family]))
    for name, tensor in expected.items():
        assert torch.equal(loaded[f"{name}.default.weight"], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_the_layout_and_survive_saving(family, tmp_path):
    """Patterns of ranks and scales are those of the layer, whatever it is called."""
    said = []
    for layout, (language, _) in LAYOUTS.items():
        folder = tmp_path / layout.replace(" ", "_")
        patterns = {"alpha_pattern": {f"{language}.1.self_attn.q_proj": 40}}
        write_adapter(folder, family, layout, "full names", **patterns)
        policy = load(family, folder)
        said.append(logps(policy.network, policy.suppressed_ids(), family))
        policy.save(tmp_path / "again", processor_of(family))
        again = load(family, tmp_path / "again")
        said.append(logps(again.network, policy.suppressed_ids(), family))
    write_adapter(tmp_path / "other", family, "4.51", "full names")
    other = load(family, tmp_path / "other")
    assert all(torch.equal(said[0], one) for one in said[1:])
    assert not torch.allclose(said[0], logps(other.network, other.suppressed_ids(), family), atol=1e-5)


def test_a_whole_layer_pattern_and_all_linear_are_understood(tmp_path):
    expected = write_adapter(tmp_path / "a", "qwen2_vl", "4.51", layers_to_transform=[0, 1])
    with pytest.raises(SettingsError, match=r"\d+ of \d+ LoRA tensors matched; 0 are missing, 14 in the file"):
        load("qwen2_vl", tmp_path / "a")
    merger = r"visual\.merger.*"
    write_adapter(tmp_path / "a", "qwen2_vl", "4.51", target_modules="all-linear", exclude_modules=merger)
    assert sum("lora_" in name for name, _ in load("qwen2_vl", tmp_path / "a").named_parameters()) == len(expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapted_output_layer_is_loaded_and_its_saved_base_weight_must_be_the_base(layout, tmp_path):
    """PEFT saves ``lm_head.base_layer`` too when the output layer is adapted."""
    network = tiny_policy("qwen2_vl", use_peft=False).network
    plain = get_peft_model(network, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], rank_pattern={"lm_head": 2}))
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    if layout == "4.51":
        state = {key.replace("model.language_model.", "model."): tensor for key, tensor in state.items()}
        save_file(state, file)
    assert "base_model.model.lm_head.base_layer.weight" in state
    policy = load("qwen2_vl", tmp_path)
    suppressed = policy.suppressed_ids()
    assert torch.equal(logps(policy.network, suppressed, "qwen2_vl"), logps(network, suppressed, "qwen2_vl"))
    state["base_model.model.lm_head.base_layer.weight"][0] += 1
    save_file(state, file)
    with pytest.raises(SettingsError, match=r"8 of 8 .* 1 in the file match nothing, .*base_layer.*merge it into its"):
        load("qwen2_vl", tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"r": "x"}, "r is 'x'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"rank_pattern": None}, "rank_pattern is None"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"auto_mapping": "x"}, "auto_mapping is 'x'"),
        ({"base_model_name_or_path": 1}, "base_model_name_or_path is 1"),
        ({"target_modules": "("}, r"asks for what cannot be: missing \)"),
        ({"target_modules": [[1]]}, "asks for what cannot be: unhashable"),
        ({"alpha_pattern": {"(": 1}}, r"asks for what cannot be: missing \)"),
        ({"alpha_pattern": {"q_proj": "x"}}, "expected a number as rank or alpha, got 'x'"),
        ({"rank_pattern": {"q_proj": "x"}}, "expected a number as rank or alpha, got 'x'"),
        ({"target_modules": "x", "layers_to_transform": [0]}, "asks for what cannot be: `layers_to_transform`"),
    ],
)
def test_a_malformed_configuration_is_one_clear_error(wrong, message, tmp_path):
    write_adapter(tmp_path / "a", "qwen2_vl", "4.51", **wrong)
    with pytest.raises(SettingsError, match=message):
        load("qwen2_vl", tmp_path / "a")


@pytest.mark.parametrize(
    "about",
    [
        {"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"},
        {"base_model_name_or_path": "/data/qwen2_5-vl-7b"},
        {"auto_mapping": {"base_model_class": "FSDPQwen2_5_VLForConditionalGeneration"}},
    ],
)
def test_an_adapter_of_another_family_is_refused_though_it_would_fit(about, tmp_path):
    write_adapter(tmp_path / "a", "qwen2_vl", "4.51", **about)
    with pytest.raises(SettingsError, match=r"was trained on a .*2.5.*and qwen2_vl is a Qwen2VLForConditionalGen"):
        load("qwen2_vl", tmp_path / "a")


def without(state, part):
    return {key: value for key, value in state.items() if part not in key}


WRONG = {
    "layers": (lambda s: without(s, "layers.2."), r"44 of 58 .*14 are missing, 0 in the file .*layers\.2"),
    "more layers": (
        lambda s: s | {key.replace("layers.2.", "layers.3."): value.clone() for key, value in s.items()},
        r"58 of 58 .*0 are missing, 14 in the file match nothing.*layers\.3.* is in the file",
    ),
    "rank": (
        lambda s: {k: (v[:2] if "lora_A" in k else v[:, :2]).contiguous() for k, v in s.items()},
        r"0 of 58 .*58 have another shape, e\.g\. .* is \[2, \d+\] and should be \[4, \d+\]",
    ),
    "base": (
        lambda s: {k: torch.cat([v, v], -1) for k, v in s.items() if "lora_A" in k},
        r"29 are missing.*29 have ano",
    ),
    "nothing": (lambda s: {"x": torch.ones(1)}, r"0 of 58 .*58 are missing, 1 in the file"),
    "nan": (lambda s: {k: v * float("nan") for k, v in s.items()}, r"58 tensors are not finite"),
    "dora": (
        lambda s: s | {"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.ones(256)},
        r"58 of 58 .*1 in the file match nothing, .*lora_magnitude_vector is in the file",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_adapter_is_refused_with_the_counts(wrong, tmp_path):
    change, message = WRONG[wrong]
    write_adapter(tmp_path / "a", "qwen2_5_vl", "4.51")
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(
        SettingsError, match=message.replace("58", str(2 * (21 + 10))).replace("44", "48").replace("29", "31")
    ):
        load("qwen2_5_vl", tmp_path / "a")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modules_to_save": ["visual.merger"]}, r"modules_to_save=\['visual.merger'\] is not supported.*merge it"),
        ({"bias": "lora_only"}, "bias='lora_only' is not supported"),
        ({"use_dora": True}, "use_dora=True"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"init_lora_weights": "pissa"}, "'pissa' changes the base model"),
        ({"peft_type": "IA3"}, "expected peft_type LORA, got 'IA3'"),
        ({"target_modules": None}, "no target_modules"),
    ],
)
def test_more_than_lora_is_refused(config, message, tmp_path):
    write_adapter(tmp_path / "a", "qwen2_vl", "4.51", **config)
    with pytest.raises(SettingsError, match=message):
        read_adapter(str(tmp_path / "a"))


def test_only_safetensors_are_read(tmp_path):
    write_adapter(tmp_path / "a", "qwen2_vl", "4.51")
    file = tmp_path / "a" / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(SettingsError, match="damaged"):
        read_adapter(str(tmp_path / "a"))
    file.unlink()
    torch.save({}, tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(SettingsError, match=r"expected adapter_model\.safetensors.*adapter_model\.bin that you trust"):
        read_adapter(str(tmp_path / "a"))


@pytest.mark.parametrize(("step", "outcome"), [(3, "error"), (None, "warning"), (0, "nothing")])
def test_a_trained_adapter_without_effect_is_noticed(step, outcome, tmp_path, recwarn):
    tiny_policy(perturb_lora=False).save(tmp_path, processor_of("qwen2_5_vl"))
    if step is not None:
        (tmp_path / "trained_on.json").write_text(json.dumps({"step": step}))
    if outcome == "error":
        with pytest.raises(SettingsError, match="trained for 3 steps, but all 21 lora_B are zero"):
            read_adapter(str(tmp_path))
        return
    read_adapter(str(tmp_path))
    assert any("was it ever trained" in str(w.message) for w in recwarn) == (outcome == "warning")


@pytest.mark.parametrize("use_peft", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folders_hold_no_path(family, use_peft, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(tiny_folder(family)).parent)
    for base in (tiny_folder(family), f"./{family}", f"../{Path(tiny_folder(family)).parent.name}/{family}"):
        policy = Policy(base, use_peft=use_peft)
        policy.load(with_reference=False)
        folder = tmp_path / str(len(base))
        policy.save(folder, processor_of(family))
        for file in folder.iterdir():
            content = file.read_bytes()
            found = [
                part
                for part in (str(Path(tiny_folder(family)).parent), "./", str(tmp_path))
                if part.encode() in content
            ]
            found = [part for part in found if part != "./" or base.encode() in content]
            assert not found, file
        assert json.loads((folder / "made_with.json").read_text())["transformers"]
    if use_peft:
        assert base_name(folder) == family
        with pytest.raises(
            SettingsError, match=rf"'{family}'.*set model_name_or_path to the base model and adapter to"
        ):
            Policy(str(folder))


def base_name(folder):
    return json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_names_without_paths(tmp_path):
    snapshot = tmp_path / "models--Qwen--Qwen2-VL-2B-Instruct" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    assert public_name(str(snapshot)) == "Qwen/Qwen2-VL-2B-Instruct"
    assert public_name("Qwen/Qwen2-VL-2B-Instruct") == "Qwen/Qwen2-VL-2B-Instruct"
    assert public_name(f"{tmp_path}/") == tmp_path.name


def test_the_base_of_an_adapter_is_a_hub_id_or_a_folder_that_is_here(tmp_path):
    def named(base):
        write_adapter(tmp_path / "a", "qwen2_vl", "4.51", base_model_name_or_path=base)
        return base_of(str(tmp_path / "a"))

    assert named("Qwen/Qwen2-VL-2B-Instruct") == "Qwen/Qwen2-VL-2B-Instruct"
    assert named(tiny_folder("qwen2_vl")) == tiny_folder("qwen2_vl")
    for base in ("", "weights", "/no/such/folder", "../nothing"):
        with pytest.raises(SettingsError, match="set model_name_or_path to the base model"):
            named(base)


def test_pickled_and_quantised_bases_and_code_are_refused(tmp_path):
    for name in ("pickled", "quantised", "code"):
        shutil.copytree(tiny_folder("qwen2_vl"), tmp_path / name)
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    change_config(tmp_path / "quantised", quantization_config={"quant_method": "awq"})
    ran = tmp_path / "ran"
    (tmp_path / "code" / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    auto_map = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.C"}
    change_config(tmp_path / "code", auto_map=auto_map)
    for name, message in (("pickled", "no \\*.safetensors"), ("quantised", "quantised already")):
        with pytest.raises(SettingsError, match=message):
            Policy(str(tmp_path / name)).load(with_reference=False)
    Policy(str(tmp_path / "code")).load(with_reference=False)  # with the classes of transformers
    change_config(tmp_path / "code", model_type="evil")
    with pytest.raises(SettingsError, match="expected a Qwen-VL model"):
        Policy(str(tmp_path / "code")).load(with_reference=False)
    assert not ran.exists()


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("family", FAMILIES)
def test_four_bits_elsewhere_are_refused(family, caplog):
    from bitsandbytes.nn import Linear4bit

    with caplog.at_level("INFO"):
        network = tiny_policy(family, quantize="nf4").network
    language = "model.language_model.layers.*"
    assert caplog.text.count(f"{language}.") == 7  # the kinds of layers are listed, and no others
    assert f"{language}.mlp.down_proj, {language}.mlp.gate_proj" in caplog.text
    assert check_quantised(strip(network)) == 3 * 7
    network.model.visual.merger.extra = Linear4bit(4, 4)
    with pytest.raises(SettingsError, match=r"exactly the 21 linear layers.*got 22 layers; 1 .*visual\.merger\.extra"):
        check_quantised(network)


def strip(network):
    """Without the adapter, as when it is loaded."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            network.set_submodule(name, module.get_base_layer())
    return network
