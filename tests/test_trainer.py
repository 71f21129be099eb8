"""The trainer against TRL's own, and against a slow recomputation by dense forwards, one for each pair."""

import dataclasses
import inspect
import math
from collections import Counter

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import MixtralConfig, MixtralForCausalLM, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from enigma.llm.config import FIXED, EnigmaConfig
from enigma.llm.trainer import TRL_METHODS, EnigmaTrainer
from enigma.method.infonce import sami_loss
from enigma.method.transport import solve_divergence

# What of TRL's the defaults here are.
GRPO = dict(importance_sampling_level="sequence", loss_type="grpo", scale_rewards="none")
QUESTIONS = ["why is it so?", "how far is that", "what now?", "who did it?", "where to", "when was it done"]
PRINCIPLES = ["be brief", "give one example"]


def rows(questions=QUESTIONS, principles=PRINCIPLES):
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"{q} {c}"}], "matched_set": q}
            for q in questions
            for c in principles
        ]
    )


def reward(completions, **kwargs):
    """Something with spread that the policy can move: the share of lower-case letters."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c.islower() for c in text) / (len(text) + 1) for text in texts]


def rollouts(prompts, trainer):
    """Completions that depend on the prompt and its repetition alone, so that any batching sees the same ones."""
    tokenizer = trainer.processing_class
    prompt_ids, completion_ids, seen = [], [], {}
    for prompt in prompts:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text)["input_ids"]
        repeat = seen[tuple(ids)] = seen.get(tuple(ids), -1) + 1
        generator = torch.Generator().manual_seed(sum(ids) * 31 + repeat)
        length = int(torch.randint(2, 9, (1,), generator=generator))
        prompt_ids.append(ids)
        completion_ids.append(torch.randint(2, 90, (length,), generator=generator).tolist())
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def settings(tmp_path, **changes):
    base = dict(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=8,
        max_steps=3,
        learning_rate=0.5,
        # Adam divides by the gradient's own size and would turn rounding into steps.
        optim="sgd",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        shuffle_dataset=False,
        seed=3,
        disable_tqdm=True,
    )
    return base | changes


def enigma(tokenizer, model, config, data=None, **more):
    return EnigmaTrainer(model, reward, config, data or rows(), processing_class=tokenizer, **more)


def lora(*modules, **options):
    return LoraConfig(r=4, target_modules=list(modules), **options)


def trained(trainer):
    trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same(a, b, relative):
    for name in b:
        scale = float(b[name].abs().max())
        assert float((a[name] - b[name]).abs().max()) <= relative * max(scale, 1e-3), name


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_without_extra_terms_it_is_trl(tmp_path, toy_model, toy_tokenizer, beta):
    """Every parameter after three steps, own sampling and all."""
    common = settings(tmp_path, beta=beta)
    # TRL can only load a reference model from a folder or hub; LoRA needs none.
    peft = lora("q_proj", "v_proj", init_lora_weights=False) if beta else None
    config = GRPOConfig(**common, **GRPO)
    plain = GRPOTrainer(toy_model(), reward, config, rows(), processing_class=toy_tokenizer, peft_config=peft)
    start = {name: p.detach().clone() for name, p in plain.model.named_parameters()}
    expected = trained(plain)
    # Built after the first run has ended, since a trainer seeds the global generator when it is built.
    trainer = enigma(toy_tokenizer, toy_model(), EnigmaConfig(**common), peft_config=peft)
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, start[name]), name
    found = trained(trainer)
    assert any(not torch.allclose(start[name], expected[name]) for name in start)
    assert_same(found, expected, 1e-5)


def test_gradient_accumulation_gives_the_same_update(tmp_path, toy_model, toy_tokenizer):
    """Of all weights; the layers' second forward in the backward pass, as the paper profile has it, changes nothing either."""

    def run(batch, accumulation, checkpointing):
        torch.manual_seed(0)
        changes = dict(gradient_accumulation_steps=accumulation, gradient_checkpointing=checkpointing)
        changes |= dict(per_device_train_batch_size=batch, lambda_sami=0.5)
        config = EnigmaConfig(**settings(tmp_path, **changes))
        return trained(enigma(toy_tokenizer, toy_model(), config, rollout_func=rollouts))

    assert_same(run(8, 4, True), run(32, 1, False), 1e-5)


