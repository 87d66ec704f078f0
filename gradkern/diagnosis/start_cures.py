"""The remedies for what a run starts with: its first weights and biases."""

from __future__ import annotations

from gradkern.diagnosis.finding import Finding, Remedy

#: Code that initializes each matrix by `init`.
INIT = """\
for module in model.modules():
    if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
        {init}
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)"""


def he_init() -> Remedy:
    return Remedy(
        "he_init",
        "Initialize with He's variance 2 / fan_in, which keeps the scale of the signal through ReLU layers, "
        "and set biases to zero.",
        INIT.format(init='torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")'),
    )


def zero_bias(finding: Finding) -> Remedy:
    name = next((name for name in finding.layers if "bias" in name), "bias")
    return Remedy(
        "zero_bias",
        f"Start {name} at zero: it is far larger than the weighted inputs, so that the units are inactive.",
        f'torch.nn.init.zeros_(model.get_parameter("{name}"))',
    )


def table_init(finding: Finding) -> Remedy:
    name = finding.layers[0] if finding.layers else "embedding.weight"
    rms = finding.evidence.get("table_rms", 1.0)
    return Remedy(
        "table_init",
        f"Start the vectors of {name} with PyTorch's default, a normal distribution of standard deviation 1: "
        f"their rms is {rms:.2g}.",
        f'torch.nn.init.normal_(model.get_parameter("{name}"))',
    )


def xavier_init() -> Remedy:
    return Remedy(
        "xavier_init",
        "Initialize with Xavier's variance 2 / (fan_in + fan_out), which keeps sigmoid and tanh in the "
        "middle of their range, and set biases to zero.",
        INIT.format(init="torch.nn.init.xavier_normal_(module.weight)"),
    )


def orthogonal_init() -> Remedy:
    return Remedy(
        "orthogonal_init",
        "Start with orthogonal recurrent weights, which keep the size of the state at each time step.",
        """\
for name, parameter in model.named_parameters():
    if "weight_hh" in name:
        torch.nn.init.orthogonal_(parameter)""",
    )


def open_forget_gate() -> Remedy:
    return Remedy(
        "open_forget_gate",
        "Start with open forget gates: a bias of 3 keeps 95 % of the state at each time step, the default of "
        "PyTorch only about half.",
        """\
# the gates are stacked: input, forget, cell, output
for name, bias in lstm.named_parameters():
    if "bias_hh" in name:
        torch.nn.init.constant_(bias.detach()[lstm.hidden_size : 2 * lstm.hidden_size], 3.0)""",
    )
