"""What is kept while a run trains: every completion, whole checkpoints, a probe without sampling noise, progress."""

import json
import shutil
import time
from pathlib import Path

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from enigma.llm import prompts
from enigma.llm.scoring import completion_logprobs
from enigma.method.rewards import graded_format, graded_format_reward
from enigma.record.files import atomic_write_json, atomic_write_text, file_hash, flush
from enigma.record.progress import clock, headless

MARKER = "complete.json"
# Short, well-formed answers to everyday questions, none of them an evaluation item: the probe of eq. 24.
PROBE = (
    (
        "How can I keep bread fresh?",
        "Air dries bread out. A closed bag keeps air away.",
        "Keep it in a closed bag.",
    ),
    ("Why do we sleep?", "The body rests and the brain sorts the day.", "To rest body and brain."),
    ("How do I clean a window?", "Water loosens dirt. A dry cloth leaves no marks.", "Wash it, then dry it."),
    ("What should I take on a hike?", "A hike makes me thirsty and hungry.", "Take water and some food."),
    ("How can I learn a song?", "Small parts are easier than the whole.", "Learn one line at a time."),
    (
        "Why is the sky dark at night?",
        "Light comes from the sun. At night it is behind the earth.",
        "The sun is away.",
    ),
    ("How do I calm a crying child?", "A calm voice helps, and so does time.", "Speak softly and wait."),
    ("How can I save money?", "I save when I spend less than I earn.", "Plan what you spend."),
)


def first_batch_warnings(rows: list[dict], limit: int, free: float = 1.0, further: bool = False) -> list[str]:
    """What would go wrong, by a first batch, in plain words and with what to turn; nothing where all looks well.

    `rows` as a `Recorder` keeps them; `limit`: tokens that a completion may have; `free`: share of the memory left;
    `further`: whether the arm has another reward beside the format's, which may differ where this one does not.
    """
    groups: dict[tuple, set] = {}
    for row in rows:
        groups.setdefault((row["question"], row["principle"]), set()).add(graded_format(row["completion"]))
    cut, said = sum(row["tokens"] >= limit for row in rows), []
    if not further and all(len(rewards) == 1 for rewards in groups.values()):
        said.append(
            "in every group all completions earn the same reward, so there is nothing to learn from; show the format "
            "(prompts.demonstration: true), raise trainer.num_generations, or give the arm a further reward"
        )
    if 2 * cut > len(rows):
        said.append(
            f"{cut} of {len(rows)} completions were cut off at {limit} tokens; raise trainer.max_completion_length"
        )
    if free < 0.1:
        said.append(
            f"{free:.0%} of the memory is left; lower trainer.per_device_train_batch_size or max_completion_length"
        )
    return said


class Recorder(TrainerCallback):
    """Keeps every completion of all processes, and saves them with each checkpoint, so that a resumed run has all."""

    def __init__(self, key: str, name: str, further: bool):
        self.key, self.name, self.further = key, name, further
        self.rows: list[dict] = []
        self._new: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.limit = args.max_completion_length

    @property
    def graded_format_reward(self):
        """The graded reward, as TRL calls it, that also keeps what it saw."""

        def graded_format_reward_(completions, question, principle, completion_ids, trainer_state, **kwargs):
            self._new += [
                {
                    "step": trainer_state.global_step + 1,
                    "question": asked,
                    "principle": under,
                    "completion": text[0]["content"],
                    "tokens": len(ids),
                }
                for text, asked, under, ids in zip(
                    completions, question, principle, completion_ids, strict=True
                )
            ]
            if trainer_state.global_step == 0 and trainer_state.is_world_process_zero:
                for line in first_batch_warnings(self._new, self.limit, _free(), self.further):
                    print(f"preflight, {self.name}: {line}", flush=True)
            return graded_format_reward(completions)

        graded_format_reward_.__name__ = "graded_format_reward"
        return graded_format_reward_

    def on_step_end(self, args, state, control, **kwargs):
        """Here, not in the reward: there one process may fail while the others would wait for its rows."""
        self.rows += gather_object(self._new)
        self._new = []

    def load(self, checkpoint: Path) -> None:
        """Take up the rows that a checkpoint holds."""
        self.rows = read_lines(checkpoint / "rollouts.jsonl")

    def on_save(self, args, state, control, **kwargs):
        """The marker comes last: a checkpoint without it was cut off. Only then do the older ones go.

        Transformers' own `save_total_limit` would remove them before the marker is written.
        """
        PartialState().wait_for_everyone()  # each process adds the state of its generators
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_lines(folder / "rollouts.jsonl", self.rows)
        flush(folder)
        atomic_write_json(folder / MARKER, {"key": self.key, "sha256": _hashes(folder)})
        for older in folder.parent.glob("checkpoint-*"):
            if older != folder:
                shutil.rmtree(older)


def last_checkpoint(folder: Path, key: str) -> Path | None:
    """The newest whole checkpoint of this very run."""
    whole = [path for path in folder.glob("checkpoint-*") if _is_whole(path, key)]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _is_whole(checkpoint: Path, key: str) -> bool:
    """Whether it is of this run, and every file as it was when the checkpoint was marked whole."""
    try:
        marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        return marker["key"] == key and marker["sha256"] == _hashes(checkpoint)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


class Probe(TrainerCallback):
    """After each step the mean log-probability (nats per token) of well-formed answers that nobody sampled.

    A reward curve of few completions is mostly sampling noise; this one has none (eq. 24, our choice [D]).
    """

    def __init__(self, tokenizer, style: dict, device):
        self.prompts, self.completions = [], []
        for question, thought, answer in PROBE:
            ids = prompts.encode(tokenizer, prompts.messages(question, None, **style))
            text = f"<reasoning>{thought}</reasoning><answer>{answer}</answer>"
            self.prompts.append(torch.tensor(ids, device=device))
            said = tokenizer(text, add_special_tokens=False)["input_ids"]
            self.completions.append(torch.tensor(said, device=device))

    @torch.no_grad()
    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "reward" not in (logs or {}) or model is None:
            return
        groups = [[i] for i in range(len(self.prompts))]
        scores = completion_logprobs(model, self.prompts, self.completions, groups)
        state.log_history[-1]["probe"] = float(scores.logps.sum() / scores.mask.sum())


class Watch(TrainerCallback):
    """Notes peak memory with every step and, when headless, prints a line about it."""

    def __init__(self, name: str):
        self.name, self.peak = name, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" not in (logs or {}) or not state.is_world_process_zero:
            return
        self.peak = max(self.peak, _memory_gb())
        state.log_history[-1]["peak_memory_gb"] = round(self.peak, 3)
        if headless():
            done, seconds = state.global_step - self.first, time.perf_counter() - self.started
            rate = seconds / max(done, 1)
            left = clock(rate * (state.max_steps - state.global_step))
            told = f"{self.name}: step {state.global_step}/{state.max_steps}, {rate:.1f} s/step, {left} left"
            print(f"{told}, reward {logs['reward']:.3f}", flush=True)


def _free() -> float:
    """The share of the memory that is left, 0 to 1."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return free / total
    memory = psutil.virtual_memory()
    return memory.available / memory.total


def _memory_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return psutil.Process().memory_info().rss / 1e9


def write_lines(path: Path, rows: list[dict]) -> None:
    """`rows` as JSON lines."""
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict]:
    """What `write_lines` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
