"""The update does not depend on how a batch is spread: over micro-batches, or over two processes."""

import math
import os
import socket
import time
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from test_scoring import build
from test_trainer import GRPO, lora, reward, rollouts, rows, settings
from torch.utils.data import BatchSampler
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from enigma.llm import head
from enigma.llm.config import EnigmaConfig
from enigma.llm.matched_sets import MatchedSampler, check_rows, matched_sets, score_matched_sets
from enigma.llm.trainer import EnigmaTrainer

K = G = 2
SET = K * G
WORDS = "why,how,where,when,since when,for whom,what,who"
QUESTIONS = [f"{word} is it so?" for word in WORDS.split(",")]
# `ot_points` is less than a set has tokens, so the Sinkhorn term also has to pick the same ones.
TERMS = dict(num_principles=K, lambda_sami=0.5, lambda_ot=1.0, ot_budget=1e-3, ot_points=12)
TERMS |= dict(ot_layers=[1, -1])
METRICS = (
    *("loss", "loss/grpo", "loss/sami", "loss/ot", "sami/row_bound", "sami/column_bound"),
    *("ot/divergence", "reward", "reward_std", "frac_reward_zero_std", "grad_norm"),
)


class Keep(TrainerCallback):
    """The trained parameters at the start and after every optimizer step."""

    def __init__(self):
        self.parameters = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        self.parameters.append(trained)

    on_step_end = on_train_begin


def toy(vocabulary):
    model = build("llama", vocab_size=vocabulary, num_hidden_layers=2)
    model.lm_head.weight.data.mul_(10)
    return model


def run(folder, tokenizer, trainer=EnigmaTrainer, rewards=reward, **changes):
    """Two optimizer steps; what they did, what they logged, which sets this process saw and what it wrote."""
    config = {GRPOTrainer: GRPOConfig, EnigmaTrainer: EnigmaConfig}[trainer]
    # Without clipping, so that a gradient of the wrong length shows.
    base = settings(folder, max_steps=2, learning_rate=0.3, max_grad_norm=0, num_generations=G, beta=0.03)
    seen, keep = [], Keep()

    def completions(prompts, trainer):
        seen.append([prompt[0]["content"] for prompt in prompts])
        return rollouts(prompts, trainer)

    built = trainer(
        toy(len(tokenizer)),
        rewards,
        config(**base | changes),
        rows(QUESTIONS),
        processing_class=tokenizer,
        peft_config=lora("q_proj", "v_proj", init_lora_weights=False),
        rollout_func=completions,
        callbacks=[keep],
    )
    built.train()
    built.save_model()
    log = [entry for entry in built.state.log_history if "reward" in entry]
    files = sorted(path.name for path in Path(folder).rglob("*") if path.is_file())
    return {"parameters": keep.parameters, "log": log, "seen": seen, "files": files}


def assert_same_run(found, expected, metrics=METRICS):
    """Every parameter after each step, as a share of the distance that it moved; and the logged terms."""
    start = expected["parameters"][0]
    for name in start:
        assert torch.equal(found["parameters"][0][name], start[name])
        for a, b in zip(found["parameters"][1:], expected["parameters"][1:], strict=True):
            moved = float((b[name] - start[name]).norm())
            assert moved > 1e-4, name
            assert float((a[name] - b[name]).norm()) <= 1e-4 * moved, name
            assert float((a[name] - b[name]).abs().max() / b[name].abs().max()) <= 1e-5, name
    for a, b in zip(found["log"], expected["log"], strict=True):
        for name in metrics:
            # The bounds are differences of sums over whole completions, so they keep fewer digits.
            smallest = 1e-5 if "bound" in name else 1e-7
            assert math.isclose(a[name], b[name], rel_tol=1e-5, abs_tol=smallest), (name, a[name], b[name])


# Micro-batches.


