"""The step: what it computes does not depend on how it is cut, and equals plain per-row GRPO."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from tiny import processor_of, prompt_batch, row_logps, tiny_policy

from medgrpo.module import GRPOModule
from medgrpo.passes import cut_prompts
from medgrpo.prefix import prepare, score
from medgrpo.rewards import Reward
from medgrpo.types import Completions, SettingsError

G = 4
IMAGES = (1, 0, 2, 1)


class LengthReward(Reward):
    """Pays for the number of different characters: many values, seldom equal."""

    name = "length_reward"

    def __call__(self, completions, records):
        return [len(set(text)) / 10 for text in completions]


class ConstantReward(Reward):
    """Pays the same for every completion."""

    name = "constant_reward"

    def __call__(self, completions, records):
        return [1.0] * len(completions)


def make_module(*, accumulate=1, world_size=1, rank=0, others=None, policy=None, stop=(), **options) -> GRPOModule:
    """A module without a Trainer: on rank ``rank``; ``others`` are the gathered rows of all ranks."""
    options = {"max_completion_length": 8, "num_generations": G} | options
    rewards = options.pop("rewards", [LengthReward()])
    module = GRPOModule(policy or tiny_policy(double=True), rewards, torch.optim.AdamW, **options)
    module._trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate,
        world_size=world_size,
        global_rank=rank,
        current_epoch=0,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(broadcast=lambda value, rank: value),
    )
    module.__class__ = type("GRPOModule", (GRPOModule,), {"trainer": property(lambda self: self._trainer)})
    module.all_gather = lambda rows: rows[None] if others is None else others
    module.processor = processor_of("qwen2_5_vl")
    module.register_buffer("stop_ids", torch.arange(0, 280, 6), persistent=False)
    module.register_buffer("suppressed", torch.tensor(module.policy.suppressed_ids()), persistent=False)
    return module


def batch(images=IMAGES):
    return prompt_batch("qwen2_5_vl", images, dtype=torch.float64)


def gradient(module, rollouts, num_micro=1) -> dict[str, torch.Tensor]:
    """Gradient over all micro-batches."""
    module.zero_grad()
    for micro in range(num_micro):
        module.micro_loss(rollouts, micro, num_micro).backward()
    return {n: p.grad.clone() for n, p in module.policy.named_parameters() if p.requires_grad}


def assert_same(ours, expected, tolerance=1e-6):
    assert ours.keys() == expected.keys()
    assert any(g.norm() > 0 for g in expected.values())
    for name, grad in expected.items():
        assert (ours[name] - grad).norm() <= tolerance * max(grad.norm(), 1e-8), name


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_gradient_equals_plain_per_row_grpo(loss_type, beta):
    module = make_module(loss_type=loss_type, beta=beta, temperature=0.9)
    prompts = batch()
    rollouts = module.collect(prompts, 0)
    ours = gradient(module, rollouts)

    module.zero_grad()
    done = rollouts.completions
    lengths = done.mask.sum(1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(done.ids)):
        group = torch.tensor([len(set(text)) / 10 for text in rollouts.texts[i // G * G : i // G * G + G]])
        advantage = (group[i % G] - group.mean()) / (group.std() + 1e-4)
        completion = done.ids[i, : lengths[i]]
        logps = row_logps(module.policy, prompts, i // G, completion, 0.9)
        loss = -(logps - logps.detach()).exp() * advantage
        if beta:
            with torch.no_grad(), module.policy.as_reference():
                ref = row_logps(module.policy, prompts, i // G, completion, 0.9)
            loss = loss + beta * ((ref - logps).exp() - (ref - logps) - 1)
        share = {
            "grpo": 1 / (lengths[i] * len(lengths)),
            "dr_grpo": 1 / (8 * len(lengths)),
            "dapo": 1 / lengths.sum(),
            "bnpo": 1 / lengths.sum(),
        }[loss_type]
        total = total + (loss * share).sum()
    total.backward()
    expected = {n: p.grad.clone() for n, p in module.policy.named_parameters() if p.requires_grad}
    assert_same(ours, expected, 1e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_gradient_does_not_depend_on_the_cut(loss_type):
    module = make_module(loss_type=loss_type, beta=0.1)
    rollouts = module.collect(batch(), 0)
    whole = gradient(module, rollouts, 1)
    assert_same(gradient(module, rollouts, 2), whole)
    assert_same(gradient(module, rollouts, 4), whole)


def test_gradient_does_not_depend_on_the_order_of_groups():
    module = make_module(beta=0.1)
    rollouts = module.collect(batch(), 0)
    whole = gradient(module, rollouts)
    order = [2, 0, 3, 1]
    rows = torch.tensor([p * G + g for p in order for g in range(G)])
    rollouts.prompts = rollouts.prompts.select(order)
    done = rollouts.completions
    done.ids, done.mask, done.logps = done.ids[rows], done.mask[rows], done.logps[rows]
    rollouts.advantages, rollouts.weights = rollouts.advantages[rows], rollouts.weights[rows]
    rollouts.ref_logps = rollouts.ref_logps[rows]
    assert_same(gradient(module, rollouts), whole)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_two_ranks_average_to_the_gradient_of_one(scale_rewards, monkeypatch):
    policy = tiny_policy(double=True)
    prompts = batch()
    one = make_module(policy=policy, scale_rewards=scale_rewards, beta=0.1)
    drawn = one.collect(prompts, 0)
    whole = gradient(one, drawn)
    rows = torch.column_stack(
        [
            drawn.rewards,
            drawn.rewards.sum(1),
            drawn.completions.mask.sum(1),
            drawn.completions.finished,
            drawn.completions.mask.sum(1),
            torch.zeros(len(drawn.advantages)),
        ]
    ).float()
    total = {name: torch.zeros_like(g) for name, g in whole.items()}
    for rank, groups in enumerate(([0, 1], [2, 3])):
        module = make_module(
            policy=policy,
            world_size=2,
            rank=rank,
            others=rows.view(2, 2 * G, -1),
            scale_rewards=scale_rewards,
            beta=0.1,
        )
        mine = slice(rank * 2 * G, (rank + 1) * 2 * G)
        done = drawn.completions
        half = Completions(done.ids[mine], done.mask[mine], done.logps[mine], done.finished[mine])
        monkeypatch.setattr(module, "sample", lambda prompts, generator, half=half: half)
        module.zero_grad()
        rollouts = module.collect(prompts.select(groups), 0)
        (module.micro_loss(rollouts, 0, 1) * module.trainer.world_size).backward()
        for name, parameter in module.policy.named_parameters():
            if parameter.requires_grad:
                total[name] += parameter.grad / 2  # DistributedDataParallel averages
    assert_same(total, whole)


def test_ratio_is_one_on_the_first_pass_and_not_on_the_second():
    module = make_module(num_iterations=2, epsilon=0.01)
    rollouts = module.collect(batch(), 0)
    module.micro_loss(rollouts, 0, 1).backward()
    first = module.statistics.pop()
    assert first["clip_ratio/region_mean"] == 0
    assert first["sampling/sampling_logp_difference/max"] < 1e-5
    active = torch.tensor(rollouts.active).repeat_interleave(G)[:, None] & rollouts.completions.mask
    assert torch.allclose(rollouts.old_logps[active].double(), rollouts.completions.logps[active].double(), atol=1e-5)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    kept = rollouts.old_logps.clone()
    module.micro_loss(rollouts, 0, 1)
    assert module.statistics.pop()["clip_ratio/region_mean"] > 0
    assert torch.equal(rollouts.old_logps, kept)


def test_groups_of_equal_rewards_cost_nothing_and_give_a_zero_gradient(monkeypatch):
    module = make_module(rewards=[ConstantReward()])
    rollouts = module.collect(batch(), 0)
    assert rollouts.active == [False] * 4
    assert module.rollout_values["frac_reward_zero_std"] == 1
    monkeypatch.setattr("medgrpo.module.score", lambda *args: pytest.fail("a group without gradient was scored"))
    assert all((g == 0).all() for g in gradient(module, rollouts).values())


def test_skipping_equal_groups_is_exact():
    module = make_module()
    rollouts = module.collect(batch(), 0)
    rollouts.advantages[: 2 * G] = 0.0
    rollouts.active = [True] * 4
    whole = gradient(module, rollouts)
    rollouts.active = [False, False, True, True]
    assert_same(gradient(module, rollouts), whole)


def test_equal_groups_stay_when_the_kl_term_needs_them():
    module = make_module(rewards=[ConstantReward()], beta=0.1)
    rollouts = module.collect(batch(), 0)
    assert rollouts.active == [True] * 4
    assert any(g.norm() > 0 for g in gradient(module, rollouts).values())


def test_truncated_completions_leave_the_loss():
    module = make_module(mask_truncated_completions=True, max_completion_length=4)
    rollouts = module.collect(batch(), 0)
    cut = ~rollouts.completions.finished
    assert cut.any()
    assert (~cut).any()
    assert (rollouts.weights[cut] == 0).all()
    assert (rollouts.weights[~cut].sum(1) > 0).all()
    assert torch.isclose(rollouts.weights.sum(), torch.tensor(1.0))


def test_rollouts_depend_on_position_and_not_on_global_state():
    module = make_module()
    torch.manual_seed(1)
    first = module.collect(batch(), 3)
    torch.manual_seed(2)
    assert torch.equal(first.completions.ids, module.collect(batch(), 3).completions.ids)
    other = module.collect(batch(), 4).completions.ids
    assert first.completions.ids.shape != other.shape or not torch.equal(first.completions.ids, other)


def test_prompts_are_encoded_once_whatever_the_number_of_generations(monkeypatch):
    """Fast: the vision tower runs once per rollout batch, and no pass but the completions' has N rows of prompt."""
    module = make_module(beta=0.1)
    network = module.policy.network
    tower, tokens = [], []
    network.model.visual.register_forward_hook(lambda *args: tower.append(1))
    network.model.language_model.register_forward_pre_hook(
        lambda m, args, kwargs: tokens.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    prompts = batch()
    rollouts = module.collect(prompts, 0)
    module.micro_loss(rollouts, 0, 1)
    assert len(tower) == 1
    length = prompts.input_ids.shape[1]
    assert tokens.count((4, length)) == 2  # rollout and training share one, the reference has its own: P rows each
    assert all(n <= 8 for rows, n in tokens if rows > 4)


@pytest.mark.parametrize("tuning", [{}, {"use_peft": False, "freeze_vision": False}], ids=["lora", "full"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("skipped", [0, 1])
def test_training_on_the_encoding_of_the_rollout_equals_training_on_a_new_one(tuning, gradient_checkpointing, skipped):
    module = make_module(
        beta=0.1, policy=tiny_policy(double=True, gradient_checkpointing=gradient_checkpointing, **tuning)
    )
    rollouts = module.collect(batch(), 0)
    rollouts.active[:skipped] = [False] * skipped
    assert rollouts.prefix is not None
    shared = gradient(module, rollouts)
    assert rollouts.prefix is None
    assert_same(shared, gradient(module, rollouts))


def test_the_reference_runs_a_trainable_tower_once_per_micro_batch():
    """As the policy does: ranks whose images fall into other micro-batches make the same passes over its shards."""
    module = make_module(accumulate=2, beta=0.1, policy=tiny_policy(double=True, freeze_vision=False))
    rollouts = module.collect(batch(), 0)
    seen = []
    hook = module.policy.network.model.visual.register_forward_hook(lambda *args: seen.append(1))
    with torch.no_grad(), module.policy.as_reference():
        logps = module.reference_logps(rollouts)
    hook.remove()
    assert len(seen) == 2
    assert torch.allclose(logps, rollouts.ref_logps)


def test_every_trained_parameter_has_a_gradient_whatever_the_images():
    """0 where none comes, as where ranks exchange gradients: else an optimizer would do other steps on one device."""
    module = make_module(policy=tiny_policy(double=True, use_peft=False, freeze_vision=False))
    module.micro_loss(module.collect(batch((0, 0, 0, 0)), 0), 0, 1).backward()
    assert all(p.grad is not None for p in module.trained())


def test_no_encoding_is_kept_for_a_batch_that_is_cut_or_mostly_skipped():
    assert make_module(accumulate=2).collect(batch(), 0).prefix is None
    assert make_module(max_tokens_per_pass=60).collect(batch(), 0).prefix is None
    assert make_module(rewards=[ConstantReward()]).collect(batch(), 0).prefix is None


@pytest.mark.parametrize("options", [{}, {"num_iterations": 2, "beta": 0.1}], ids=str)
def test_gradient_does_not_depend_on_the_token_budget(options):
    whole = make_module(**options)
    rollouts = whole.collect(batch(), 0)
    expected = gradient(whole, rollouts)
    for budget, parts, pieces in ((1, 4, 16), (20, 4, 8), (90, 2, 2), (1000, 1, 1)):
        module = make_module(max_tokens_per_pass=budget, policy=whole.policy, **options)
        rollouts = module.collect(batch(), 0)
        lengths = rollouts.prompts.attention_mask.sum(1)
        assert len(cut_prompts(range(4), lengths, budget)) == parts
        assert len(module._pieces(rollouts, [0, 1, 2, 3])) == pieces
        assert_same(gradient(module, rollouts), expected)


def test_a_budget_keeps_one_pass_at_a_time_alive(monkeypatch):
    module = make_module(max_tokens_per_pass=1)
    rollouts = module.collect(batch(), 0)
    graphs, alive = [], []

    class Mark:
        pass

    def counted(*args):
        alive.append(sum(graph() is not None for graph in graphs))
        logps, entropy = score(*args)
        mark = logps.grad_fn.metadata["mark"] = Mark()  # lives as long as the graph
        graphs.append(weakref.ref(mark))
        return logps, entropy

    monkeypatch.setattr("medgrpo.module.score", counted)
    module.micro_loss(rollouts, 0, 1).backward()
    assert alive == [0] * 16


def test_reference_of_full_fine_tuning_is_a_frozen_copy():
    policy = tiny_policy(double=True, use_peft=False, freeze_vision=False)
    module = make_module(policy=policy, beta=0.1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    prompts = batch()
    rollouts = module.collect(prompts, 0)
    completion = rollouts.completions.ids[0][rollouts.completions.mask[0]]
    with torch.no_grad():
        now = row_logps(policy, prompts, 0, completion, 1.0)
        stand_in = SimpleNamespace(network=policy.reference, suppressed_ids=policy.suppressed_ids)
        before = row_logps(stand_in, prompts, 0, completion, 1.0)
    ours = rollouts.ref_logps[0][: len(completion)].double()
    assert torch.allclose(ours, before, atol=1e-5)
    assert not torch.allclose(ours, now, atol=1e-3)
    assert not any(p.requires_grad for p in policy.reference.parameters())


def test_a_step_without_a_finite_gradient_is_skipped_counted_and_in_the_end_refused():
    module = make_module(max_nonfinite_steps=2)
    parameters = [p for p in module.policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0)
    before = [p.detach().clone() for p in parameters]

    def step(value):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, value)
        module.configure_gradient_clipping(optimizer)
        optimizer.step()

    step(float("nan"))
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    assert not optimizer.state
    step(1.0)
    assert not any(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    step(float("inf"))
    assert module.nonfinite_steps == 2
    with pytest.raises(FloatingPointError, match="2 steps in a row"):
        step(float("nan"))


def test_bad_settings_are_named_together():
    with pytest.raises(ValueError, match="num_generations") as error:
        GRPOModule(None, [LengthReward()], None, num_generations=1, reward_weights=[1.0, 2.0], temperature=0.0, beta=-1)
    for name in ("num_generations", "reward_weights", "temperature", "beta"):
        assert name in str(error.value)


def test_prepare_computes_frozen_features_once():
    policy = tiny_policy()
    prompts = prepare(policy.network, prompt_batch("qwen2_5_vl"), torch.device("cpu"), frozen_vision=True)
    assert prompts.pixel_values is None
    assert len(prompts.vision.embeds) == int(prompts.mm_token_type_ids.sum())


class Memory:
    """Stands in for a GPU: passes of more tokens than fit run out of memory, forward or backward."""

    def __init__(self, fits: int, backward: bool) -> None:
        self.fits, self.backward = fits, backward
        self.refused = 0

    def __call__(self, module, rollouts, prefix, prompts, rows):
        loss = GRPOModule._loss_of_completions(module, rollouts, prefix, prompts, rows)
        lengths = rollouts.completions.mask.sum(1)[torch.tensor(rows)]
        if len(rows) * int(lengths.max()) > self.fits:
            self.refused += 1
            if not self.backward:
                raise torch.OutOfMemoryError("CUDA out of memory")
            loss.register_hook(self.run_out)
        return loss

    @staticmethod
    def run_out(grad):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("num_iterations", [1, 2])
def test_out_of_memory_in_training_is_tried_again_in_smaller_passes_with_the_same_gradient(backward, num_iterations):
    policy = tiny_policy(double=True)
    module = make_module(policy=policy, beta=0.1, num_iterations=num_iterations)
    rollouts = module.collect(batch(), 0)
    expected = gradient(module, rollouts)
    figures = module.statistics.pop()
    again = make_module(policy=policy, beta=0.1, num_iterations=num_iterations)
    rollouts = again.collect(batch(), 0)
    memory = Memory(20, backward)
    again._loss_of_completions = lambda *args: memory(again, *args)
    with pytest.warns(UserWarning, match="going on with at most"):
        ours = gradient(again, rollouts)
    assert_same(ours, expected)
    assert {n: float(v) for n, v in again.statistics.pop().items()} == pytest.approx(
        {n: float(v) for n, v in figures.items()}, abs=1e-9
    )
    assert memory.refused > 1
    budget, refused = again.tokens_per_pass, memory.refused
    rollouts = again.collect(batch(), 1)
    gradient(again, rollouts)
    assert (again.tokens_per_pass, memory.refused) == (budget, refused), "it remembers"


def test_what_cannot_be_made_smaller_is_an_error_that_names_settings():
    module = make_module()
    rollouts = module.collect(batch(), 0)
    memory = Memory(0, backward=False)
    module._loss_of_completions = lambda *args: memory(module, *args)
    with (
        pytest.warns(UserWarning, match="going on"),
        pytest.raises(SettingsError, match="gradient_checkpointing.*max_completion_length"),
    ):
        gradient(module, rollouts)


def test_a_loss_that_is_not_finite_has_no_finite_gradient(monkeypatch):
    module = make_module()
    module.rollouts = module.collect(batch(), 0)
    monkeypatch.setattr(module, "micro_loss", lambda *args: module.trained()[0].sum() + torch.inf)
    loss = module.training_step(batch(), 1)
    loss.backward()
    assert module.trained()[0].grad.isnan().all()
