"""The single-loop trainer: GRPO, SAMI and Sinkhorn in one loss and one backward pass.

    L = L_GRPO + lambda_sami * L_SAMI + lambda_ot * mean_layers max(0, S_eps - budget)                (eq. 7)

`EnigmaTrainer` is TRL's `GRPOTrainer` with three changes: the sampler keeps the K prompts of one question together (a
matched set), the forward is `enigma.llm.scoring`'s packed one and serves all three terms, and the two extra terms are
added to TRL's own loss. TRL's methods are called, never copied. Equations: docs/method.md, sections 3 to 5.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.data import Sampler
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, split_tensor_dict, use_adapter

from enigma.llm.sampling import merged_adapter, shared_prompts
from enigma.llm.scoring import completion_logprobs, reasoning_tokens
from enigma.method.infonce import mutual_information_bounds, pointwise_mutual_information, sami_loss
from enigma.method.transport import solve_divergence

# What this class relies on inside TRL. A test holds their signatures, so that a new release fails there.
TRL_METHODS = (
    "_get_train_sampler",
    "_get_eval_sampler",
    "_prepare_inputs",
    "_generate_and_score_completions",
    "_generate_single_turn",
    "_get_per_token_logps_and_entropies",
    "_compute_loss",
)


@dataclass
class EnigmaConfig(GRPOConfig):
    """`trl.GRPOConfig` with the coefficients of the two extra terms.

    The defaults of `importance_sampling_level`, `loss_type` and `scale_rewards` give GRPO with a sequence-level ratio
    and advantages that are centred in the group and not divided by its deviation (docs/method.md, eq. 2).
    """

    importance_sampling_level: str = field(default="sequence", metadata={"help": "The GSPO ratio."})
    loss_type: str = field(default="grpo", metadata={"help": "As in TRL."})
    scale_rewards: str = field(
        default="none", metadata={"help": "As in TRL. `none` is the Dr. GRPO advantage."}
    )
    num_principles: int = field(
        default=2, metadata={"help": "K: prompts in a matched set, one for each principle. At least 2."}
    )
    lambda_sami: float = field(default=0.0, metadata={"help": "Coefficient of the symmetric InfoNCE term."})
    sami_temperature: float = field(default=1.0, metadata={"help": "Divides the critic, nats per token."})
    sami_span: str = field(
        default="completion", metadata={"help": "Tokens the critic reads: `completion` or `reasoning`."}
    )
    lambda_ot: float = field(default=0.0, metadata={"help": "Coefficient of the Sinkhorn term."})
    ot_layers: list[int] = field(
        default_factory=lambda: [-1],
        metadata={"help": "Hidden states to bound, as indices into transformers' `hidden_states`."},
    )
    ot_epsilon: float = field(
        default=0.05, metadata={"help": "Entropic regularisation, in units of the reference's own mean cost."}
    )
    ot_budget: float = field(
        default=0.0, metadata={"help": "Drift that costs nothing. 0 is the plain regulariser."}
    )
    ot_points: int = field(
        default=256, metadata={"help": "Tokens of a matched set that enter the Sinkhorn term."}
    )
    reference_steps: int = field(
        default=1,
        metadata={
            "help": "What is only logged costs a forward: the reference's view where neither `lambda_ot` nor `beta` needs it, "
            "and the scores under other principles where `lambda_sami` is 0. They are taken every so many steps."
        },
    )
    legibility_steps: int = field(
        default=0,
        metadata={
            "help": "Every so many steps the row bound is also taken with the reference as critic. 0: never."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        expect = {
            "num_principles": (self.num_principles >= 2, "at least 2"),
            "lambda_sami": (self.lambda_sami >= 0, "0 or more"),
            "lambda_ot": (self.lambda_ot >= 0, "0 or more"),
            "sami_temperature": (self.sami_temperature > 0, "more than 0"),
            "sami_span": (self.sami_span in ("completion", "reasoning"), "completion or reasoning"),
            "ot_layers": (len(self.ot_layers) > 0, "at least one layer"),
            "ot_epsilon": (self.ot_epsilon > 0, "more than 0"),
            "ot_budget": (self.ot_budget >= 0, "0 or more"),
            "ot_points": (self.ot_points >= 2, "2 or more"),
            "legibility_steps": (self.legibility_steps >= 0, "0 or more"),
            "reference_steps": (self.reference_steps >= 1, "1 or more"),
            # The bounds hold for completions drawn from the policy itself.
            "temperature": (self.temperature == 1.0, "1.0: the bounds need on-policy samples"),
            "top_p": (self.top_p == 1.0, "1.0: the bounds need on-policy samples"),
            "top_k": (not self.top_k, "0: the bounds need on-policy samples"),
            "entropy_coef": (
                self.entropy_coef == 0 and not self.use_adaptive_entropy,
                "0: not supported here",
            ),
            "per_device_train_batch_size": (
                self.per_device_train_batch_size % self.matched_set_size == 0,
                f"a multiple of {self.matched_set_size} = num_principles x num_generations, or a set is split",
            ),
        }
        for name, (holds, expected) in expect.items():
            if not holds:
                raise ValueError(f"EnigmaConfig.{name}: found {getattr(self, name)!r}, expected {expected}")

    @property
    def matched_set_size(self) -> int:
        """Completions of one question: K principles times G generations."""
        return self.num_principles * self.num_generations


class EnigmaTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` whose loss also holds the SAMI and the Sinkhorn term.

    The data set has one row for each (question, principle): a column `prompt`, as in TRL, and a column `matched_set`,
    the same for the K rows of one question and for no others. `matched_prompts` builds such rows.

    Logged beside TRL's own metrics, every step: `loss/grpo`, `loss/sami`, `loss/ot` (after their coefficients),
    `sami/row_bound`, `sami/column_bound` (nats, on the policy's own samples), `ot/divergence` (before the hinge,
    unitless), `ot/unconverged` (share of solves that stopped early), `reference/kl` (nats per token),
    `reference/perplexity` of the completions under the reference, and `grad_clipped` (1 where the gradient was longer
    than `max_grad_norm`). Every `legibility_steps` steps also `sami/reference_row_bound`: the row bound with the
    reference as critic, which stays where it was while `sami/row_bound` rises if the principles go into a private code.

    Raises:
        ValueError: a data set without matched sets of K rows; `lambda_ot` without a reference model.
        TypeError: a configuration that is no `EnigmaConfig`.
        FloatingPointError: in training, a log-probability, loss or gradient that is not finite; names the step.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, EnigmaConfig):
            raise TypeError(f"args: found {type(self.args).__name__}, expected EnigmaConfig")
        if self.args.lambda_ot > 0 and not self._has_reference():
            raise ValueError(
                "lambda_ot: the Sinkhorn term needs a reference; pass `peft_config`, or set beta above 0"
            )
        self._scores = None
        self._reference_hidden = None

    # Sampling: a matched set stays whole.

    def _get_train_sampler(self, dataset=None) -> Sampler:
        return self._matched_sampler(
            self.train_dataset if dataset is None else dataset,
            generations=self.num_generations,
            sets_per_batch=self.args.generation_batch_size // self.args.matched_set_size,
            repeats=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
        )

    def _get_eval_sampler(self, eval_dataset) -> Sampler:
        return self._matched_sampler(eval_dataset, self.num_generations_eval, 1, 1, shuffle=True)

    def _matched_sampler(self, dataset, generations, sets_per_batch, repeats, shuffle) -> Sampler:
        sets = matched_sets(dataset, self.args.num_principles)
        if len(sets) < sets_per_batch:
            raise ValueError(
                f"the data set: found {len(sets)} matched sets, expected at least {sets_per_batch}, which one generation "
                "batch takes over all processes; add questions or lower generation_batch_size"
            )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = RepeatSampler(range(len(sets)), 1, sets_per_batch, repeats, shuffle=shuffle, seed=seed)
        return MatchedSampler(order, sets, generations)

    # Rollouts: where each row belongs, and the reference's view of it.

    def _generate_and_score_completions(self, inputs):
        k = self.args.num_principles
        g = self.num_generations if self.model.training else self.num_generations_eval
        _check_rows(inputs, k, g)
        output = super()._generate_and_score_completions(inputs)
        position = torch.arange(len(inputs), device=output["completion_ids"].device)
        output["position"] = position
        output["set_index"] = position // (k * g)
        output["principle_index"] = (position // g) % k
        if self._has_reference():
            if self.args.lambda_ot > 0 or self.beta > 0 or self._logs_all():
                output |= self._reference(output)
            self._log_reference_bound(output)
        return output

    def _generate_single_turn(self, *args, **kwargs):
        model = self.accelerator.unwrap_model(self.model)
        if (
            self.is_fsdp_enabled
            or self.is_deepspeed_enabled
            or self.use_vllm
            or self.use_transformers_continuous_batching
        ):
            return super()._generate_single_turn(*args, **kwargs)
        with merged_adapter(model), shared_prompts(model):
            return super()._generate_single_turn(*args, **kwargs)

    def _prepare_inputs(self, generation_batch):
        """TRL shuffles the rollouts; matched sets are put together again, in the order of their generation."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        if self._buffered_inputs is not before:
            self._buffered_inputs = regroup(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _logs_all(self) -> bool:
        """Whether this step also measures what no term of the loss needs."""
        return not self.model.training or self.state.global_step % self.args.reference_steps == 0

    def _has_reference(self) -> bool:
        return self.ref_model is not None or hasattr(self.accelerator.unwrap_model(self.model), "peft_config")

    @torch.no_grad()
    def _reference(self, rollouts: dict) -> dict[str, Tensor]:
        """Log-probabilities (B, T) and hidden states (B, T, layers, d) of the completions under the reference.

        With `beta` above 0 TRL has just asked for them, under the very same weights.
        """
        if self.beta == 0.0:
            width = rollouts["completion_ids"].shape[1]
            with self.reference_model() as model:
                logps, _ = self._own_logps(model, *_prompts_and_completions(rollouts), width, entropy=False)
        else:
            logps = rollouts["ref_per_token_logps"]
        return {"reference_logps": logps, "reference_hidden": self._reference_hidden}

    @contextmanager
    def reference_model(self):
        """Inside, the model that was not trained: TRL's reference, or the policy with its adapter disabled."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            yield self.model

    @torch.no_grad()
    def _log_reference_bound(self, rollouts: dict) -> None:
        """Can the reference tell from the completions which principle they were written under?"""
        every = self.args.legibility_steps
        if not self.model.training or not every or self.state.global_step % every:
            return
        with self.reference_model() as model, self.accelerator.autocast():
            scores = score_matched_sets(
                model, rollouts, self.args.num_principles, layers=(), cross_gradient=False
            )
        self._log_terms("train", {"sami/reference_row_bound": self._bounds(scores, rollouts)["row_bound"]})

    def log(self, logs: dict, *args, **kwargs) -> None:
        if "grad_norm" in logs:
            norm = torch.tensor(
                float(logs["grad_norm"]), device=self.accelerator.device
            )  # NCCL reduces no CPU tensor
            self._stop_unless_finite("gradient", norm, "its norm")
            logs["grad_clipped"] = float(0 < self.args.max_grad_norm < logs["grad_norm"])
        super().log(logs, *args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        **kwargs,
    ):
        """TRL's hook for its own loss: the packed forward's values in place of a dense forward's."""
        if any(
            kwargs.get(key) is not None for key in ("pixel_values", "token_type_ids", "mm_token_type_ids")
        ):
            raise ValueError("EnigmaTrainer scores text only; the inputs hold images")
        if self._scores is not None:
            return self._scores.logps, self._scores.entropy, None
        split = input_ids.shape[1] - logits_to_keep
        prompts = _unpad(input_ids[:, :split], attention_mask[:, :split])
        completions = _unpad(input_ids[:, split:], attention_mask[:, split:])
        logps, entropies = self._own_logps(model, prompts, completions, logits_to_keep, compute_entropy)
        return logps, entropies, None

    def _own_logps(self, model, prompts, completions, width, entropy) -> tuple[Tensor, Tensor | None]:
        """Each completion under its own prompt alone, (B, width). Keeps the hidden states for `_reference`."""
        with self.accelerator.autocast():
            scores, cells = own_scores(model, prompts, completions, tuple(self.args.ot_layers), entropy)
        self._reference_hidden = _width(scores.hidden[cells], width)
        return _width(scores.logps[cells], width), _width(scores.entropy[cells], width) if entropy else None

    # The loss.

    def _compute_loss(self, model, inputs):
        args, mode = self.args, "train" if self.model.training else "eval"
        with self.accelerator.autocast():
            self._scores = score_matched_sets(
                model,
                inputs,
                args.num_principles,
                layers=tuple(args.ot_layers),
                cross_gradient=args.lambda_sami > 0 and torch.is_grad_enabled(),
                cross=args.lambda_sami > 0 or self._logs_all(),
            )
        try:
            read = self._scores.logps if self._scores.matrix is None else self._scores.matrix
            self._stop_unless_finite("log-probability of a completion", read, "under some principle")
            grpo = super()._compute_loss(model, inputs)
            scores = self._scores
        finally:
            self._scores = None
        divergence, unconverged = self._divergence(scores, inputs)
        penalty = torch.relu(divergence - args.ot_budget).mean()
        # TRL's loss is already divided for gradient accumulation; the extra terms are means over matched sets.
        scale = self.current_gradient_accumulation_steps if mode == "train" else 1
        terms = {"loss/grpo": grpo * scale, **self._reference_metrics(scores, inputs)}
        extra = grpo.new_zeros(())
        if scores.matrix is not None:
            sami = self._sami(scores, inputs)
            bounds = self._bounds(scores, inputs)
            terms |= {
                "loss/sami": args.lambda_sami * sami,
                **{f"sami/{name}": bounds[name] for name in bounds},
            }
            if args.lambda_sami > 0:
                extra = extra + args.lambda_sami * sami
        if "reference_hidden" in inputs:
            terms |= {
                "loss/ot": args.lambda_ot * penalty,
                "ot/divergence": divergence.mean(),
                "ot/unconverged": unconverged,
            }
            if args.lambda_ot > 0:
                extra = extra + args.lambda_ot * penalty
        loss = grpo + extra / scale
        self._log_terms(mode, terms)
        self._stop_unless_finite(
            "loss", loss, ", ".join(f"{name} {value.item()}" for name, value in terms.items())
        )
        return loss

    def _stop_unless_finite(self, what: str, values: Tensor, where: str) -> None:
        # Together, or the other processes would wait for one that has stopped.
        if self.accelerator.reduce((~torch.isfinite(values)).sum(), reduction="sum") > 0:
            raise FloatingPointError(f"step {self.state.global_step}: the {what} is not finite ({where})")

    def _sami(self, scores: MatchedScores, inputs) -> Tensor:
        """The SAMI loss on the training critic (mean log-probability per token), nats."""
        source = inputs["principle_index"].view(scores.sets, -1)
        mask = scores.mask
        if self.args.sami_span == "reasoning":
            mask = mask & self._reasoning_mask(inputs)
        critics = (
            mean_logprob(matrix, own) / self.args.sami_temperature
            for matrix, own in zip(scores.matrix, mask.view(scores.sets, -1, mask.shape[1]), strict=True)
        )
        return torch.stack([sami_loss(c, s) for c, s in zip(critics, source, strict=True)]).mean()

    @torch.no_grad()
    def _bounds(self, scores: MatchedScores, inputs) -> dict[str, Tensor]:
        """The mutual-information bounds on the metric critics (summed log-probability, pointwise information), nats."""
        totals = (scores.matrix * scores.mask.view(scores.sets, 1, -1, scores.mask.shape[1])).sum(-1)
        bounds = [
            mutual_information_bounds(pointwise_mutual_information(total.T), source)
            for total, source in zip(totals, inputs["principle_index"].view(scores.sets, -1), strict=True)
        ]
        return {
            f"{name}_bound": torch.stack([getattr(b, name) for b in bounds]).mean()
            for name in ("row", "column")
        }

    def _reasoning_mask(self, inputs) -> Tensor:
        """(B, T) bool: tokens up to the end of the reasoning span."""
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        lengths = [
            reasoning_tokens(self._tokenizer, row[keep.bool()].tolist()) for row, keep in zip(ids, mask)
        ]
        return (
            torch.arange(ids.shape[1], device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
        )

    def _divergence(self, scores: MatchedScores, inputs) -> tuple[Tensor, Tensor]:
        """(sets, layers): Sinkhorn divergence between the policy's and the reference's hidden states; and the share
        of them whose solver stopped before its tolerance."""
        args = self.args
        if "reference_hidden" not in inputs:
            missing = scores.logps.new_full((scores.sets, len(args.ot_layers)), float("nan"))
            return missing, missing.new_zeros(())
        hidden = scores.hidden if args.lambda_ot > 0 else scores.hidden.detach()
        solved = []
        for rows in torch.arange(len(scores.mask)).view(scores.sets, -1):
            keep = scores.mask[rows]
            policy, reference = hidden[rows][keep], inputs["reference_hidden"][rows][keep]
            drawn = dict(max_points=args.ot_points, seed=args.seed + self.state.global_step)
            for i in range(len(args.ot_layers)):
                solved.append(
                    solve_divergence(policy[:, i], reference[:, i], epsilon=args.ot_epsilon, **drawn)
                )
        values = torch.stack([s.value for s in solved]).view(scores.sets, -1)
        return values, values.new_tensor([not s.converged for s in solved]).mean()

    @torch.no_grad()
    def _reference_metrics(self, scores: MatchedScores, inputs) -> dict[str, Tensor]:
        """KL to the reference (the k3 estimate, nats per token) and perplexity under it."""
        if "reference_logps" not in inputs:
            return {}
        reference = inputs["reference_logps"][scores.mask]
        difference = reference - scores.logps[scores.mask]
        sums = [(torch.exp(difference) - difference - 1).sum(), reference.sum(), scores.mask.sum()]
        # Over the tokens of all processes, of which each may have another number.
        kl, logps, tokens = self.accelerator.reduce(torch.stack([s.float() for s in sums]), reduction="sum")
        return {"reference/kl": kl / tokens, "reference/perplexity": torch.exp(-logps / tokens)}

    @torch.no_grad()
    def _log_terms(self, mode: str, terms: dict[str, Tensor]) -> None:
        names = list(terms)
        values = torch.stack([terms[name].detach().float() for name in names])
        values = self.accelerator.reduce(values, reduction="mean")
        for name, value in zip(names, values.tolist(), strict=True):
            self._metrics[mode][name].append(value)


@dataclass
class MatchedScores:
    """The matched sets of a batch, B = sets x N completions, N = K x G."""

    logps: Tensor  # (B, T) under the completion's own prompt, with gradient
    entropy: Tensor  # (B, T)
    hidden: Tensor | None  # (B, T, layers, d) under the own prompt, with gradient
    matrix: Tensor | None  # (sets, K, N, T) under every prompt of the set, where asked for
    mask: Tensor  # (B, T) bool
    sets: int


def score_matched_sets(
    model, inputs: dict, k: int, *, layers: tuple[int, ...], cross_gradient: bool, cross: bool = True
) -> MatchedScores:
    """Score every completion of a batch under every prompt of its matched set.

    `inputs` holds TRL's rollouts, rows ordered by set, then principle, then generation (`set_index` and
    `principle_index` say so). With `cross_gradient` one packed forward serves all; without it the completions under
    other prompts, which then are only logged, are scored without gradient, and not at all without `cross`. All values in
    nats.
    """
    prompts, completions = _prompts_and_completions(inputs)
    b, t = inputs["completion_ids"].shape
    sets = len(inputs["set_index"].unique())
    n = b // sets
    g = n // k
    _check_order(inputs, sets, k, g)
    firsts = [prompts[i] for i in range(0, b, g)]
    row = torch.arange(b, device=inputs["completion_ids"].device)
    own = (row // g, row % g)
    if cross_gradient:
        groups = [list(range(q * n, (q + 1) * n)) for q in range(sets) for _ in range(k)]
        scores = completion_logprobs(model, firsts, completions, groups, layers=layers, entropy=True)
        matrix = scores.logps.view(sets, k, n, -1)
        own = (row // g, row % n)
    else:
        groups = [list(range(p * g, (p + 1) * g)) for p in range(sets * k)]
        scores = completion_logprobs(model, firsts, completions, groups, layers=layers, entropy=True)
        matrix = _add_cross_scores(model, firsts, completions, scores.logps, sets, k, g) if cross else None
    return MatchedScores(
        logps=_width(scores.logps[own], t),
        entropy=_width(scores.entropy[own], t),
        hidden=_width(scores.hidden[own], t) if layers else None,
        matrix=None if matrix is None else _width(matrix, t, dim=3),
        mask=inputs["completion_mask"].bool(),
        sets=sets,
    )


@torch.no_grad()
def _add_cross_scores(model, prompts, completions, own: Tensor, sets: int, k: int, g: int) -> Tensor:
    """The (sets, K, N, T) matrix from own scores (sets x K, G, T) and a forward without gradient for the others."""
    n = k * g
    others = [[q * n + i for i in range(n) if i // g != p] for q in range(sets) for p in range(k)]
    cross = completion_logprobs(model, prompts, completions, others).logps
    width = max(cross.shape[-1], own.shape[-1])
    matrix = own.new_zeros(sets, k, n, width)
    for p in range(sets * k):
        q, c = divmod(p, k)
        mine = torch.arange(c * g, (c + 1) * g)
        rest = torch.tensor([i - q * n for i in others[p]])
        matrix[q, c, mine, : own.shape[-1]] = own[p].detach()
        matrix[q, c, rest, : cross.shape[-1]] = cross[p]
    return matrix


def own_scores(model, prompts, completions, layers, entropy):
    """Score each completion under its own prompt; equal neighbouring prompts are one.

    Returns the `Scores` and, for indexing them, the row and the slot of each completion.
    """
    rows, slots, groups, unique = [], [], [], []
    for i, prompt in enumerate(prompts):
        if not unique or not torch.equal(prompt, unique[-1]):
            unique.append(prompt)
            groups.append([])
        rows.append(len(unique) - 1)
        slots.append(len(groups[-1]))
        groups[-1].append(i)
    scores = completion_logprobs(model, unique, completions, groups, layers=layers, entropy=entropy)
    return scores, (torch.tensor(rows), torch.tensor(slots))


def mean_logprob(logps: Tensor, mask: Tensor) -> Tensor:
    """The training critic: (K, N, T) log-probabilities to (N, K) means over the tokens of `mask` (N, T), nats.

    Source: docs/method.md, section 4 (as the SAMI reference, arXiv 2404.14313).
    """
    return ((logps * mask).sum(-1) / mask.sum(-1).clamp(min=1)).T


class MatchedSampler(Sampler):
    """Rows of whole matched sets, each row repeated for its generations. `order` yields indices of sets."""

    def __init__(self, order: Sampler, sets: list[list[int]], generations: int):
        self.order, self.sets, self.generations = order, sets, generations

    def __iter__(self):
        for index in self.order:
            for row in self.sets[index]:
                yield from [row] * self.generations

    def __len__(self) -> int:
        return len(self.order) * len(self.sets[0]) * self.generations


def matched_sets(dataset, k: int) -> list[list[int]]:
    """Row indices of each matched set, in order of first appearance.

    Raises:
        ValueError: no column `matched_set`, or a set that has not exactly K rows.
    """
    if "matched_set" not in dataset.column_names:
        raise ValueError(f"the data set needs a column `matched_set`; found {sorted(dataset.column_names)}")
    names = dataset["matched_set"]
    counts = Counter(names)
    for name, count in counts.items():
        if count != k:
            raise ValueError(f"matched_set {name!r} has {count} rows, expected num_principles = {k}")
    sets: dict = {name: [] for name in counts}
    for i, name in enumerate(names):
        sets[name].append(i)
    return list(sets.values())


def regroup(batches: list[dict]) -> list[dict]:
    """Put shuffled rollouts back in the order of their generation, and split them into as many batches again.

    The Sinkhorn term takes tokens by their place, so the order inside a set counts too: the shuffle differs between
    processes.
    """
    merged = {key: _merge([batch[key] for batch in batches]) for key in batches[0]}
    order = torch.argsort(merged["position"])
    return split_tensor_dict({key: _take(value, order) for key, value in merged.items()}, len(batches))


def _merge(values: list):
    if isinstance(values[0], Tensor) and values[0].ndim > 0:
        return torch.cat(values)
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    return values[0]


def _take(value, order: Tensor):
    if isinstance(value, Tensor) and value.ndim > 0:
        return value[order]
    if isinstance(value, list):
        return [value[i] for i in order.tolist()]
    return value


def _check_rows(rows: list[dict], k: int, g: int) -> None:
    """A process's share of a generation batch: whole matched sets, each prompt g times in turn.

    Sampler and data loader give just that; a loader that splits batches over processes would cut sets apart.
    """
    for start in range(0, len(rows), k * g):
        block = rows[start : start + k * g]
        one = len(block) == k * g and len({row["matched_set"] for row in block}) == 1
        same_as_before = [a["prompt"] == b["prompt"] for a, b in pairwise(block)]
        if not one or same_as_before != [i % g > 0 for i in range(1, k * g)]:
            raise ValueError(
                f"generation batch: rows {start} to {start + len(block) - 1} are not one matched set of {k} prompts x "
                f"{g} generations; leave split_batches and dispatch_batches of accelerator_config alone, and make "
                f"per_device_eval_batch_size a multiple of {k * g}"
            )


def _check_order(inputs: dict, sets: int, k: int, g: int) -> None:
    found = inputs["set_index"], inputs["principle_index"]
    principles = torch.arange(k, device=found[1].device).repeat_interleave(g).repeat(sets)
    if not torch.equal(found[0], found[0].unique().repeat_interleave(k * g)) or not torch.equal(
        found[1], principles
    ):
        raise ValueError("a matched set was split or shuffled: every batch must hold whole sets in order")


def _prompts_and_completions(inputs: dict) -> tuple[list[Tensor], list[Tensor]]:
    return (
        _unpad(inputs["prompt_ids"], inputs["prompt_mask"]),
        _unpad(inputs["completion_ids"], inputs["completion_mask"]),
    )


def _unpad(ids: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[keep] for row, keep in zip(ids, mask.bool(), strict=True)]


def _width(values: Tensor, t: int, dim: int = 1) -> Tensor:
    """Pad the token dimension with zeros to the batch's own width."""
    missing = t - values.shape[dim]
    if missing == 0:
        return values
    shape = list(values.shape)
    shape[dim] = missing
    return torch.cat([values, values.new_zeros(shape)], dim=dim)
