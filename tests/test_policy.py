"""Loading: families, layouts on disk, LoRA, 4-bit, adapters, references."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, processor_of, prompt_batch, random_completions, row_logps, tiny_folder, tiny_policy

from medgrpo.policy import Policy
from medgrpo.prefix import encode, prepare, score

OLD_NAMES = {r"^model\.language_model\.": "model.", r"^model\.visual\.": "visual."}
"""Module names of today -> those of published Qwen2-VL and Qwen2.5-VL checkpoints."""


def logps(network, suppressed, family="qwen2_5_vl"):
    prompts = prepare(network, prompt_batch(family, (1, 0)), torch.device("cpu"), frozen_vision=True)
    ids, mask = random_completions(family, 4)
    with torch.no_grad():
        return score(network, encode(network, prompts), ids, mask, 1.0, torch.tensor(suppressed))[0]


def renamed(state, names):
    for old, new in names.items():
        state = {re.sub(old, new, key): value for key, value in state.items()}
    return state


def copy_folder(source, target, weights):
    target.mkdir()
    for file in Path(source).iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("layout", ["published", "today"])
def test_both_key_layouts_load_whole(family, layout, tmp_path):
    plain = tiny_policy(family, use_peft=False)
    state = {k: v.contiguous() for k, v in plain.network.state_dict().items() if k != "lm_head.weight"}
    if layout == "published":
        state = renamed(state, OLD_NAMES)
        assert {key.split(".")[0] for key in state} == {"model", "visual"}
        assert not any(key.startswith("model.language_model") for key in state)
    policy = Policy(copy_folder(tiny_folder(family), tmp_path / "model", state), use_peft=False)
    policy.load(with_reference=False)
    for name, parameter in plain.network.named_parameters():
        assert torch.equal(parameter, policy.network.get_parameter(name)), name


def test_weights_that_do_not_fit_are_an_error(tmp_path):
    state = load_file(Path(tiny_folder()) / "model.safetensors")
    state.pop(sorted(state)[0])
    policy = Policy(copy_folder(tiny_folder(), tmp_path / "model", state), use_peft=False)
    with pytest.raises(ValueError, match="missing_keys"):
        policy.load(with_reference=False)


def test_unknown_model_type_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    policy = Policy(str(tmp_path))
    with pytest.raises(ValueError, match="'gpt2'.*qwen2_vl, qwen2_5_vl, qwen3_vl"):
        policy.load(with_reference=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_leaves_the_vision_tower_alone_unless_asked(family):
    trained = [n for n, p in tiny_policy(family).named_parameters() if p.requires_grad]
    assert len(trained) == 3 * 7 * 2  # layers, linears, A and B
    assert not any("visual" in name for name in trained)
    both = [n for n, p in tiny_policy(family, freeze_vision=False).named_parameters() if p.requires_grad]
    assert sum("visual.blocks" in name for name in both) >= 2 * 4 * 2
    assert not any("merger" in name or "patch_embed" in name for name in both)


def test_full_fine_tuning_trains_the_tower_only_when_it_is_not_frozen():
    frozen = tiny_policy(use_peft=False)
    assert not any(p.requires_grad for p in frozen.network.model.visual.parameters())
    assert all(p.requires_grad for p in frozen.network.model.language_model.parameters())
    assert all(p.requires_grad for p in tiny_policy(use_peft=False, freeze_vision=False).network.parameters())


def test_dropout_stays_off():
    policy = tiny_policy()
    policy.train()
    assert not any(module.training for module in policy.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_folder_loads_with_plain_peft_and_with_this_tool(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    policy = tiny_policy(family)
    policy.save(tmp_path / "adapter", processor_of(family))
    suppressed = policy.suppressed_ids()
    expected = logps(policy.network, suppressed, family)

    base = AutoModelForImageTextToText.from_pretrained(tiny_folder(family), dtype=torch.float32)
    without = logps(base, suppressed, family)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.allclose(logps(plain.get_base_model(), suppressed, family), expected, atol=1e-6)
    assert not torch.allclose(without, expected, atol=1e-3)

    again = Policy(tiny_folder(family), adapter=str(tmp_path / "adapter"))
    again.load(with_reference=False)
    assert torch.equal(logps(again.network, suppressed, family), expected)

    base = AutoModelForImageTextToText.from_pretrained(tiny_folder(family), dtype=torch.float32)
    loading = base.load_adapter(tmp_path / "adapter")
    assert not loading.missing_keys
    assert not loading.unexpected_keys
    assert sum("lora_" in name for name, _ in base.named_parameters()) == 42
    assert torch.allclose(logps(base, suppressed, family), expected, atol=1e-6)


def test_a_whole_model_folder_written_here_loads_again(tmp_path):
    policy = tiny_policy(use_peft=False)
    with torch.no_grad():
        policy.network.lm_head.weight.mul_(1.5)
    policy.save(tmp_path / "model", processor_of("qwen2_5_vl"))
    again = Policy(str(tmp_path / "model"), use_peft=False)
    again.load(with_reference=False)
    assert torch.equal(logps(again.network, [0]), logps(policy.network, [0]))


def rewrite_adapter(folder, change):
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_an_adapter_saved_before_the_layout_changed_loads_whole(tmp_path):
    policy = tiny_policy()
    policy.save(tmp_path / "adapter", processor_of("qwen2_5_vl"))
    names = {r"^base_model\.model\.model\.language_model\.": "base_model.model.model."}
    rewrite_adapter(tmp_path / "adapter", lambda state: renamed(state, names))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config["exclude_modules"] = ".*visual.*"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    again = Policy(tiny_folder(), adapter=str(tmp_path / "adapter"))
    again.load(with_reference=False)
    assert torch.equal(logps(again.network, [0]), logps(policy.network, [0]))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda state: renamed(state, {r"language_model\.layers": "transformer.h"}), id="other-names"),
        pytest.param(lambda state: dict(list(state.items())[2:]), id="some-missing"),
    ],
)
def test_an_adapter_that_does_not_match_is_an_error(change, tmp_path):
    tiny_policy().save(tmp_path / "adapter", processor_of("qwen2_5_vl"))
    rewrite_adapter(tmp_path / "adapter", change)
    policy = Policy(tiny_folder(), adapter=str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"\d+ of 42 LoRA tensors matched"):
        policy.load(with_reference=False)


def test_the_reference_of_a_started_adapter_is_that_adapter(tmp_path):
    first = tiny_policy()
    first.save(tmp_path / "adapter", processor_of("qwen2_5_vl"))
    policy = Policy(tiny_folder(), adapter=str(tmp_path / "adapter"))
    policy.load(with_reference=True)
    start = logps(policy.network, [0])
    trained = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert len(trained) == 42
    assert all(".default." in name for name in trained)
    with torch.no_grad():
        for name in trained:
            policy.get_parameter(name).add_(0.05)
    now = logps(policy.network, [0])
    with policy.as_reference():
        assert torch.equal(logps(policy.network, [0]), start)
    assert torch.equal(logps(policy.network, [0]), now)
    assert not torch.allclose(now, start)
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == trained


def test_the_reference_of_a_new_adapter_is_the_base():
    policy = tiny_policy()
    base = tiny_policy(use_peft=False)
    with policy.as_reference():
        assert torch.equal(logps(policy.network, [0]), logps(base.network, [0]))
    assert not torch.allclose(logps(policy.network, [0]), logps(base.network, [0]), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_q_lora_quantises_the_language_model_only_and_trains(family):
    from bitsandbytes.nn import Linear4bit

    policy = tiny_policy(family, quantize="nf4")
    quantised = [name for name, module in policy.network.named_modules() if isinstance(module, Linear4bit)]
    assert len(quantised) == 3 * 7
    assert all("language_model.layers" in name for name in quantised)
    assert all(m.weight.quant_type == "nf4" for m in policy.network.modules() if isinstance(m, Linear4bit))
    prompts = prepare(policy.network, prompt_batch(family), torch.device("cpu"), frozen_vision=True)
    ids, mask = random_completions(family, 6)
    score(policy.network, encode(policy.network, prompts), ids, mask, 1.0, torch.tensor(policy.suppressed_ids()))[
        0
    ].sum().backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad.norm() > 0 for p in trained)


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="quantize"):
        Policy("x", quantize="nf4", use_peft=False)
    with pytest.raises(ValueError, match="min_pixels"):
        Policy("x", min_pixels=10, max_pixels=5)
    with pytest.raises(ValueError, match="flash_attention_2 needs CUDA"):
        Policy(tiny_folder(), attn_implementation="flash_attention_2").load(with_reference=False)


def test_row_reference_uses_images():
    """The yardstick of the parity tests would be blind to images if the model were."""
    policy = tiny_policy()
    prompts = prompt_batch("qwen2_5_vl", (1,))
    completion = torch.tensor([5, 6, 7])
    seen = row_logps(policy, prompts, 0, completion, 1.0)
    prompts.pixel_values.zero_()
    assert not torch.allclose(seen, row_logps(policy, prompts, 0, completion, 1.0), atol=1e-6)
