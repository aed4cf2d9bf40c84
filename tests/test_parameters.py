"""A parameter that gets no gradient stops the run and is named; one that should stay has stayed, or is named."""

from types import SimpleNamespace

import pytest
import torch
from test_module import G, batch, make_module
from tiny import tiny_policy

from medgrpo.parameters import ParameterCheck, frozen_sums
from medgrpo.types import SettingsError

TRAINER = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor), global_step=0)


def start(module):
    check = ParameterCheck()
    check.on_train_start(TRAINER, module)
    return check


def go_back(module, images=(1, 0, 2, 1)):
    module.zero_grad()
    module.rollouts = module.collect(batch(images), 0)
    module.micro_loss(module.rollouts, 0, 1).backward()


@pytest.mark.parametrize("options", [{"perturb_lora": False}, {"use_peft": False, "freeze_vision": False}])
def test_every_parameter_is_reached_in_the_first_step(options):
    module = make_module(policy=tiny_policy(double=True, **options), beta=0.1)
    check = start(module)
    go_back(module)
    check.on_before_optimizer_step(TRAINER, module, None)
    assert all("lora_A" in name for name in check.waiting), "the second factors are 0: the first have none yet"
    torch.optim.SGD(module.trained(), lr=0.1).step()
    go_back(module)
    check.on_before_optimizer_step(TRAINER, module, None)
    assert not check.waiting


def test_what_is_cut_off_is_named():
    module = make_module(policy=tiny_policy(double=True))
    check = start(module)
    go_back(module)
    lost = [name for name, p in module.policy.named_parameters() if p.requires_grad and "layers.1.mlp" in name]
    for name in lost:
        module.policy.get_parameter(name).grad = None
    seconds = sorted(name for name in lost if "lora_B" in name)
    with pytest.raises(SettingsError, match=f"3 of .* got no gradient in step 1: {', '.join(seconds)}"):
        check.on_before_optimizer_step(TRAINER, module, None)


def test_a_step_that_teaches_nothing_is_waited_out():
    module = make_module(policy=tiny_policy(double=True))
    check = start(module)
    go_back(module)
    for parameter in module.trained():
        parameter.grad = torch.zeros_like(parameter)
    waiting = set(check.waiting)
    check.on_before_optimizer_step(TRAINER, module, None)
    assert check.waiting == waiting


def test_the_vision_tower_may_wait_for_an_image():
    module = make_module(policy=tiny_policy(double=True, use_peft=False, freeze_vision=False))
    check = start(module)
    go_back(module, images=(0, 0, 0, 0))
    check.on_before_optimizer_step(TRAINER, module, None)
    assert check.waiting
    assert all("visual" in name for name in check.waiting)
    go_back(module)
    check.on_before_optimizer_step(TRAINER, module, None)
    assert not check.waiting


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_vision_tower_may_wait_for_an_image_of_a_group_with_unequal_rewards(beta):
    module = make_module(policy=tiny_policy(double=True, use_peft=False, freeze_vision=False), beta=beta)
    check = start(module)
    module.zero_grad()
    module.rollouts = module.collect(batch((1, 0, 0, 0)), 0)
    module.rollouts.advantages[:G] = 0.0
    module.rollouts.active[0] = beta > 0
    module.micro_loss(module.rollouts, 0, 1).backward()
    if beta:  # the reference is the policy still: no gradient but of rounding
        module.policy.network.model.visual.zero_grad()
    check.on_before_optimizer_step(TRAINER, module, None)
    assert check.waiting
    assert all("visual" in name for name in check.waiting)


def test_what_one_rank_alone_sees_is_required_on_all():
    module = make_module(policy=tiny_policy(double=True, use_peft=False, freeze_vision=False))
    check = start(module)
    go_back(module, images=(0, 0, 0, 0))
    one_image = torch.zeros(69, dtype=torch.int64)
    one_image[-1] = 1  # that another rank has
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda t, reduce_op: t + one_image), global_step=0)
    with pytest.raises(SettingsError, match="visual"):
        check.on_before_optimizer_step(trainer, module, None)


def test_a_factor_beside_one_that_is_zero_may_wait():
    options = {"lora_target_modules": ["q_proj", "embed_tokens"], "perturb_lora": False}
    module = make_module(policy=tiny_policy(double=True, **options))
    check = start(module)
    go_back(module)
    check.on_before_optimizer_step(TRAINER, module, None)
    assert sum("lora_embedding_B" in name for name in check.waiting) == 1


def test_a_frozen_parameter_that_moved_is_named():
    module = make_module(policy=tiny_policy())
    check = start(module)
    assert check.frozen == frozen_sums(module.policy)
    check.on_train_end(TRAINER, module)
    frozen = module.policy.network.model.language_model.norm.weight
    with torch.no_grad():
        frozen[0] = torch.nextafter(frozen[0], torch.tensor(2.0, dtype=frozen.dtype))
    with pytest.raises(SettingsError, match=r"1 of 68 frozen .*language_model.norm.weight"):
        check.on_train_end(TRAINER, module)
