"""A small training for each framework that needs no class of gradkern's, as in docs/frameworks/others.md."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from tests.integrations.installed import framework, without_torchvision
from tests.integrations.job import CLIP, LR, SCALE, SIZE, STEPS, Losses, mse, network, rate, set_rate


def timm(job):
    utils = without_torchvision("timm", "utils.cuda")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    monitor = job.monitor(model, optimizer)
    scaler = utils.NativeScaler(device="cpu")
    scaler._scaler = torch.amp.GradScaler("cpu", init_scale=SCALE if job.low else 1.0)
    job.load(model=model, optimizer=optimizer, scaler=scaler)
    losses = Losses()
    for number, last, (x, y) in job.counted(job.loader()):
        set_rate(optimizer, number)
        with job.autocast():
            loss = mse(model(x), y)
        losses.append(loss.item())
        scaler(loss / job.micro, optimizer, clip_grad=CLIP, parameters=model.parameters(), need_update=last)
        if last:
            mean = losses.mean()
            if monitor is not None:
                monitor.amend(monitor.step, loss=mean)
            optimizer.zero_grad()
    job.save(model=model, optimizer=optimizer, scaler=scaler)
    return model


def ignite(job):
    engine, handlers = framework("ignite.engine"), framework("ignite.handlers")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    monitor = job.monitor(model, optimizer)
    losses = Losses()

    def update(trainer, batch):
        number, first = divmod(trainer.state.iteration - 1, job.micro)
        set_rate(optimizer, job.first + number + 1)
        if not first:
            optimizer.zero_grad()
        with job.autocast():
            loss = mse(model(batch[0]), batch[1])
        (loss / job.micro).backward()
        if trainer.state.iteration % job.micro == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        return loss.item()

    trainer = engine.Engine(update)
    state = {"model": model, "optimizer": optimizer}
    trainer.add_event_handler(engine.Events.ITERATION_COMPLETED, lambda t: losses.append(t.state.output))
    if monitor is not None:
        state["monitor"] = monitor

        @trainer.on(engine.Events.ITERATION_COMPLETED(every=job.micro))
        def add_loss(trainer):
            monitor.amend(monitor.step, loss=losses.mean())

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
    if job.low or job.micro > 1:
        classes = (framework("skorch.hf").AccelerateMixin, *classes)
        framework("accelerate.state").AcceleratorState._reset_state()  # another test's precision
        more["accelerator"] = accelerator = framework("accelerate").Accelerator(
            cpu=True, mixed_precision="bf16" if job.low else "no", gradient_accumulation_steps=job.micro
        )
    losses, monitor = Losses(), None

    def is_last():  # skorch clips after every micro-batch
        return job.micro == 1 or accelerator.sync_gradients

    class AddLoss(callbacks.Callback):
        def on_batch_begin(self, net, training=False, **kwargs):
            done = len(net.history[-1, "batches"]) - 1
            set_rate(net.optimizer_, job.first + done // job.micro + 1)

        def on_batch_end(self, net, batch=None, training=False, loss=None, **kwargs):
            losses.append(loss.item())
            if is_last() and monitor is not None:
                monitor.amend(monitor.step, loss=losses.mean())

    net = type("Net", classes, {})(
        network(), optimizer=torch.optim.SGD, lr=LR, max_epochs=1, batch_size=SIZE // job.micro,
        train_split=None, verbose=0, callbacks=[callbacks.GradientNormClipping(CLIP), AddLoss()], **more,
    )  # fmt: skip
    net.initialize()
    files = {}
    if job.checkpoint is not None:
        files = {f"f_{name}": str(job.checkpoint) + name for name in ("params", "optimizer")}
        if job.first:
            net.load_params(**files)
    monitor = job.monitor(net.module_, net.optimizer_, when=is_last)
    net.partial_fit(*job.tensors())  # `fit` would make another module
    if files:
        net.save_params(**files)
    return net.module_


def fastai(job):
    return _fastai(job, lambda basics: basics.SGD)


def fastai_wrapper(job):
    """torch's optimizer in fastai's `OptimWrapper`."""
    return _fastai(
        job, lambda basics: lambda params, **more: basics.OptimWrapper(params, torch.optim.SGD, **more)
    )


def _fastai(job, optimizer):
    basics, training = framework("fastai.basics"), framework("fastai.callback.training")
    loader = basics.DataLoader(job.dataset(), bs=SIZE // job.micro)
    learn = basics.Learner(
        basics.DataLoaders(loader, loader), network(), loss_func=mse, lr=LR, opt_func=optimizer(basics),
        cbs=[training.GradientClip(CLIP), training.GradientAccumulation(SIZE)], train_bn=False,
        path=".", model_dir=".",
    )  # fmt: skip
    learn.create_opt()
    if job.first:
        learn.load(job.checkpoint)
    monitor = job.monitor(learn.model, learn.opt)
    losses = Losses()

    class Record(basics.Callback):
        order = training.GradientClip.order + 1

        def before_batch(self):
            learn.opt.set_hyper("lr", rate(job.first + self.iter // job.micro + 1))

        def after_loss(self):
            losses.append(self.loss.item())

        def before_step(self):
            if monitor is not None:
                monitor.record(loss=losses.mean())

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
    words = torch.randint(0, 16, (STEPS, 4, 8), generator=torch.Generator().manual_seed(1))
    losses = Losses()
    for number, last, batch in job.counted(words[job.batches].flatten(0, 1).split(4 // job.micro)):
        set_rate(optimizer, number)
        with fabric.no_backward_sync(model, enabled=not last):
            loss = nn.functional.cross_entropy(model(batch).flatten(0, 1).float(), batch.flatten())
            fabric.backward(loss / job.micro)
        losses.append(loss.item())
        if last:
            fabric.clip_gradients(model, optimizer, max_norm=CLIP)
            mean = losses.mean()
            if monitor is not None:
                monitor.record(loss=mean)
            optimizer.step()
            optimizer.zero_grad()
    if job.checkpoint is not None:
        fabric.save(job.checkpoint, state)
    return bare


#: From this size on torchao's optimizers hold their state in few bits: 6 * 768 weights.
WIDE = 768


def torchao_8bit(job):
    return _loop(job, network(WIDE), lambda p: framework("torchao.optim").AdamW8bit(p, lr=LR, eps=1e-3))


def torchao_4bit(job):
    return _loop(job, network(WIDE), lambda p: framework("torchao.optim").AdamW4bit(p, lr=LR, eps=1e-3))


def torchao_fp8(job):
    return _loop(job, network(WIDE), lambda p: framework("torchao.optim").AdamWFp8(p, lr=LR, eps=1e-3))


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
    losses = Losses()
    for number, last, (x, y) in job.counted(job.loader()):
        set_rate(optimizer, number)
        with job.autocast():
            loss = mse(model(x.to(dtype)), y.to(dtype))
        (loss / job.micro).backward()
        losses.append(loss.item())
        if last:
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            mean = losses.mean()
            if monitor is not None:
                monitor.record(loss=mean)
            optimizer.step()
            optimizer.zero_grad()
    job.save(model=model, optimizer=optimizer)
    return model
