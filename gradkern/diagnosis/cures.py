"""The remedies: for each an action, the reason, and code with the numbers of the run."""

from __future__ import annotations

import numpy as np

from gradkern.diagnosis.case import Case
from gradkern.diagnosis.finding import Finding, Remedy
from gradkern.diagnosis.gain import input_rms
from gradkern.diagnosis.optimizer import DECAYING, classes, grows_by_itself
from gradkern.diagnosis.start_cures import INIT

_SCALER = """\
scaler = torch.amp.GradScaler("cuda")
scaler.scale(loss).backward()
scaler.step(optimizer)
scaler.update()"""
#: Weight decay that is common: with a decoupled one (the default of AdamW), and where it is a part of the
#: gradient (He et al. 2016).
DECOUPLED_DECAY, COUPLED_DECAY = 1e-2, 1e-4

#: Optimizers of torch.optim; the class of another one is named without a module.
_OPTIMIZERS: tuple[str, ...] = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD")
_OPTIMIZERS += ("LBFGS", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam")


def relu() -> Remedy:
    return Remedy(
        "relu",
        "Use ReLU (or GELU) with He initialization between the layers: its slope is 1 for positive inputs, "
        "while that of a sigmoid is at most 0.25 and that of a tanh reaches 1 only at zero.",
        "# instead of Sigmoid() or Tanh()\nlayers = [torch.nn.Linear(width, width), torch.nn.ReLU()]\n"
        + INIT.format(init='torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")'),
    )


def leaky_relu() -> Remedy:
    return Remedy(
        "leaky_relu",
        "Use LeakyReLU: an inactive unit keeps a small slope and can recover.",
        "# instead of torch.nn.ReLU()\ntorch.nn.LeakyReLU(0.01)",
    )


def residual() -> Remedy:
    return Remedy(
        "residual",
        "Add residual connections: the gradient then reaches every layer on a path that does not multiply it."
        "",
        "# instead of x = block(x)\nx = x + block(x)",
    )


def normalization() -> Remedy:
    return Remedy(
        "normalization",
        "Normalize between the layers, so that every layer gets a signal of the same scale.",
        "torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.LayerNorm(width), activation)",
    )


def gated() -> Remedy:
    return Remedy(
        "gated",
        "Use an LSTM or a GRU, whose gates pass the state on without multiplying it by a matrix.",
        "# instead of torch.nn.RNN\ntorch.nn.LSTM(width, width, batch_first=True)",
    )


def fewer_layers(finding: Finding) -> Remedy:
    layers = int(finding.evidence.get("layers_in_chain", 0))
    return Remedy(
        "fewer_layers", f"Use fewer than {layers} layers: each of them reduces the gradient further."
    )


def zero_grad() -> Remedy:
    return Remedy(
        "zero_grad",
        "Call zero_grad() in every step: without it gradients add up over the steps, which makes the norm "
        "grow.",
        "optimizer.step()\noptimizer.zero_grad()",
    )


def loss_scaling() -> Remedy:
    return Remedy(
        "loss_scaling",
        "Scale the loss, so that float16 can represent the gradients. The scaler divides them by the scale "
        "before the step.",
        _SCALER,
    )


def dynamic_scale(case: Case) -> Remedy:
    scale = float(np.append(case.evidence.loss_scale[np.isfinite(case.evidence.loss_scale)], 1.0)[0])
    return Remedy(
        "loss_scaling",
        f"Let a GradScaler find the loss scale: at {scale:.2g}, which is never lowered, float16 overflows.",
        _SCALER,
    )


def bfloat16() -> Remedy:
    return Remedy(
        "bfloat16",
        "Use bfloat16, which has the range of float32.",
        'with torch.autocast("cuda", dtype=torch.bfloat16):\n    loss = compute_loss(model, batch)',
    )


def float32_weights() -> Remedy:
    return Remedy(
        "float32_weights",
        "Keep the weights in float32 and compute in 16 bits under autocast, because 16-bit weights lose "
        "small changes.",
        "model.float()\n"
        'with torch.autocast("cuda", dtype=torch.bfloat16):\n    loss = compute_loss(model, batch)',
    )


def weight_decay(case: Case) -> Remedy:
    kinds = classes(case)
    code = f"optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay={DECOUPLED_DECAY:g})"
    if kinds and all(kind == "SGD" for kind in kinds):
        code = f'for group in optimizer.param_groups:\n    group["weight_decay"] = {COUPLED_DECAY:g}'
    because = "Add weight decay, which keeps the weights from growing without limit."
    if grows_by_itself(case):
        because = (
            "Look for what multiplies the weights at each step, such as a decay or a penalty of the wrong "
            "sign: no gradient does. Use a weight decay that shrinks them."
        )
    return Remedy("weight_decay", because, code)


def less_weight_decay(case: Case) -> Remedy:
    groups = case.evidence.facts.get("optimizers") or []
    now = max((float(g.get("weight_decay") or 0) for g in groups), default=0.0)
    coupled = all(kind.upper().startswith("SGD") or not DECAYING.search(kind) for kind in classes(case))
    usual = COUPLED_DECAY if coupled else DECOUPLED_DECAY
    value = f"{min(now / 100, usual):.1g}" if now else "0.0"
    stated = f" (it is {now:g})" if now else ""
    return Remedy(
        "less_weight_decay",
        f"Lower the weight decay to {value}{stated}: it removes more from the weights than the gradient adds."
        "",
        f'for group in optimizer.param_groups:\n    group["weight_decay"] = {value}',
    )


def scale_inputs(case: Case) -> Remedy:
    return Remedy(
        "scale_inputs",
        f"Standardize the inputs: their rms is about {input_rms(case):.2g}, while initializations assume 1.",
        "# of the training set, for each feature\nx = (x - mean) / std",
    )


def scale_targets(case: Case) -> Remedy:
    return Remedy(
        "scale_targets",
        f"Standardize the targets: a first loss of {case.evidence.loss[0]:.2g} means that they are much "
        "larger than 1.",
        "# of the training set; undo it when predicting\ny = (y - y_mean) / y_std",
    )


def skip_nonfinite() -> Remedy:
    return Remedy(
        "skip_nonfinite",
        "Skip steps whose gradients are not finite, so that inf and NaN do not reach the weights.",
        'clipper = gradkern.GradClipper(model, max_norm, on_nonfinite="skip")\n'
        "stats = clipper.clip_()\nif not stats.skip_step:\n    optimizer.step()",
    )


def check_data(finding: Finding) -> Remedy:
    return Remedy(
        "check_data",
        f"Check the batch of step {finding.first_step}, and logarithms, roots and divisions in the loss.",
        "assert torch.isfinite(batch).all()\n# names the operation; slow\n"
        "torch.autograd.set_detect_anomaly(True)",
    )


def use_parameters(finding: Finding) -> Remedy:
    name = finding.layers[0] if finding.layers else "any parameter"
    return Remedy(
        "use_parameters",
        f"Find out where {name} is cut off from the loss: a module that forward() does not call, detach(), "
        ".item(), no_grad(), or an operation without a slope such as round() and argmax().",
    )


def freeze(finding: Finding) -> Remedy:
    return Remedy(
        "freeze",
        "If this is intended, freeze the parameters. Frozen parameters are not reported.",
        "for parameter in module.parameters():\n    parameter.requires_grad_(False)",
    )


def add_to_optimizer(case: Case, finding: Finding) -> Remedy:
    groups = case.evidence.facts.get("optimizers") or []
    kind = str(groups[0].get("class", "")) if groups else ""
    made = (
        f"torch.optim.{kind}" if kind in _OPTIMIZERS else kind if kind.isidentifier() else "torch.optim.AdamW"
    )
    return Remedy(
        "add_to_optimizer",
        f"Pass all parameters to the optimizer, which does not change {finding.layers[0]}.",
        f"optimizer = {made}(model.parameters(), lr=lr)",
    )


def call_step() -> Remedy:
    return Remedy(
        "call_step",
        "Call optimizer.step() once per step, on an optimizer that was created with the parameters of this "
        "model.",
        "loss.backward()\noptimizer.step()\noptimizer.zero_grad()",
    )


def check_labels() -> Remedy:
    return Remedy(
        "check_labels",
        "Check that inputs and targets belong together. Common faults are shuffled labels, a wrong column "
        "and a wrong sign.",
    )


def shuffle() -> Remedy:
    return Remedy(
        "shuffle",
        "Shuffle the training data, so that each batch holds all kinds of examples: a step for one kind "
        "undoes those for the others.",
        "loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True)",
    )


def check_sign() -> Remedy:
    return Remedy(
        "check_sign",
        "Check the sign of the loss: it rises from the first step on, although the steps are small. A reward "
        "or a log-likelihood has to be negated or maximized.",
        "# or optimizer = torch.optim.Adam(parameters, lr, maximize=True)\n(-log_likelihood).backward()",
    )


def record_in_time() -> Remedy:
    return Remedy(
        "record_in_time",
        "Call record() after backward() and before zero_grad(), so that it sees the gradients.",
        "optimizer.zero_grad()\nloss.backward()\nmonitor.record(loss=loss)\noptimizer.step()",
    )


def plain_outputs(finding: Finding) -> Remedy:
    activation = "softmax" if finding.kind == "saturation" else "ReLU"
    return Remedy(
        "plain_outputs",
        f"Remove the {activation} behind the last layer: cross_entropy() takes outputs of any sign and size.",
        "# where model ends with a Linear\noutputs = model(inputs)\n"
        "loss = torch.nn.functional.cross_entropy(outputs, targets)",
    )


def remove_minus() -> Remedy:
    return Remedy(
        "check_sign",
        "Check the sign of the loss: remove the minus sign in front of a loss of PyTorch, which is to be "
        "minimized as it is, or put one in front of a mean log-probability, which is to be maximized.",
        "# without a minus sign\nloss = torch.nn.functional.cross_entropy(outputs, targets)\nloss.backward()",
    )


def check_part(case: Case) -> Remedy:
    return Remedy(
        "check_sign",
        f"Check the sign of each part of the loss: it falls to {case.trend.lowest:.3g}, so that one part can "
        "fall without end. A penalty has to be added.",
        "loss = loss + 1e-4 * sum(p.square().sum() for p in model.parameters())",
    )


def overfit_one_batch() -> Remedy:
    return Remedy(
        "overfit_one_batch",
        "Train on a single batch. If the loss does not fall even then, the fault is in the model or the loss."
        "",
        "batch = next(iter(loader))\nfor _ in range(200):\n    train_step(model, batch)",
    )
