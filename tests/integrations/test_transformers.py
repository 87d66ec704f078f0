"""The transformers Trainer, TRL's SFTTrainer and PEFT models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradkern
from tests.integrations.installed import framework, run_page

transformers = framework("transformers")
framework("accelerate")

VOCABULARY = 32


def model_of(seed=0):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def data(count=64):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (count, 8), generator=generator)
    return [
        {"input_ids": row, "labels": row, "attention_mask": torch.ones(8, dtype=torch.long)} for row in ids
    ]


def arguments(folder, **more):
    more = {"max_grad_norm": 0.5, "logging_steps": 1, "save_strategy": "no", "max_steps": 5, **more}
    return transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        **more,
    )


def trained(folder, callbacks=(), model=None, resume=None, **more):
    trainer = transformers.Trainer(
        model or model_of(), arguments(folder, **more), train_dataset=data(), callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def callback(*args, **kwargs):
    from gradkern.integrations.transformers import GradkernCallback

    return GradkernCallback(*args, **kwargs)


def test_trainer(tmp_path, run, measured, assert_same_weights):
    with measured.watching():
        plain = trained(tmp_path / "plain", gradient_accumulation_steps=3, optim="sgd")
    ours = trained(tmp_path / "ours", [callback(run)], gradient_accumulation_steps=3, optim="sgd")
    assert torch.nn.utils.clip_grad_norm_.__module__ == "torch.nn.utils.clip_grad"
    assert_same_weights(plain.model, ours.model, rtol=1e-6, atol=1e-7)
    history = gradkern.History.open(run)
    assert history.steps.tolist() == [1, 2, 3, 4, 5]
    assert history.names == tuple(name for name, _ in ours.model.named_parameters())
    np.testing.assert_allclose(history.total_norm, measured.totals, rtol=1e-4)
    np.testing.assert_allclose(history.norm, np.array(measured), rtol=1e-3, atol=1e-6)
    assert set(history.phase) == {"before_clip"} and history.clipped.all()
    assert history.threshold.tolist() == [0.5] * 5
    logged = [entry for entry in ours.state.log_history if "loss" in entry]
    np.testing.assert_allclose(history.loss, [entry["loss"] for entry in logged], rtol=1e-6)
    np.testing.assert_allclose(history.lr, [entry["learning_rate"] for entry in logged], rtol=1e-6)
    np.testing.assert_allclose(history.total_norm, [entry["grad_norm"] for entry in logged], rtol=1e-5)


def test_without_clipping_the_norms_are_recorded_all_the_same(tmp_path, run):
    trainer = trained(tmp_path / "out", [callback(run)], max_grad_norm=0.0)
    history = gradkern.History.open(run)
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    np.testing.assert_allclose(history.total_norm, logged, rtol=1e-6)
    assert not history.clipped.any()


def test_loss_is_added_where_the_trainer_logs(tmp_path, run):
    trained(tmp_path / "out", [callback(run)], logging_steps=2, max_steps=4)
    history = gradkern.History.open(run)
    assert history.has_loss.tolist() == [False, True, False, True]


def test_resume_continues_the_steps(tmp_path, run):
    out = tmp_path / "out"
    trained(out, [callback(run)], save_strategy="steps", save_steps=3, max_steps=5)
    trained(out, [callback(run)], model=model_of(1), max_steps=7, resume=str(out / "checkpoint-3"))
    history = gradkern.History.open(run)
    assert history.steps.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_every_second_step(tmp_path, run):
    trainer = trained(tmp_path / "out", [callback(run, every=2)])
    history = gradkern.History.open(run)
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    assert history.steps.tolist() == [2, 4]
    np.testing.assert_allclose(history.total_norm, [entry["grad_norm"] for entry in logged[1::2]], rtol=1e-5)
    np.testing.assert_allclose(history.loss, [entry["loss"] for entry in logged[1::2]], rtol=1e-6)


def test_bf16(tmp_path, run):
    trainer = trained(tmp_path / "out", [callback(run)], bf16=True)
    history = gradkern.History.open(run)
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    np.testing.assert_allclose(history.total_norm, logged, rtol=1e-6)


def test_the_run_lies_in_output_dir_by_default(tmp_path):
    trained(tmp_path / "out", [callback()], max_steps=1)
    assert len(gradkern.History.open(tmp_path / "out" / "gradkern")) == 1


def test_a_clip_that_is_not_torchs_is_warned_of(tmp_path, run, monkeypatch):
    monkeypatch.setattr(transformers.Trainer, "_clip_grad_norm", lambda self, model: 1.0)
    with pytest.warns(gradkern.GradkernWarning, match="nothing is recorded"):
        trained(tmp_path / "out", [callback(run)], max_steps=2)
    assert len(gradkern.History.open(run)) == 0


def test_peft(tmp_path, run):
    peft = framework("peft")
    model = peft.get_peft_model(
        model_of(), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    )
    trainer = trained(tmp_path / "out", [callback(run)], model=model)
    history = gradkern.History.open(run)
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    np.testing.assert_allclose(history.total_norm, logged, rtol=1e-6)
    assert any("lora_A" in name for name in history.names)


def test_trl(tmp_path, run):
    trl = framework("trl")
    datasets = framework("datasets")
    tokenizers = framework("tokenizers")
    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<eos>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>"
    )
    texts = [" ".join(f"w{2 + (i * j) % 30}" for j in range(1, 8)) for i in range(1, 17)]
    config = trl.SFTConfig(
        str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=2, logging_steps=1, report_to=[],
        use_cpu=True, bf16=False, max_grad_norm=0.3, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model_of(),
        config,
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
        callbacks=[callback(run)],
    )
    trainer.train()
    history = gradkern.History.open(run)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert history.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(history.total_norm, [entry["grad_norm"] for entry in logged], rtol=1e-5)
    np.testing.assert_allclose(history.loss, [entry["loss"] for entry in logged], rtol=1e-6)


def test_the_page(tmp_path):
    run_page("transformers.md")
    history = gradkern.History.open(tmp_path / "runs" / "first")
    assert len(history) == 4
    assert all(finding.severity for finding in gradkern.diagnose(history))
