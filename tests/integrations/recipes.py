"""A small training for each framework that needs no class of ours, as docs/frameworks/others.md shows it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import gradkern
from tests.integrations.installed import framework, without_torchvision

LR, CLIP, STEPS, SIZE = 0.05, 0.1, 5, 8
mse = nn.functional.mse_loss


@dataclass
class Job:
    """What a recipe trains: batches `first` to `last`, from the checkpoint unless `first` is 0, and to it."""

    run: Path | None  # None: without gradkern
    first: int = 0
    last: int = STEPS
    checkpoint: Path | None = None
    low: bool = False  # in bfloat16, or with a GradScaler

    @property
    def batches(self):
        return slice(self.first, self.last)

    def tensors(self):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(STEPS, SIZE, 6, generator=generator)
        return (part[self.batches].flatten(0, 1) for part in (x, x.sum(dim=2, keepdim=True)))

    def dataset(self):
        return torch.utils.data.TensorDataset(*self.tensors())

    def loader(self):
        return torch.utils.data.DataLoader(self.dataset(), SIZE)

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16, enabled=self.low)

    def monitor(self, model, optimizer):
        """A monitor that gets the model's clips; None without gradkern."""
        if self.run is None:
            return None
        monitor = gradkern.GradMonitor(model, optimizer, self.run)
        gradkern.patch_torch(monitor)
        OPEN.append(monitor)
        if self.first:
            monitor.load_state_dict({"step": self.first})
        return monitor

    def load(self, **objects):
        if self.first:
            state = torch.load(self.checkpoint, weights_only=False)
            for name, one in objects.items():
                one.load_state_dict(state[name])

    def save(self, **objects):
        if self.checkpoint is not None:
            torch.save({name: one.state_dict() for name, one in objects.items()}, self.checkpoint)


OPEN: list[gradkern.GradMonitor] = []


def close():
    """Write what is left; some frameworks keep models and their monitors alive."""
    gradkern.unpatch_torch()
    while OPEN:
        OPEN.pop().close()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def timm(job):
    utils = without_torchvision("timm", "utils.cuda")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    monitor = job.monitor(model, optimizer)
    scaler = utils.NativeScaler(device="cpu")
    scaler._scaler = torch.amp.GradScaler("cpu", init_scale=256.0 if job.low else 1.0)
    job.load(model=model, optimizer=optimizer, scaler=scaler)
    for x, y in job.loader():
        with job.autocast():
            losses = [mse(model(half), y[i::2]) / 2 for i, half in enumerate((x[0::2], x[1::2]))]
        for loss, last in zip(losses, (False, True)):
            scaler(loss, optimizer, clip_grad=CLIP, parameters=model.parameters(), need_update=last)
        if monitor is not None:
            monitor.amend(monitor.step, loss=sum(losses))
        optimizer.zero_grad()
    job.save(model=model, optimizer=optimizer, scaler=scaler)
    return model


