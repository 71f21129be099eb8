"""Every tensor is made where it is used: all of training and stage 1's measuring on a device that is not the CPU."""

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from test_trainer import enigma, lora, settings
from transformers import TrainingArguments

from enigma.llm.callbacks import Probe
from enigma.llm.config import EnigmaConfig
from enigma.llm.matched import sample_and_score
from enigma.llm.states import StateReader
from tests.pretend import DEVICE, Pretend, pretend_device

STYLE = {"placement": "question", "demonstration": False}


@pytest.fixture
def device(monkeypatch):
    """The pretend device as the one that accelerate finds; a collective takes no tensor of the CPU, as NCCL does not."""
    # Which knows no such device.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    with pretend_device():
        for where in (TrainingArguments, Accelerator):
            monkeypatch.setattr(where, "device", property(_found))
        for name in ("reduce", "gather"):
            monkeypatch.setattr(Accelerator, name, _checked(getattr(Accelerator, name)))
        yield DEVICE


def _found(owner):
    """The device, once the owner has set up its own."""
    getattr(owner, "_setup_devices", None)
    return DEVICE


def _checked(collective):
    def checked(self, tensor, *args, **kwargs):
        assert isinstance(tensor, Pretend), "a collective was given a tensor of the CPU"
        return collective(self, tensor, *args, **kwargs)

    return checked


def test_the_pretend_device_refuses_what_a_gpu_refuses(device):
    there, here = torch.arange(3, device=device), torch.arange(3)
    for mixed in (lambda: there + here, lambda: here[there], lambda: torch.cat([there, here])):
        with pytest.raises(RuntimeError, match="on two devices"):
            mixed()
    assert (there + 1)[here].tolist() == [1, 2, 3] and there.cpu().device == here.device


def test_training(tmp_path, toy_model, toy_tokenizer, device):
    """Two steps with every term, what is only logged, the reference's bound and the probe."""
    config = EnigmaConfig(
        **settings(tmp_path, max_steps=2, learning_rate=1e-3, optim="adamw_torch", use_cpu=False),
        lambda_sami=0.1,
        lambda_ot=1.0,
        sami_span="reasoning",
        legibility_steps=1,
    )
    probe = Probe(toy_tokenizer, STYLE, device)
    trainer = enigma(toy_tokenizer, toy_model(), config, peft_config=lora("q_proj"), callbacks=[probe])
    assert next(trainer.model.parameters()).device == device
    trainer.train()
    assert trainer.state.log_history[1]["ot/divergence"] > 0


def test_measuring(toy_model, toy_tokenizer, device):
    model = toy_model().eval().to(device)
    asked = toy_tokenizer, ["why?", "how?"], ["be brief", "be kind"], STYLE
    options = dict(samples=1, max_tokens=6, batch_size=4, seed=0)
    made, on_cpu = (sample_and_score(one, *asked, **options) for one in (model, toy_model().eval()))
    assert [row["texts"] for row in made] == [row["texts"] for row in on_cpu]
    [(hidden, _)] = StateReader(model, [5, 6], [1]).read([[5, 6, 7]], [[8, 9]])
    assert hidden.shape[1] == 2 and hidden.device.type == "cpu"