@pytest.mark.parametrize(
    "changes",
    [dict(lambda_sami=0.0, lambda_ot=0.0), dict(), dict(loss_type="dapo")],
    ids=["grpo", "all", "tokens of the whole batch"],
)
def test_micro_batches_add_up_to_the_batch(tmp_path, toy_tokenizer, changes):
    """Also with the layers' second forward in the backward pass."""
    whole = run(tmp_path, toy_tokenizer, **TERMS | changes, per_device_train_batch_size=2 * SET)
    parts = dict(per_device_train_batch_size=SET, gradient_accumulation_steps=2, gradient_checkpointing=True)
    assert_same_run(run(tmp_path, toy_tokenizer, **TERMS | changes | parts), whole)


# Two processes.

# For each run on two processes the batch of the same run on one.
SPREADS = {
    "one set each": (dict(per_device_train_batch_size=SET), 2 * SET),
    "two sets each": (dict(per_device_train_batch_size=2 * SET), 4 * SET),
    "one set, accumulated": (dict(per_device_train_batch_size=SET, gradient_accumulation_steps=2), 4 * SET),
}
PLAIN = dict(per_device_train_batch_size=SET, beta=0.0)
SPLIT = dict(per_device_train_batch_size=SET, accelerator_config={"split_batches": True})


def failing(rank):
    def fails(completions, **kwargs):
        if rank == 1:
            raise KeyError("this one alone")
        return reward(completions)

    return fails


def refused(*args, **kwargs) -> str:
    try:
        run(*args, **kwargs)
    except (KeyError, RuntimeError, ValueError) as error:
        return str(error)


def work(rank, port, folder):
    """One of two processes."""
    local = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": local}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = folder / f"rank {rank}"
    runs = {
        name: run(own / name, tokenizer, shuffle_dataset=True, **TERMS, **spread)
        for name, (spread, _) in SPREADS.items()
    }
    runs["enigma"] = run(own / "enigma", tokenizer, num_principles=K, **PLAIN)
    runs["trl"] = run(own / "trl", tokenizer, GRPOTrainer, **GRPO, **PLAIN)
    runs["split"] = refused(own / "split", tokenizer, **TERMS, **SPLIT)
    runs["one fails"] = refused(folder / "fails", tokenizer, rewards=failing(rank), num_principles=K, **PLAIN)
    # No logits, also where the wrapper copies what the model returns.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "_from_logits", None)
        for name, copies in (("no copies", None), ("copies", True)):
            options = TERMS | PLAIN | dict(beta=0.03, ddp_find_unused_parameters=copies)
            runs[name] = run(folder / name, tokenizer, **options)
    torch.save(runs, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, toy_tokenizer):
    """What `work` of rank 0 and of rank 1 brought."""
    folder = tmp_path_factory.mktemp("two")
    toy_tokenizer.save_pretrained(folder)
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        patch.setenv("OMP_NUM_THREADS", "1")
        context = torch.multiprocessing.spawn(work, (port, folder), nprocs=2, join=False)
        deadline = time.monotonic() + 400
        try:
            while not context.join(timeout=1):
                assert time.monotonic() < deadline, "the two processes wait for each other"
        finally:
            for process in context.processes:
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREADS)
def test_two_processes_give_the_update_of_one(tmp_path, toy_tokenizer, two_processes, name):
    first, second = (ranks[name] for ranks in two_processes)
    batch = SPREADS[name][1]
    single = run(tmp_path, toy_tokenizer, shuffle_dataset=True, **TERMS, per_device_train_batch_size=batch)
    # Under accumulation these two are means over micro-batches, which may hold unlike numbers of tokens.
    reference = () if name == "one set, accumulated" else ("reference/kl", "reference/perplexity")
    assert_same_run(first, single, METRICS + reference)
    assert_same_run(second, first, metrics=())
    # The two see the one's questions, and none twice.
    for a, b, both in zip(first["seen"], second["seen"], single["seen"], strict=True):
        assert sorted(a + b) == sorted(both)
        assert not set(a) & set(b)
    # Only the first process writes.
    assert "adapter_model.safetensors" in first["files"] and second["files"] == []


@pytest.mark.slow
def test_without_extra_terms_two_processes_are_trl(two_processes):
    for ranks in two_processes:
        assert_same_run(ranks["enigma"], ranks["trl"], metrics=("loss", "reward", "grad_norm"))


