"""Sampling on the shared prefix: sampler and scorer agree, and rows do not depend on each other."""

from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES, prompt_batch, row_logps, tiny_policy

from medgrpo.linear import Linear, packed_weights
from medgrpo.prefix import encode, prepare, score
from medgrpo.rollout import DecodeCache, draw, sample

CPU = torch.device("cpu")
STOP = torch.arange(0, 280, 4)  # many, so that rows end at different lengths


def prepared(policy, family, images=(1, 0, 2)):
    return prepare(policy.network, prompt_batch(family, images), CPU, frozen_vision=True)


def run(policy, prompts, **options):
    options = {
        "num_generations": 4,
        "max_completion_length": 12,
        "stop_ids": STOP,
        "suppressed": torch.tensor(policy.suppressed_ids()),
        "pad_id": 0,
        "generator": torch.Generator().manual_seed(0),
    } | options
    return sample(policy.network, encode(policy.network, prompts), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5}, {"min_completion_length": 4}], ids=str
)
def test_sampler_and_scorer_agree(family, options):
    policy = tiny_policy(family)
    prompts = prepared(policy, family)
    drawn = run(policy, prompts, **options)
    assert drawn.mask.sum(1).unique().numel() > 2, "rows should end at different lengths"
    suppressed = torch.tensor(policy.suppressed_ids())
    with torch.no_grad():
        scored, _ = score(
            policy.network,
            encode(policy.network, prompts),
            drawn.ids,
            drawn.mask,
            options.get("temperature", 1.0),
            suppressed,
        )
    assert torch.allclose(drawn.logps, scored, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_decoded_in_a_batch_equal_the_same_rows_alone_in_one_forward(family):
    policy = tiny_policy(family)
    prompts = prompt_batch(family, images=(1, 0, 2))
    drawn = run(policy, prepared(policy, family), temperature=0, num_generations=1)
    for p in range(3):
        completion = drawn.ids[p][drawn.mask[p]]
        with torch.no_grad():
            alone = row_logps(policy, prompts, p, completion, 1.0)
        assert torch.allclose(drawn.logps[p][drawn.mask[p]], alone, atol=1e-5)


def test_greedy_says_what_transformers_generate_says():
    policy = tiny_policy("qwen2_5_vl")
    prompts = prompt_batch("qwen2_5_vl", images=(1, 1))
    drawn = run(
        policy, prepared(policy, "qwen2_5_vl", (1, 1)), temperature=0, num_generations=1, stop_ids=torch.tensor([7])
    )
    expected = policy.network.generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask.long(),
        mm_token_type_ids=prompts.mm_token_type_ids,
        pixel_values=prompts.pixel_values,
        image_grid_thw=prompts.image_grid_thw,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=[7],
        suppress_tokens=policy.suppressed_ids(),
    )[:, prompts.input_ids.shape[1] :]
    assert drawn.ids[:, : expected.shape[1]].tolist() == expected.tolist()


def test_mask_holds_the_first_stop_token_and_nothing_after_it():
    policy = tiny_policy()
    drawn = run(policy, prepared(policy, "qwen2_5_vl"))
    for ids, mask, finished in zip(drawn.ids, drawn.mask, drawn.finished, strict=True):
        assert torch.isin(ids[mask], STOP).tolist() == [False] * (int(mask.sum()) - 1) + [finished.item()]
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert (ids[~mask] == 0).all()
    assert drawn.mask.any(0).all(), "no column that no row needs"


def test_a_row_draws_the_same_whichever_other_rows_have_finished(monkeypatch):
    policy = tiny_policy()
    prompts = prepared(policy, "qwen2_5_vl")
    drawn = run(policy, prompts)
    monkeypatch.setattr("medgrpo.rollout.LEAVE_AT", 0.0)  # finished rows stay to the end
    stayed = run(policy, prompts)
    assert torch.equal(drawn.ids, stayed.ids)
    assert torch.equal(drawn.finished, stayed.finished)


