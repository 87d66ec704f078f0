"""The transformers Trainer, TRL's SFTTrainer and PEFT models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradkern
from tests.integrations.installed import code_of, framework, run_page

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


def settings(**more):
    return {
        "max_grad_norm": 0.5, "logging_steps": 1, "save_strategy": "no", "max_steps": 5, "report_to": [],
        "per_device_train_batch_size": 2, "learning_rate": 1e-2, "disable_tqdm": True, "use_cpu": True,
        "seed": 3, **more,
    }  # fmt: skip


def arguments(folder, **more):
    return transformers.TrainingArguments(str(folder), **settings(**more))


def plain(folder, callbacks, model=None, **more):
    """A Trainer."""
    return transformers.Trainer(
        model or model_of(), arguments(folder, **more), train_dataset=data(), callbacks=callbacks
    )


def lora(folder, callbacks, **more):
    """A Trainer of a PEFT model, which trains only some of the parameters."""
    peft = framework("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    torch.manual_seed(0)
    return plain(folder, callbacks, peft.get_peft_model(model_of(), config), **more)


def trl(folder, callbacks, **more):
    """TRL's SFTTrainer."""
    package, datasets, tokenizers = framework("trl"), framework("datasets"), framework("tokenizers")
    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<eos>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>"
    )
    texts = [" ".join(f"w{2 + (i * j) % 30}" for j in range(1, 8)) for i in range(1, 65)]
    return package.SFTTrainer(
        model_of(),
        package.SFTConfig(str(folder), **settings(**{"bf16": False, **more})),
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


TRAINERS = pytest.mark.parametrize("make", [plain, trl, lora], ids=lambda make: make.__name__)


def trained(folder, callbacks=(), make=plain, resume=None, **more):
    trainer = make(folder, list(callbacks), **more)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def callback(*args, **kwargs):
    from gradkern.integrations.transformers import GradkernCallback

    return GradkernCallback(*args, **kwargs)


def assert_recorded(history, trainer, measured, rtol):
    """Asserts that the rows hold the norms before clipping that an unpatched run has measured."""
    model = trainer.model
    assert history.steps.tolist() == list(range(1, len(measured) + 1))
    assert history.names == tuple(name for name, _ in model.named_parameters())
    columns = [i for i, p in enumerate(model.parameters()) if p.requires_grad]
    np.testing.assert_allclose(history.total_norm, measured.totals, rtol=rtol)
    np.testing.assert_allclose(
        history.norm[:, columns], np.array(measured)[:, columns], rtol=10 * rtol, atol=1e-6
    )
    assert set(history.phase) == {"before_clip"}
    assert history.threshold.tolist() == [trainer.args.max_grad_norm] * len(measured)


@TRAINERS
def test_trainer(tmp_path, run, measured, assert_same_weights, make):
    more = {"make": make, "gradient_accumulation_steps": 3, "optim": "sgd", "learning_rate": 0.1}
    more["max_grad_norm"] = 0.03 if make is lora else 0.5
    with measured.watching():
        unpatched = trained(tmp_path / "plain", **more)
    ours = trained(tmp_path / "ours", [callback(run)], **more)
    assert torch.nn.utils.clip_grad_norm_.__module__ == "torch.nn.utils.clip_grad"
    assert_same_weights(unpatched.model, ours.model, rtol=1e-6, atol=1e-7)
    history = gradkern.History.open(run)
    assert_recorded(history, ours, measured, rtol=1e-4)
    assert history.clipped.all()
    logged = [entry for entry in unpatched.state.log_history if "loss" in entry]
    np.testing.assert_allclose(history.loss, [entry["loss"] for entry in logged], rtol=1e-5)
    np.testing.assert_allclose(history.lr, [entry["learning_rate"] for entry in logged], rtol=1e-6)
    np.testing.assert_allclose(history.total_norm, [entry["grad_norm"] for entry in logged], rtol=1e-5)


@TRAINERS
def test_resumed(tmp_path, run, measured, capsys, make):
    """From a checkpoint before the last step: that step's row is replaced, and none is lost."""
    out, more = tmp_path / "out", {"make": make, "optim": "sgd", "learning_rate": 0.1}
    with measured.watching():
        trained(tmp_path / "plain", **more)
    trained(out, [callback(run)], save_strategy="steps", save_steps=3, **more)
    ours = trained(out, [callback(run)], resume=str(out / "checkpoint-3"), **more)
    assert_recorded(gradkern.History.open(run), ours, measured, rtol=1e-4)
    line = f"gradkern: recorded up to step 5 in {run}; for findings: gradkern diagnose {run}"
    assert capsys.readouterr().err.splitlines().count(line) == 2


def test_a_new_training_to_the_folder_of_another(tmp_path, run):
    trained(tmp_path / "out", [callback(run)], max_steps=3)
    with pytest.warns(gradkern.GradkernWarning, match="steps up to 3 of an earlier .* replaces all of them"):
        trained(tmp_path / "out", [callback(run)], max_steps=2)
    assert gradkern.History.open(run).steps.tolist() == [1, 2]
    assert gradkern.History.open(run, superseded=True).steps.tolist() == [1, 2, 3, 1, 2]


@TRAINERS
def test_bf16(tmp_path, run, measured, make):
    more = {"make": make, "bf16": True, "max_steps": 3}
    with measured.watching():
        trained(tmp_path / "plain", **more)
    ours = trained(tmp_path / "out", [callback(run)], **more)
    assert_recorded(gradkern.History.open(run), ours, measured, rtol=1e-2)


def test_without_clipping_the_norms_are_recorded_all_the_same(tmp_path, run):
    trainer = trained(tmp_path / "out", [callback(run)], max_grad_norm=0.0)
    history = gradkern.History.open(run)
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    np.testing.assert_allclose(history.total_norm, logged, rtol=1e-6)
    assert not history.clipped.any()


def test_loss_is_added_where_the_trainer_logs(tmp_path, run):
    trainer = trained(tmp_path / "out", [callback(run)], logging_steps=2, max_steps=4)
    history = gradkern.History.open(run)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose(history.loss, [np.nan, logged[0], np.nan, logged[1]], rtol=1e-6)


def test_every_second_step(tmp_path, run):
    trainer = trained(tmp_path / "out", [callback(run, every=2)])
    history = gradkern.History.open(run)
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    assert history.steps.tolist() == [2, 4]
    np.testing.assert_allclose(history.total_norm, [entry["grad_norm"] for entry in logged[1::2]], rtol=1e-5)
    np.testing.assert_allclose(history.loss, [entry["loss"] for entry in logged[1::2]], rtol=1e-6)


def test_an_interrupted_training_can_be_started_again(tmp_path, run):
    class Interrupt(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            raise KeyboardInterrupt

    interrupted = plain(tmp_path / "one", [callback(run), Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()  # stays alive, as in a notebook
    trained(tmp_path / "two", [callback(run)], max_steps=2)
    assert torch.nn.utils.clip_grad_norm_.__module__ == "torch.nn.utils.clip_grad"
    assert gradkern.History.open(run).steps.tolist() == [1, 2]


def test_the_run_lies_in_output_dir_by_default(tmp_path):
    trained(tmp_path / "out", [callback()], max_steps=1)
    assert len(gradkern.History.open(tmp_path / "out" / "gradkern")) == 1


def test_a_clip_that_is_not_torchs_is_warned_of(tmp_path, run, monkeypatch):
    monkeypatch.setattr(transformers.Trainer, "_clip_grad_norm", lambda self, model: 1.0)
    with pytest.warns(gradkern.GradkernWarning, match="nothing is recorded"):
        trained(tmp_path / "out", [callback(run)], max_steps=2)
    assert len(gradkern.History.open(run)) == 0


def test_the_page(tmp_path, monkeypatch):
    names = run_page("transformers.md")
    given = {"Trainer": transformers.Trainer, "model": names["trainer"].model, "args": names["arguments"]}
    for page, language, number in (("docs/frameworks/transformers.md", "py", 0), ("README.md", "diff", 1)):
        (tmp_path / language).mkdir()
        monkeypatch.chdir(tmp_path / language)
        shorter = {**given, "data": names["trainer"].train_dataset}
        exec(code_of(page, language, number), shorter)
        if language == "diff":
            shorter["trainer"].train()
        assert len(gradkern.History.open("runs/first")) == 4
    history = gradkern.History.open(tmp_path / "runs" / "first")
    assert len(history) == 4
    assert all(finding.severity for finding in gradkern.diagnose(history))