@pytest.mark.slow
def test_what_is_wrong_on_one_process_is_refused_on_all(two_processes):
    """A loader that splits sets, and an error of one process alone: the others would wait for it for ever."""
    for ranks in two_processes:
        assert "rows 0 to 1 are not one matched set of 2 prompts x 2 generations" in ranks["split"]
    told = [ranks["one fails"] for ranks in two_processes]
    assert told == ["another process failed, and says why", "'this one alone'"]


@pytest.mark.slow
def test_two_processes_make_no_logits(two_processes):
    for ranks in two_processes:
        assert_same_run(ranks["copies"], ranks["no copies"])


# A matched set stays whole, or an error says so.


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_each_process_draws_whole_sets(world, sets, accumulation, shuffle):
    """Accelerate gives every process one contiguous piece of each generation batch."""
    data = rows([f"q{i}" for i in range(11)])
    everyone = sets * accumulation * world

    def batches(rank):
        order = RepeatSampler(range(11), 1, everyone, accumulation, shuffle=shuffle, seed=5)
        sampler = MatchedSampler(order, matched_sets(data, K), G)
        local = BatchSampler(sampler, sets * accumulation * SET, drop_last=False)
        return list(BatchSamplerShard(local, world, rank))

    for step in zip(*(batches(rank) for rank in range(world)), strict=True):
        names = []
        for batch in step:
            for start in range(0, len(batch), SET):
                a, b, c, d = batch[start : start + SET]
                assert a == b and c == d and a != c
                assert data[a]["matched_set"] == data[c]["matched_set"]
                names.append(data[a]["matched_set"])
        assert len(set(names)) == len(names) == everyone


def trainer_for(tmp_path, tokenizer, **changes):
    changes |= dict(num_generations=G, per_device_train_batch_size=2 * SET)
    config = EnigmaConfig(**settings(tmp_path, **changes))
    data = rows(QUESTIONS), rows(QUESTIONS[:3])
    return EnigmaTrainer(toy(len(tokenizer)), reward, config, *data, tokenizer, rollout_func=rollouts)


@pytest.mark.parametrize(
    "order",
    # Rows 0 and 1 are one question under two principles, rows 2 and 3 the next.
    ["0011223", "01012233", "00001111", "1122"],
    ids=["incomplete", "interleaved", "repeated", "halves of two sets"],
)
def test_rows_out_of_order_are_refused(order):
    data = rows(QUESTIONS)
    with pytest.raises(ValueError, match="are not one matched set of 2 prompts x 2 generations"):
        check_rows([data[int(i)] for i in order], K, G)


def test_evaluation_refuses_to_split_a_set(tmp_path, toy_tokenizer):
    whole = trainer_for(tmp_path, toy_tokenizer, per_device_eval_batch_size=SET)
    assert math.isfinite(whole.evaluate()["eval_loss"])
    with pytest.raises(ValueError, match="rows 4 to 5 are not one matched set"):
        trainer_for(tmp_path, toy_tokenizer, per_device_eval_batch_size=6).evaluate()


@pytest.mark.parametrize(
    ("sets", "principles"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1, 0, 1]),
        ([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1]),
        ([0, 0, 1, 1], [1, 1, 0, 0]),
    ],
    ids=["principles", "sets", "halves"],
)
def test_micro_batches_out_of_order_are_refused(sets, principles):
    tokens = torch.ones(len(sets), 3, dtype=torch.long)
    inputs = {f"{text}_{part}": tokens for text in ("prompt", "completion") for part in ("ids", "mask")}
    inputs |= {"set_index": torch.tensor(sets), "principle_index": torch.tensor(principles)}
    with pytest.raises(ValueError, match="every batch must hold whole sets in order"):
        score_matched_sets(None, inputs, K, layers=(), cross_gradient=False)


def test_too_few_questions_for_one_step_are_refused(tmp_path, toy_tokenizer):
    trainer = trainer_for(tmp_path, toy_tokenizer, gradient_accumulation_steps=8)
    with pytest.raises(ValueError, match="8 matched sets, expected at least 16"):
        trainer.train()