def ignite(job):
    engine, handlers = framework("ignite.engine"), framework("ignite.handlers")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    monitor = job.monitor(model, optimizer)

    def update(trainer, batch):
        optimizer.zero_grad()
        with job.autocast():
            loss = mse(model(batch[0]), batch[1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    trainer = engine.Engine(update)
    state = {"model": model, "optimizer": optimizer}
    if monitor is not None:
        state["monitor"] = monitor

        @trainer.on(engine.Events.ITERATION_COMPLETED)
        def add_loss(trainer):
            monitor.amend(monitor.step, loss=trainer.state.output)

    if job.checkpoint is not None:
        folder = job.checkpoint.parent
        for file in folder.glob("checkpoint_*.pt"):
            handlers.Checkpoint.load_objects(state, checkpoint=torch.load(file, weights_only=False))
        saver = handlers.Checkpoint(state, handlers.DiskSaver(str(folder), require_empty=False))
        trainer.add_event_handler(engine.Events.COMPLETED, saver)
    trainer.run(job.loader())
    return model


def skorch(job):
    package, callbacks = framework("skorch"), framework("skorch.callbacks")
    classes, more = (package.NeuralNetRegressor,), {}
    if job.low:
        classes = (framework("skorch.hf").AccelerateMixin, *classes)
        more["accelerator"] = framework("accelerate").Accelerator(cpu=True, mixed_precision="bf16")

    class AddLoss(callbacks.Callback):
        def on_batch_end(self, net, batch=None, training=False, loss=None, **kwargs):
            if training and job.run is not None:
                monitor.amend(monitor.step, loss=loss)

    net = type("Net", classes, {})(
        network(), optimizer=torch.optim.SGD, lr=LR, max_epochs=1, batch_size=SIZE, train_split=None,
        verbose=0, callbacks=[callbacks.GradientNormClipping(CLIP), AddLoss()], **more,
    )  # fmt: skip
    net.initialize()
    files = {}
    if job.checkpoint is not None:
        files = {f"f_{name}": str(job.checkpoint) + name for name in ("params", "optimizer")}
        if job.first:
            net.load_params(**files)
    monitor = job.monitor(net.module_, net.optimizer_)
    net.partial_fit(*job.tensors())  # `fit` would make another module
    if files:
        net.save_params(**files)
    return net.module_


def fastai(job):
    basics, training = framework("fastai.basics"), framework("fastai.callback.training")
    loader = basics.DataLoader(job.dataset(), bs=SIZE // 2)
    learn = basics.Learner(
        basics.DataLoaders(loader, loader), network(), loss_func=mse, lr=LR, opt_func=basics.SGD,
        cbs=[training.GradientClip(CLIP), training.GradientAccumulation(SIZE)], train_bn=False,
        path=".", model_dir=".",
    )  # fmt: skip
    learn.create_opt()
    if job.first:
        learn.load(job.checkpoint)
    monitor = job.monitor(learn.model, learn.opt)

    class Record(basics.Callback):
        order = training.GradientClip.order + 1

        def before_step(self):
            if monitor is not None:
                monitor.record(loss=self.loss)

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Record())
    if job.checkpoint is not None:
        learn.save(job.checkpoint)
    return learn.model


def litgpt(job):
    lightning, package = framework("lightning"), framework("litgpt.model")
    torch.manual_seed(0)
    config = framework("litgpt.config").Config(
        block_size=8, vocab_size=16, padded_vocab_size=16, n_layer=1, n_head=2, n_embd=8, intermediate_size=16
    )
    precision = "bf16-true" if job.low else "32-true"
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    bare = package.GPT(config)
    model, optimizer = fabric.setup(bare, torch.optim.SGD(bare.parameters(), lr=LR))
    monitor = job.monitor(model, optimizer)
    state = {"model": model, "optimizer": optimizer}
    if monitor is not None:
        state["monitor"] = monitor
    if job.first:
        fabric.load(job.checkpoint, state)
    generator = torch.Generator().manual_seed(1)
    for words in torch.randint(0, 16, (STEPS, 4, 8), generator=generator)[job.batches]:
        loss = nn.functional.cross_entropy(model(words).flatten(0, 1).float(), words.flatten())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        if monitor is not None:
            monitor.record(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
    if job.checkpoint is not None:
        fabric.save(job.checkpoint, state)
    return bare


def torchao(job):
    optim = framework("torchao.optim")
    return _loop(job, network(), lambda params: optim.AdamW8bit(params, lr=LR, eps=1e-3))


def compiled(job):
    model = torch.compile(network(), backend="eager")
    _loop(job, model, lambda params: torch.optim.SGD(params, lr=LR))
    return model._orig_mod


def _loop(job, model, optimizer_of):
    if job.low and not hasattr(model, "_orig_mod"):
        model.bfloat16()
        job.autocast = contextlib.nullcontext
    optimizer = optimizer_of(model.parameters())
    monitor = job.monitor(model, optimizer)
    job.load(model=model, optimizer=optimizer)
    dtype = next(model.parameters()).dtype
    for x, y in job.loader():
        with job.autocast():
            loss = mse(model(x.to(dtype)), y.to(dtype))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        if monitor is not None:
            monitor.record(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
    job.save(model=model, optimizer=optimizer)
    return model
