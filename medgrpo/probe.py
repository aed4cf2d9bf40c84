"""Before the first step: run the worst case that the settings allow once, and say what memory it takes."""

from __future__ import annotations

import os

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from medgrpo.metrics import peak_memory_gib
from medgrpo.module import GRPOModule
from medgrpo.prefix import see
from medgrpo.rollout import largest_step
from medgrpo.sharding import FSDP1Strategy, whole
from medgrpo.types import Completions, PromptBatch, Rollouts, SettingsError

WARN_FROM = 0.95
"""Share of the memory from which a run is said to be too close to the limit."""

OPTIONS = (
    "model.max_tokens_per_pass=4096 (or less), model.policy.gradient_checkpointing=true, a larger "
    "trainer.accumulate_grad_batches, a smaller data.prompts_per_batch, model.num_generations, "
    "model.max_completion_length or model.policy.max_pixels, or model.policy.quantize=nf4"
)


class MemoryProbe(Callback):
    """Runs ``worst_case`` on the longest prompts of the training data.

    Args:
        enabled: whether to.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_train_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        """Measure and report.

        Raises:
            SettingsError: a GPU's memory does not suffice.
        """
        if not self.enabled or isinstance(trainer.strategy, FSDP1Strategy):  # which has whole weights in a step only
            return
        batch = trainer.datamodule.longest_batch()
        on_gpu = pl_module.device.type == "cuda"
        try:
            worst_case(pl_module, batch)
        except torch.cuda.OutOfMemoryError as error:
            raise SettingsError(
                f"{_case(pl_module, batch)} does not fit into {memory_gib(on_gpu):.1f} GiB; set {OPTIONS}"
            ) from error
        trained = sum(p.numel() * p.element_size() for p in pl_module.policy.parameters() if p.requires_grad)
        # Adam's two moments come with the first step; gradients were there, but not kept.
        expected = peak_memory_gib() + 3 * trained / 2**30
        there = memory_gib(on_gpu)
        said = (
            f"memory: {_case(pl_module, batch)} takes at most {expected:.2f} of {there:.2f} GiB "
            f"(gradients and two moments per trained parameter included)"
        )
        if expected > WARN_FROM * there:
            rank_zero_warn(f"{said}. To need less, set {OPTIONS}")
        else:
            rank_zero_info(said)


def worst_case(module: GRPOModule, prompts: PromptBatch) -> None:
    """Go through a step on these prompts with completions of full length, for the memory that it takes.

    Nothing is drawn and nothing changes: no random number, no gradient, no count.
    """
    policy, generations, length = module.policy, module.num_generations, module.max_completion_length
    with torch.no_grad():
        with whole(policy):
            prompts, prefix = module.encode(prompts, see)
            policy(largest_step, prefix, generations, length, policy.decodes_static)
        shape = (len(prompts) * generations, length)
        ids = torch.zeros(shape, dtype=torch.int64, device=module.device)
        dtype = torch.promote_types(prefix.last_hidden.dtype, torch.float32)
        ones = torch.ones(shape, dtype=dtype, device=module.device)
        completions = Completions(ids, ones.bool(), ones, finished=ones[:, 0].bool())
        rollouts = Rollouts(prompts, completions, [], ones[:, :1], ones[:, 0], ones, [True] * len(prompts))
        rollouts.prefix = prefix if prefix.last_hidden.requires_grad else None
        del prefix
        if module.beta > 0:
            with policy.as_reference():
                rollouts.ref_logps = module.reference_logps(rollouts)
        if module.num_iterations > 1:
            rollouts.old_logps = torch.full_like(ones, float("nan"))
    loss = module.micro_loss(rollouts, 0, module.trainer.accumulate_grad_batches)
    if policy.sharded:  # the parameters here are not those that the loss was computed with
        loss.backward()
        module.zero_grad(set_to_none=True)
    else:  # DDP expects one backward() per step
        torch.autograd.grad(loss, module.trained(), allow_unused=True)
    module.statistics.pop()


def memory_gib(on_gpu: bool) -> float:
    """Memory of the GPU, else of the machine."""
    if on_gpu:
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _case(module: GRPOModule, batch: PromptBatch) -> str:
    return (
        f"the worst case ({len(batch)} prompts of up to {batch.input_ids.shape[1]} tokens, {module.num_generations} "
        f"completions each of {module.max_completion_length} tokens)"
    )
