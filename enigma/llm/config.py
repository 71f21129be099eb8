"""The trainer's settings: TRL's, the coefficients of the two extra terms, and what of TRL's would change the method."""

from dataclasses import dataclass, field

from trl import GRPOConfig

_ON_POLICY = "the bounds need completions drawn from the policy itself"
# Options of TRL with one value that is right here, and why. Others would be taken in silence and change the method.
FIXED = {
    "temperature": (1.0, _ON_POLICY),
    "top_p": (1.0, _ON_POLICY),
    "top_k": (0, _ON_POLICY),
    "min_p": (None, _ON_POLICY),
    "repetition_penalty": (1.0, _ON_POLICY),
    "generation_kwargs": (None, _ON_POLICY),
    "vllm_structured_outputs_regex": (None, _ON_POLICY),
    "num_iterations": (1, "later passes would take bounds and drift on an older policy's completions"),
    "mask_truncated_completions": (False, "a completion without tokens would score above every real one"),
    "use_transformers_continuous_batching": (False, "it casts the adapter to 16 bits while it draws"),
    "use_transformers_paged": (False, "it casts the adapter to 16 bits while it draws"),
    "cache_implementation": (None, "completions are drawn from a cache of our own"),
    "entropy_coef": (0.0, "the entropy here carries no gradient"),
    "use_adaptive_entropy": (False, "the entropy here carries no gradient"),
    "neftune_noise_alpha": (None, "noise on the embeddings would enter every log-probability"),
}


def _option(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class EnigmaConfig(GRPOConfig):
    """`trl.GRPOConfig` with the coefficients of the two extra terms (docs/method.md, eq. 5 to 7).

    The defaults of `importance_sampling_level`, `loss_type` and `scale_rewards` give GRPO with a sequence-level ratio
    and advantages that are centred in the group and not divided by its deviation (eq. 2).

    Raises:
        ValueError: a value out of range, one of `FIXED` changed, completions that would be older than the weights
            that they train, or weights that ZeRO-3 spreads over processes.
    """

    importance_sampling_level: str = _option("sequence", "The GSPO ratio: one for the whole completion.")
    loss_type: str = _option("grpo", "As in TRL.")
    scale_rewards: str = _option("none", "As in TRL. `none` is the Dr. GRPO advantage.")
    num_principles: int = _option(2, "K: prompts in a matched set, one for each principle. At least 2.")
    lambda_sami: float = _option(0.0, "Coefficient of the symmetric InfoNCE term.")
    sami_temperature: float = _option(1.0, "Divides the critic, nats per token.")
    sami_span: str = _option("completion", "Tokens the critic reads: `completion` or `reasoning`.")
    lambda_ot: float = _option(0.0, "Coefficient of the Sinkhorn term.")
    ot_layers: list[int] = field(
        default_factory=lambda: [-1],
        metadata={"help": "Hidden states to bound, as indices into transformers' `hidden_states`."},
    )
    ot_epsilon: float = _option(0.05, "Entropic regularisation, in units of the reference's own mean cost.")
    ot_budget: float = _option(0.0, "Drift that costs nothing. 0 is the plain regulariser.")
    ot_points: int = _option(256, "Tokens of a matched set that enter the Sinkhorn term.")
    drift: str = _option(
        "sinkhorn",
        "What `lambda_ot` bounds: `sinkhorn`, the divergence of the clouds, or `l2`, token by token.",
    )
    reference_steps: int = _option(
        1,
        "What is only logged costs a forward: the reference's view where neither `lambda_ot` nor `beta` needs it, "
        "and the scores under other principles where `lambda_sami` is 0. They are taken every so many steps.",
    )
    legibility_steps: int = _option(
        0, "Every so many steps the row bound is also taken with the reference as critic. 0: never."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every trained weight has a gradient at every step
        plugin = getattr(self, "deepspeed_plugin", None)
        expect = {
            "num_principles": (self.num_principles >= 2, "at least 2"),
            "lambda_sami": (self.lambda_sami >= 0, "0 or more"),
            "lambda_ot": (self.lambda_ot >= 0, "0 or more"),
            "sami_temperature": (self.sami_temperature > 0, "more than 0"),
            "sami_span": (self.sami_span in ("completion", "reasoning"), "completion or reasoning"),
            "ot_layers": (len(self.ot_layers) > 0, "at least one layer"),
            "ot_epsilon": (self.ot_epsilon > 0, "more than 0"),
            "ot_budget": (self.ot_budget >= 0, "0 or more"),
            "drift": (self.drift in ("sinkhorn", "l2"), "sinkhorn or l2"),
            "ot_points": (self.ot_points >= 2, "2 or more"),
            "legibility_steps": (self.legibility_steps >= 0, "0 or more"),
            "reference_steps": (self.reference_steps >= 1, "1 or more"),
            "steps_per_generation": (
                self.steps_per_generation <= self.gradient_accumulation_steps,
                f"at most gradient_accumulation_steps ({self.gradient_accumulation_steps}): {_ON_POLICY}",
            ),
            "per_device_train_batch_size": (
                self.per_device_train_batch_size % self.matched_set_size == 0,
                f"a multiple of {self.matched_set_size} = num_principles x num_generations, or a set is split",
            ),
            "router_aux_loss_coef": (not self.router_aux_loss_coef, "0: packed texts have no router loss"),
            "deepspeed": (
                plugin is None or plugin.zero_stage < 3,
                "ZeRO stage 2 or less: stage 3 puts the whole weights on each GPU first; use FSDP2 to spread them",
            ),
        }
        for name, (value, reason) in FIXED.items():
            expect[name] = (getattr(self, name) == value, f"{value!r}: {reason}")
        for name, (holds, expected) in expect.items():
            if not holds:
                raise ValueError(f"EnigmaConfig.{name}: found {getattr(self, name)!r}, expected {expected}")

    @property
    def matched_set_size(self) -> int:
        """Completions of one question: K principles times G generations."""
        return self.num_principles * self.num_generations