def test_forced_length_and_suppressed_ids():
    policy = tiny_policy()
    prompts = prepared(policy, "qwen2_5_vl")
    banned = torch.arange(100, 270)
    drawn = run(policy, prompts, min_completion_length=12, suppressed=banned)
    assert drawn.mask[:, :11].all()
    assert not torch.isin(drawn.ids, banned).any()
    assert not torch.isin(drawn.ids[:, :11], STOP).any()


def test_the_checkpoints_generation_config_changes_nothing():
    policy = tiny_policy()
    prompts = prepared(policy, "qwen2_5_vl")
    before = run(policy, prompts)
    policy.network.generation_config.update(temperature=0.01, top_k=1, top_p=0.1, max_new_tokens=2)
    assert torch.equal(before.ids, run(policy, prompts).ids)


def test_batch_cut_changes_no_prefix():
    policy = tiny_policy()
    prompts = prepared(policy, "qwen2_5_vl")
    together = run(policy, prompts, temperature=0)
    for p in range(3):
        alone = run(policy, prompts.select([p]), temperature=0)
        rows = slice(p * 4, p * 4 + 4)
        assert torch.equal(alone.ids, together.ids[rows, : alone.ids.shape[1]])


def test_draw_inverts_the_cumulative_distribution():
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log().expand(5, 3)
    token = draw(logits, torch.tensor([0.0, 0.49, 0.51, 0.71, 0.99]), greedy=False, top_p=1.0, top_k=0)
    assert token.tolist() == [0, 0, 1, 2, 2]
    nucleus = draw(logits, torch.tensor([0.0, 0.4, 0.63, 0.7, 0.99]), greedy=False, top_p=0.6, top_k=0)
    assert nucleus.tolist() == [0, 0, 2, 2, 2]  # 0.5 and 0.3 of 0.8: the border is at 0.625
    top = draw(logits, torch.tensor([0.0, 0.4, 0.63, 0.7, 0.99]), greedy=False, top_p=1.0, top_k=1)
    assert top.tolist() == [0] * 5


def test_on_token_is_told_of_every_position():
    policy = tiny_policy()
    seen = []
    drawn = run(policy, prepared(policy, "qwen2_5_vl"), on_token=lambda tokens, alive: seen.append((tokens, alive)))
    assert [tokens for tokens, _ in seen] == list(range(1, drawn.ids.shape[1] + 1))
    alive = [int((drawn.mask.sum(1) > t).sum()) for t, _ in seen]
    finished_last = int((~drawn.finished).sum())
    assert [a for _, a in seen] == [*alive[:-1], finished_last]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_with_packed_weights_agrees_with_the_scorer(family, monkeypatch):
    monkeypatch.setattr("medgrpo.linear.SMALLEST", 0)  # tiny layers too
    packed = []
    monkeypatch.setattr("medgrpo.rollout.packed_weights", lambda *a: packed.append(1) or packed_weights(*a))
    policy = tiny_policy(family, linear_implementation="onednn")
    prompts = prepared(policy, family)
    drawn = run(policy, prompts)
    assert packed == [1]
    plain = run(tiny_policy(family, linear_implementation="torch"), prompts)
    assert torch.equal(drawn.ids, plain.ids)
    assert torch.allclose(drawn.logps, plain.logps, atol=1e-5)
    assert all(module.packed is None for module in policy.modules() if isinstance(module, Linear))


def test_a_prompt_is_kept_once_and_leaves_with_its_last_row():
    policy = tiny_policy()
    prompts = prepared(policy, "qwen2_5_vl")
    with torch.no_grad():
        cache = DecodeCache(encode(policy.network, prompts), 4, 5)
    assert cache.shared[0][0].shape[0] == 3
    assert cache.own[0][0].shape[0] == 12
    cache.keep(torch.tensor([0, 2, 3, 9]))  # three rows of prompt 0, none of 1, one of 2
    assert cache.shared[0][0].shape[0] == 2
    assert cache.prompts.tolist() == [0, 0, 0, 1]
    assert cache.slots.tolist() == [0, 1, 2, 3]
    cache.keep(torch.tensor([1, 3]))
    assert cache.slots is None, "one row of each prompt: all slots are filled"