# The Sinkhorn term is exact up to the tolerance of its solver.
@pytest.mark.parametrize(("lambda_ot", "tolerance"), [(0.0, 1e-7), (2.0, 1e-4)])
def test_total_equals_a_slow_recomputation(tmp_path, toy_model, toy_tokenizer, lambda_ot, tolerance):
    terms = dict(lambda_sami=0.7, lambda_ot=lambda_ot, beta=0.03)
    terms |= dict(ot_layers=[1, -1], ot_epsilon=0.1, ot_budget=0.001)
    config = EnigmaConfig(**settings(tmp_path, per_device_train_batch_size=16, max_steps=2), **terms)
    peft = lora("q_proj", "v_proj", init_lora_weights=False)
    model = toy_model(dtype=torch.float64)
    trainer = enigma(toy_tokenizer, model, config, peft_config=peft, rollout_func=rollouts)
    batch = [row for row in rows().select(range(4)) for _ in range(4)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._prepare_inputs(batch)
    loss = trainer._compute_loss(trainer.model, inputs)
    slow = slow_loss(trainer.model, toy_tokenizer, rollouts([row["prompt"] for row in batch], trainer), terms)
    assert math.isclose(loss.item(), slow.item(), rel_tol=tolerance, abs_tol=1e-6)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    found, expected = (torch.autograd.grad(value, parameters) for value in (loss, slow))
    scale = max(float(g.abs().max()) for g in expected)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max()) / scale < 10 * tolerance


