"""The single-loop trainer: GRPO, SAMI and Sinkhorn in one loss and one backward pass.

    L = L_GRPO + lambda_sami * L_SAMI + lambda_ot * mean_layers max(0, S_eps - budget)                (eq. 7)

`EnigmaTrainer` is TRL's `GRPOTrainer` with three changes: the sampler keeps the K prompts of one question together (a
matched set), the forward is `enigma.llm.scoring`'s packed one and serves all three terms, and the two extra terms are
added to TRL's own loss. TRL's methods are called, never copied. Equations: docs/method.md, eq. 2 to 7.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, is_async_callable, use_adapter

from enigma.llm.config import EnigmaConfig
from enigma.llm.matched_sets import (
    Drift,
    MatchedSampler,
    MatchedScores,
    check_rows,
    drift,
    matched_sets,
    mean_logprob,
    own_scores,
    pad_tokens,
    prompts_and_completions,
    regroup,
    score_matched_sets,
    unpad,
)
from enigma.llm.sampling import draw_completions, kept_weights, merged_adapter
from enigma.llm.scoring import reasoning_tokens
from enigma.method.infonce import mutual_information_bounds, pointwise_mutual_information, sami_loss

# What this class relies on inside TRL. A test holds their signatures, so that a new release fails there.
TRL_METHODS = (
    *("_get_train_sampler", "_get_eval_sampler", "_prepare_inputs"),
    *("_generate_and_score_completions", "_generate_single_turn"),
    *("_get_per_token_logps_and_entropies", "_compute_loss"),
)


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
        ValueError: a data set without matched sets of K rows; `lambda_ot` without a reference model; dropout in the
            model, tools or an environment, a router's own loss, FSDP1 over weights of two kinds.
        RuntimeError: in training, an error of another process.
        TypeError: a configuration that is no `EnigmaConfig`.
        FloatingPointError: in training, a log-probability, loss or gradient that is not finite; names the step.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, EnigmaConfig):
            raise TypeError(f"args: found {type(self.args).__name__}, expected EnigmaConfig")
        for problem in self._problems():
            raise ValueError(problem)
        self._scores = None
        self._reference_hidden = None
        self.reward_funcs = [self._shared(function) for function in self.reward_funcs]
        if self.use_vllm:  # which is given the merged weights, and takes them apart again
            sync = self.vllm_generation.sync_weights
            self.vllm_generation.sync_weights = kept_weights(self.accelerator.unwrap_model(self.model))(sync)

    def _problems(self) -> Iterator[str]:
        """What the model, the data's tools or the launcher bring that would silently change the method, or fail late."""
        model = self.accelerator.unwrap_model(self.model)
        if self.args.lambda_ot > 0 and not self._has_reference():
            yield "lambda_ot: the Sinkhorn term needs a reference; pass `peft_config`, or set beta above 0"
        dropped = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        if dropped or getattr(model.config.get_text_config(), "attention_dropout", 0):
            yield "dropout: found some in the model, expected none: it would be noise in every bound; set lora_dropout to 0"
        if self.tools or self.environment_factories:
            yield "tools, environment_factory: found some, expected none: a tool's words would count as the policy's"
        if self.aux_loss_enabled:
            yield "router_aux_loss_coef: found the model's own, expected 0: packed texts have no router loss; set it to 0"
        kinds = {weight.dtype for weight in model.parameters()}
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version < 2 and len(kinds) > 1:
            yield (
                f"fsdp: found weights of {len(kinds)} dtypes, which FSDP1 cannot hold together; expected FSDP2; set "
                "fsdp_version to 2"
            )

    def _shared(self, function):
        """A reward whose error on one process is raised on all."""
        if isinstance(function, nn.Module) or is_async_callable(function):
            return function

        @functools.wraps(function, updated=())
        def shared(*args, **kwargs):
            with self._together():
                return function(*args, **kwargs)

        return shared

    @contextmanager
    def _together(self):
        """An error inside is raised on every process: the others would wait in the next reduction for one that has gone."""
        whole = False
        try:
            yield
            whole = True
        finally:
            failed = torch.tensor(float(not whole), device=self.accelerator.device)
            failed = self.accelerator.reduce(failed, reduction="sum") > 0
        if failed:
            raise RuntimeError("another process failed, and says why")

    # Sampling: a matched set stays whole.

    def _get_train_sampler(self, dataset=None) -> Sampler:
        return self._matched_sampler(
            self.train_dataset if dataset is None else dataset,
            generations=self.num_generations,
            sets_per_batch=self.args.generation_batch_size // self.args.matched_set_size,
            repeats=self.args.steps_per_generation,
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
        with self._together():
            check_rows(inputs, k, g)
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

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.use_vllm:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        with merged_adapter(model):
            return draw_completions(model, prompt_ids, self.max_completion_length, self.eos_token_ids), None

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
            longest = rollouts["completion_ids"].shape[1]
            with self.reference_model() as model:
                logps, _ = self._own_logps(model, *prompts_and_completions(rollouts), longest, entropy=False)
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
            # On the device: NCCL reduces no tensor of the CPU.
            norm = torch.tensor(float(logs["grad_norm"]), device=self.accelerator.device)
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
        images = ("pixel_values", "token_type_ids", "mm_token_type_ids")
        if any(kwargs.get(key) is not None for key in images):
            raise ValueError("EnigmaTrainer scores text only; the inputs hold images")
        if self._scores is not None:
            return self._scores.logps, self._scores.entropy, None
        split = input_ids.shape[1] - logits_to_keep
        prompts = unpad(input_ids[:, :split], attention_mask[:, :split])
        completions = unpad(input_ids[:, split:], attention_mask[:, split:])
        logps, entropies = self._own_logps(model, prompts, completions, logits_to_keep, compute_entropy)
        return logps, entropies, None

    def _own_logps(self, model, prompts, completions, longest, entropy) -> tuple[Tensor, Tensor | None]:
        """Each completion under its own prompt alone, (B, longest). Keeps the hidden states for `_reference`."""
        with self.accelerator.autocast():
            scores, cells = own_scores(model, prompts, completions, tuple(self.args.ot_layers), entropy)
        self._reference_hidden = pad_tokens(scores.hidden[cells], longest)
        entropies = pad_tokens(scores.entropy[cells], longest) if entropy else None
        return pad_tokens(scores.logps[cells], longest), entropies

    # The loss.

    def _compute_loss(self, model, inputs):
        args, mode = self.args, "train" if self.model.training else "eval"
        options = dict(layers=tuple(args.ot_layers), cross=args.lambda_sami > 0 or self._logs_all())
        options["cross_gradient"] = args.lambda_sami > 0 and torch.is_grad_enabled()
        with self.accelerator.autocast():
            self._scores = score_matched_sets(model, inputs, args.num_principles, **options)
        try:
            read = self._scores.logps if self._scores.matrix is None else self._scores.matrix
            self._stop_unless_finite("log-probability of a completion", read, "under some principle")
            grpo = super()._compute_loss(model, inputs)
            scores = self._scores
        finally:
            self._scores = None
        divergence, bounded, unconverged = self._divergence(scores, inputs)
        penalty = torch.relu(bounded - args.ot_budget).mean()
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
        places = torch.arange(ids.shape[1], device=ids.device)
        return places < torch.tensor(lengths, device=ids.device)[:, None]

    def _divergence(self, scores: MatchedScores, inputs) -> Drift:
        """(sets, layers): how far the policy's hidden states are from the reference's; NaN where nobody asked it."""
        args = self.args
        if "reference_hidden" not in inputs:
            missing = scores.logps.new_full((scores.sets, len(args.ot_layers)), float("nan"))
            return Drift(missing, missing, missing.new_zeros(()))
        hidden = scores.hidden if args.lambda_ot > 0 else scores.hidden.detach()
        seed, reference = args.seed + self.state.global_step, inputs["reference_hidden"]
        options = dict(epsilon=args.ot_epsilon, max_points=args.ot_points, seed=seed)
        return drift(hidden, reference, scores.mask, scores.sets, args.drift, **options)

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
