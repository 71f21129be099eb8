"""DPO on preference pairs by format score, with the SAMI term beside it.

    L = L_DPO + lambda_sami L_SAMI

L_DPO is TRL's own (arXiv 2305.18290). Pairs: of the completions that the untrained model gave to one question under one
principle, the best and the worst by graded format; a group without spread gives none. The SAMI term is that of
`enigma.llm.trainer` on the same completions. Departures [D]: the completions are drawn once, before training, as many as
GRPO draws in all its steps; so both terms are off-policy, and nothing that is learned is ever sampled.
"""

from collections.abc import Sequence

import torch
from trl import DPOTrainer

from enigma.llm.matched_sets import mean_logprob
from enigma.llm.scoring import completion_logprobs
from enigma.method.infonce import sami_loss
from enigma.method.rewards import graded_format


def preference_pairs(rows: Sequence[dict]) -> list[dict]:
    """{prompt_ids, chosen_ids, rejected_ids} of each (question, principle) whose completions differ in graded format.

    `rows`: of `enigma.llm.sampling.sampled_rows`. The tokens are those that were sampled.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["matched_set"], row["principle"]), []).append(row)
    pairs = []
    for group in groups.values():
        marks = [graded_format(row["completion"]) for row in group]
        best, worst = (group[marks.index(end(marks))] for end in (max, min))
        if max(marks) > min(marks):
            ids = {"chosen_ids": best["completion_ids"], "rejected_ids": worst["completion_ids"]}
            pairs.append({"prompt_ids": best["prompt_ids"], **ids})
    return pairs


class PreferenceTrainer(DPOTrainer):
    """TRL's DPO on rows that are token ids already, plus lambda_sami times the SAMI term on one matched set a step."""

    def __init__(self, *args, rows: Sequence[dict], lambda_sami: float, temperature: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.lambda_sami, self.temperature = lambda_sami, temperature
        sets: dict[str, list[dict]] = {}
        for row in rows:
            sets.setdefault(row["matched_set"], []).append(row)
        self.sets = list(sets.values())

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.lambda_sami == 0:
            return found
        term = self.lambda_sami * self.sami(model, self.sets[self.state.global_step % len(self.sets)])
        self._metrics["train"]["loss/sami"].append(term.item())
        return (found[0] + term, found[1]) if return_outputs else found + term

    def sami(self, model, rows: list[dict]):
        """The SAMI loss of one matched set, nats (docs/method.md, eq. 5)."""
        device = self.accelerator.device
        names = list(dict.fromkeys(row["principle"] for row in rows))
        prompts = {row["principle"]: torch.tensor(row["prompt_ids"], device=device) for row in rows}
        completions = [torch.tensor(row["completion_ids"], device=device) for row in rows]
        with self.accelerator.autocast():
            scores = completion_logprobs(model, [prompts[name] for name in names], completions)
        critic = mean_logprob(scores.logps, scores.mask[0]) / self.temperature
        source = torch.tensor([names.index(row["principle"]) for row in rows], device=device)
        return sami_loss(critic, source)