def slow_loss(model, tokenizer, sampled, terms):
    """The same objective in plain loops. What SAMI and Sinkhorn are of given numbers is tested by itself."""
    k, g, n = 2, 4, 8
    total = 0.0
    for q in range(2):
        prompts = [sampled["prompt_ids"][q * n + c * g] for c in range(k)]
        completions = sampled["completion_ids"][q * n : (q + 1) * n]
        own, base, hidden, reference = [], [], [], []
        for i, y in enumerate(completions):
            logps, states = dense(model, prompts[i // g], y)
            own.append(logps)
            hidden.append(states)
            with torch.no_grad(), model.disable_adapter():
                logps, states = dense(model, prompts[i // g], y)
            base.append(logps)
            reference.append(states)
        # GRPO, on policy: the ratio is 1 and its gradient that of the mean log-probability.
        earned = reward([[{"content": tokenizer.decode(y, skip_special_tokens=True)}] for y in completions])
        advantages = [r - sum(earned[i // g * g : i // g * g + g]) / g for i, r in enumerate(earned)]
        for i in range(n):
            ratio = torch.exp(own[i].mean() - own[i].mean().detach())
            difference = base[i] - own[i]
            kl = torch.exp(difference) - difference - 1
            # TRL corrects the KL term by the ratio.
            total = total + (-(ratio * advantages[i]) + terms["beta"] * (kl * ratio).mean()) / (2 * n)
        pairs = [[dense(model, prompts[c], y)[0].mean() for c in range(k)] for y in completions]
        matrix = torch.stack([torch.stack(row) for row in pairs])
        total = total + terms["lambda_sami"] * sami_loss(matrix, torch.arange(n) // g) / 2
        for layer in range(2):
            x, y = (torch.cat([states[layer] for states in both]) for both in (hidden, reference))
            divergence = solve_divergence(x, y, terms["ot_epsilon"]).value
            total = total + terms["lambda_ot"] * torch.clamp(divergence - terms["ot_budget"], min=0) / 4
    return total


def dense(model, prompt, completion):
    ids = torch.tensor([prompt + completion])
    outputs = model(input_ids=ids, output_hidden_states=True)
    logps = torch.log_softmax(outputs.logits[0].double(), -1)
    picked = torch.stack([logps[len(prompt) + t - 1, token] for t, token in enumerate(completion)])
    return picked, [outputs.hidden_states[layer][0, len(prompt) :] for layer in (1, -1)]


def test_the_hinge_bounds_the_drift(tmp_path, toy_model, toy_tokenizer):
    """With a budget the drift stays near it where the unregularised run exceeds it."""
    budget = 0.02

    def drift(lambda_ot):
        torch.manual_seed(0)
        changes = dict(max_steps=40, learning_rate=3e-3, optim="adamw_torch")
        terms = dict(lambda_sami=1.0, lambda_ot=lambda_ot, ot_budget=budget)
        config = EnigmaConfig(**settings(tmp_path, **changes, **terms))
        peft = lora("q_proj", "v_proj", "o_proj")
        trainer = enigma(toy_tokenizer, toy_model(), config, peft_config=peft, rollout_func=rollouts)
        trainer.train()
        return [entry["ot/divergence"] for entry in trainer.state.log_history if "ot/divergence" in entry]

    free, bounded = drift(0.0), drift(50.0)
    assert free[0] < 1e-5 and bounded[0] < 1e-5
    assert max(free[-10:]) > 2 * budget
    assert sum(bounded[-10:]) / 10 < 1.5 * budget


def test_every_term_is_logged_and_an_unconverged_solver_counted(
    tmp_path, toy_model, toy_tokenizer, monkeypatch
):
    def stopped(*args, **options):
        return solve_divergence(*args, **options)._replace(converged=False)

    monkeypatch.setattr("enigma.llm.matched_sets.solve_divergence", stopped)
    config = settings(tmp_path, max_steps=1, max_grad_norm=1e9, lambda_sami=0.1, lambda_ot=1.0)
    trainer = enigma(toy_tokenizer, toy_model(), EnigmaConfig(**config), peft_config=lora("q_proj"))
    trainer.train()
    logged = trainer.state.log_history[0]
    names = "loss/grpo loss/sami loss/ot sami/row_bound sami/column_bound ot/divergence "
    names += "reference/perplexity frac_reward_zero_std grad_norm"
    for name in names.split():
        assert math.isfinite(logged[name]), name
    assert logged["reference/kl"] == pytest.approx(0, abs=1e-6)
    assert logged["ot/unconverged"] == 1 and logged["grad_clipped"] == 0


def test_the_reference_reads_the_principles_at_its_interval(tmp_path, toy_model, toy_tokenizer):
    """An adapter that does nothing leaves the policy the reference, so both critics agree; then they part."""
    config = EnigmaConfig(**settings(tmp_path, max_steps=3), legibility_steps=2)
    peft = lora("q_proj", "v_proj")
    trainer = enigma(toy_tokenizer, toy_model(), config, peft_config=peft, rollout_func=rollouts)
    trainer.train()
    first, second, third = trainer.state.log_history[:3]
    assert first["sami/reference_row_bound"] == pytest.approx(first["sami/row_bound"], abs=1e-5)
    assert "sami/reference_row_bound" not in second
    assert abs(third["sami/reference_row_bound"] - third["sami/row_bound"]) > 1e-4


@pytest.mark.parametrize(("limit", "clipped"), [(1e-9, 1.0), (0.0, 0.0)])
def test_a_clipped_gradient_is_counted(tmp_path, toy_model, toy_tokenizer, limit, clipped):
    config = EnigmaConfig(**settings(tmp_path, max_steps=1, max_grad_norm=limit))
    trainer = enigma(toy_tokenizer, toy_model(), config, rollout_func=rollouts)
    trainer.train()
    assert trainer.state.log_history[0]["grad_clipped"] == clipped


def test_trl_methods_have_the_signatures_relied_on():
    expected = {
        "_get_train_sampler": "dataset",
        "_get_eval_sampler": "eval_dataset",
        "_prepare_inputs": "generation_batch",
        "_generate_and_score_completions": "inputs",
        "_generate_single_turn": "prompt_ids images multimodal_fields num_generations has_tool_images",
        "_compute_loss": "model inputs",
    }
    packed = "_get_per_token_logps_and_entropies"  # which takes more than is relied on
    read = {name: " ".join(inspect.signature(getattr(GRPOTrainer, name)).parameters) for name in TRL_METHODS}
    assert read.pop(packed).startswith(
        "self model input_ids attention_mask logits_to_keep batch_size compute_entropy"
    )
    assert read == {name: f"self {names}" for name, names in expected.items()}


# Every field that TRL adds to transformers' own: taken here as TRL takes it, or without meaning here. The rest is refused.
SUPPORTED = (
    "model_init_kwargs trust_remote_code disable_dropout cast_lm_head_to_fp32 num_generations "
    "num_generations_eval max_completion_length shuffle_dataset pad_to_multiple_of generation_batch_size "
    "chat_template_kwargs use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_server_base_url "
    "vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization "
    "vllm_max_model_length vllm_tensor_parallel_size beta epsilon delta epsilon_high sapo_temperature_neg "
    "sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level "
    "reward_weights multi_objective_aggregation scale_rewards loss_type sync_ref_model ref_model_mixup_alpha "
    "ref_model_sync_steps top_entropy_quantile vllm_importance_sampling_correction "
    "vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min "
    "vllm_importance_sampling_cap off_policy_mask_threshold use_bias_correction_kl log_completions "
    "log_unique_prompts num_completions_to_print log_completions_hub_repo "
    # Without meaning here.
    "ds3_gather_for_generation max_tool_calling_iterations log_multimodal entropy_coef_min entropy_coef_max "
    "entropy_coef_delta entropy_target transformers_continuous_batching_config"
)
CHECKED = ["steps_per_generation", "router_aux_loss_coef"]  # refused for some values, in the test below
REFUSED = {
    "generation_kwargs": {"min_p": 0.1},
    "min_p": 0.1,
    "cache_implementation": "static",
    "neftune_noise_alpha": 5.0,
    "vllm_structured_outputs_regex": "a+",
    "per_device_train_batch_size": 12,
    "num_principles": 1,
    "lambda_sami": -1.0,
    "sami_span": "answer",
    "ot_layers": [],
    "steps_per_generation": 2,
    "router_aux_loss_coef": 0.1,
}


def test_every_field_of_grpo_is_taken_or_refused_and_none_in_silence():
    own = {f.name for f in dataclasses.fields(GRPOConfig)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    told = Counter([*SUPPORTED.split(), *CHECKED, *(FIXED.keys() & own)])
    assert told == Counter(own), "a field without a decision, or with two"


@pytest.mark.parametrize("name", FIXED | REFUSED)
def test_what_would_change_the_method_is_refused(tmp_path, name):
    right, _ = FIXED.get(name, (None, ""))
    wrong = REFUSED[name] if right is None else not right if isinstance(right, bool) else right + 1
    with pytest.raises(ValueError, match=rf"EnigmaConfig\.(use_transformers\w+|{name}): found "):
        EnigmaConfig(**settings(tmp_path, **{name: wrong}))


def test_what_the_model_or_the_launcher_brings_is_refused(tmp_path, toy_model, toy_tokenizer, monkeypatch):
    def build(model=None, peft_config=None, **options):
        config = EnigmaConfig(**settings(tmp_path, **options))
        return enigma(toy_tokenizer, model or toy_model(), config, peft_config=peft_config or lora("q_proj"))

    dropout = lora("q_proj", lora_dropout=0.1)
    with pytest.raises(ValueError, match="dropout: found some"):
        build(peft_config=dropout)
    build(peft_config=dropout, disable_dropout=True)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    sizes |= dict(vocab_size=len(toy_tokenizer), num_local_experts=2, num_key_value_heads=2)
    experts = MixtralForCausalLM(MixtralConfig(**sizes))
    with pytest.raises(ValueError, match="router_aux_loss_coef"):
        build(model=experts)
    # PEFT makes a float32 adapter beside 16-bit weights.
    plugin = type("Plugin", (), {"fsdp_version": 1})
    monkeypatch.setattr(EnigmaTrainer, "is_fsdp_enabled", True, raising=False)
    half = build(model=toy_model(dtype=torch.bfloat16))
    monkeypatch.setattr(half.accelerator.state, "fsdp_plugin", plugin, raising=False)
    half.is_fsdp_enabled = True
    assert "set fsdp_version to 2" in next(half._problems())
    plugin.fsdp_version = 2
    assert not list(half._problems())


def test_bad_data_and_missing_reference(tmp_path, toy_model, toy_tokenizer):
    incomplete = rows().select(range(3))
    with pytest.raises(ValueError, match="has 1 rows, expected num_principles = 2"):
        enigma(toy_tokenizer, toy_model(), EnigmaConfig(**settings(tmp_path)), incomplete).train()
    with pytest.raises(ValueError, match="needs a reference"):
        enigma(toy_tokenizer, toy_model(), EnigmaConfig(**settings(tmp_path), lambda_ot=1.0))