@pytest.fixture
def small_buckets(monkeypatch):
    """Buckets [1, 3), [3, 6), [6, 12) with a look every other token: borders, growth and early ends in short runs."""
    monkeypatch.setattr("medgrpo.static_decode.FIRST_BORDER", 3)
    monkeypatch.setattr("medgrpo.static_decode.CHECK_EVERY", 2)


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0}, {"temperature": 0.7, "top_p": 0.8, "top_k": 50}, {"min_completion_length": 9}],
    ids=str,
)
def test_static_decoding_draws_what_eager_decoding_draws(family, options):
    policy = tiny_policy(family)
    prompts = prepared(policy, family)
    eager, static = (run(policy, prompts, static=static, **options) for static in (False, True))
    assert torch.equal(eager.ids, static.ids)
    assert torch.equal(eager.mask, static.mask)
    assert torch.equal(eager.finished, static.finished)
    assert torch.allclose(eager.logps, static.logps, atol=1e-5)


@pytest.mark.usefixtures("small_buckets")
def test_static_decoding_keeps_shapes_within_buckets_and_drops_finished_rows_between_them():
    policy = tiny_policy()
    shapes = []
    policy.network.model.language_model.register_forward_pre_hook(
        lambda m, args, kwargs: shapes.append((len(kwargs["inputs_embeds"]), kwargs["attention_mask"].shape[-1])),
        with_kwargs=True,
    )
    prompts = prepared(policy, "qwen2_5_vl")
    drawn = run(policy, prompts, static=True)
    length = prompts.input_ids.shape[1]
    alive = (drawn.mask.sum(1, keepdim=True) > torch.arange(13)).sum(0).tolist()  # rows that have a token t
    assert alive[1] > alive[3] > alive[6] > 0
    steps = [(alive[1], length + 2)] * 2 + [(alive[3], length + 5)] * 3 + [(alive[6], length + 11)] * 6
    expected = [(rows, -(-keys // 8) * 8) for rows, keys in steps]
    assert shapes[1 : len(shapes)] == expected[: len(shapes) - 1]


@pytest.mark.usefixtures("small_buckets")
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_static_decoding_of_any_length(length):
    policy = tiny_policy()
    prompts = prepared(policy, "qwen2_5_vl")
    options = {"max_completion_length": length, "stop_ids": torch.tensor([0])}
    assert torch.equal(run(policy, prompts, **options).ids, run(policy, prompts, static=True, **options).ids)


@pytest.mark.usefixtures("small_buckets")
def test_static_decoding_stops_when_all_rows_are_done():
    policy = tiny_policy()
    seen = []
    drawn = run(
        policy,
        prepared(policy, "qwen2_5_vl"),
        static=True,
        max_completion_length=200,
        on_token=lambda tokens, alive: seen.append((tokens, alive)),
    )
    assert seen[-1][1] == 0
    assert drawn.ids.shape[1] <= seen[-1][0] < drawn.ids.shape[1] + 2
    assert drawn.finished.all()


def test_select_equals_a_batch_made_alone():
    whole = prompt_batch("qwen2_5_vl", images=(1, 0, 2))
    text = whole.select([1])
    assert text.pixel_values is None
    assert text.attention_mask.all()
    swapped = whole.select([2, 0])
    assert torch.equal(
        swapped.pixel_values, torch.cat([whole.select([2]).pixel_values, whole.select([0]).pixel_values])
    )
    assert replace(swapped).images_per_prompt == (2, 1)
