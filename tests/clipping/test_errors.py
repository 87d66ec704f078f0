"""Bad input: which error, what it says, and that no gradient has changed."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gradkern
from gradkern import policies
from tests.support import reference as ref
from tests.support.strategies import parameters


@pytest.fixture
def good():
    """Two parameters with gradients; unchanged after the test."""
    params = parameters([torch.tensor([30.0, 40.0]), torch.full((5,), 7.0)])
    before = [ref.bits(p.grad) for p in params]
    versions = [p.grad._version for p in params]
    yield params
    assert [ref.bits(p.grad) for p in params] == before
    assert [p.grad._version for p in params] == versions


CALLS = {
    "clip_grad_norm_": lambda params: gradkern.clip_grad_norm_(params, 1.0),
    "clip_grads_with_norm_": lambda params: gradkern.clip_grads_with_norm_(params, 1.0, 100.0),
    "clip_grad_value_": lambda params: gradkern.clip_grad_value_(params, 0.1),
    "measure": gradkern.measure,
    "GradClipper.clip_": lambda params: gradkern.GradClipper(params, 1.0).clip_(),
}
LIST = {name: "params" if name in ("measure", "GradClipper.clip_") else "parameters" for name in CALLS}
every_call = pytest.mark.parametrize("call", CALLS)


def raises(kind, text):
    return pytest.raises(kind, match=re.escape(text))


@every_call
def test_an_entry_that_is_no_tensor(good, call):
    for item, kind in ((None, "NoneType"), ("weight", "str"), (3.0, "float"), ({}, "dict")):
        with raises(TypeError, f"{LIST[call]}[2]: expected a "):
            CALLS[call]([*good, item])
        with raises(TypeError, f"got {kind}"):
            CALLS[call]([*good, item])


def test_an_entry_that_is_no_tensor_of_adaptive_clipping(good):
    for item in ("weight", 3.0, {}):
        with raises(TypeError, "[adaptive_clip_grad_] parameters[2]: expected a Tensor or Parameter, got"):
            gradkern.adaptive_clip_grad_([*good, item])


@every_call
def test_integer_gradients(good, call):
    bad = torch.zeros(3, dtype=torch.int64)
    bad.grad = torch.tensor([1, 2, 3])
    with raises(TypeError, f"{LIST[call]}[1]"):
        CALLS[call]([good[0], bad, good[1]])
    with raises(TypeError, "expected a floating-point or complex gradient, got Long"):
        CALLS[call]([good[0], bad, good[1]])


@every_call
def test_meta_gradients(good, call):
    bad = nn.Parameter(torch.zeros(3, device="meta"))
    bad.grad = torch.zeros(3, device="meta")
    with raises(TypeError, "expected a gradient with data, got a meta tensor"):
        CALLS[call]([*good, bad])


@every_call
@pytest.mark.filterwarnings("ignore:.*CSR.*:UserWarning")
def test_unsupported_layouts(good, call):
    dense = torch.eye(3)
    for grad, layout in ((dense.to_sparse_csr(), "SparseCsr"), (dense.to_mkldnn(), "Mkldnn")):
        bad = grad.clone().requires_grad_()
        bad.grad = grad
        with raises(TypeError, f"expected a strided or sparse COO gradient, got layout {layout}"):
            CALLS[call]([*good, bad])


@every_call
def test_plain_tensors_where_parameters_were_meant(call):
    plain = [torch.ones(3), torch.ones(2)]
    with raises(ValueError, "none of the 2 tensors requires grad or has a .grad"):
        CALLS[call](plain)


@every_call
def test_something_not_iterable(call):
    for thing in (3.5, object(), gradkern.measure):
        with raises(TypeError, f"got {type(thing).__name__}"):
            CALLS[call](thing)


def test_a_module_where_parameters_were_meant():
    for name in ("clip_grad_norm_", "clip_grads_with_norm_", "clip_grad_value_"):
        with raises(
            TypeError, f"[{name}] parameters: expected an iterable of Parameters, got the Module Linear"
        ):
            CALLS[name](nn.Linear(2, 2))


@pytest.mark.parametrize("number", [np.float32(0.5), np.int64(2), Fraction(1, 2), torch.tensor(0.5), True])
def test_whatever_converts_to_a_number_is_a_limit(good, number):
    assert gradkern.GradClipper(good, number).max_norm == float(number)
    grouped = gradkern.GradClipper(good, groups={"all": ("*", number)})
    assert grouped.policies["all"].max_norm == float(number)


def test_a_dict_of_parameters(good):
    named = {"first": good[0], "second": good[1]}
    with raises(TypeError, "[clip_grad_norm_] parameters[0]: expected a Tensor or Parameter, got str"):
        gradkern.clip_grad_norm_(named, 1.0)


def test_named_parameters_where_parameters_were_meant():
    model = nn.Linear(2, 2)
    with raises(TypeError, "[clip_grad_norm_] parameters[0]: expected a Tensor or Parameter, got tuple"):
        gradkern.clip_grad_norm_(model.named_parameters(), 1.0)


NO_NUMBERS = [
    (None, TypeError),
    ("abc", TypeError),
    ([1.0], TypeError),
    (1j, TypeError),
    (math.nan, ValueError),
    (torch.ones(2), ValueError),
    (torch.tensor(math.nan), ValueError),
    (torch.ones((), device="meta"), ValueError),
    (object(), TypeError),
]


@pytest.mark.parametrize(("value", "kind"), NO_NUMBERS, ids=[str(v)[:12] for v, _ in NO_NUMBERS])
def test_arguments_that_are_no_numbers(good, value, kind):
    with raises(kind, "[clip_grad_norm_] max_norm: expected a number, got"):
        gradkern.clip_grad_norm_(good, value)
    with raises(kind, "[clip_grad_norm_] norm_type: expected a number, got"):
        gradkern.clip_grad_norm_(good, 1.0, norm_type=value)
    with raises(kind, "[get_total_norm] norm_type: expected a number, got"):
        gradkern.get_total_norm([p.grad for p in good], value)
    with raises(kind, "[clip_grads_with_norm_] max_norm: expected a number, got"):
        gradkern.clip_grads_with_norm_(good, value, 1.0)
    with raises(kind, "[clip_grad_value_] clip_value: expected a number, got"):
        gradkern.clip_grad_value_(good, value)
    with raises(kind, "[measure] norm_type: expected a number, got"):
        gradkern.measure(good, norm_type=value)
    if value is not None:  # None: no limit is given, see tests/clipping/test_groups.py
        with raises(kind, "[GradClipper] max_norm: expected a number, got"):
            gradkern.GradClipper(good, value)
        with raises(kind, "[measure] inv_scale: expected a number, got"):
            gradkern.measure(good, inv_scale=value)


def test_numbers_too_large_for_a_float(good):
    with raises(OverflowError, "max_norm: expected a number"):
        gradkern.clip_grad_norm_(good, 10**400)


def test_what_float_converts_is_a_number():
    for max_norm in (1, True, torch.tensor(1.0), torch.tensor([1]), ref.np.float32(1.0)):
        params = parameters([torch.tensor([3.0, 4.0])])
        gradkern.clip_grad_norm_(params, max_norm)
        ref.assert_scaled(params[0].grad, torch.tensor([3.0, 4.0]), 1 / (5 + 1e-6))


TEXTS = ["1", "inf", b"1", bytearray(b"1"), memoryview(b"1"), np.str_("1"), np.bytes_(b"1"), np.array("1")]
LIMITS = {
    "[clip_grad_norm_] max_norm": gradkern.clip_grad_norm_,
    "[clip_grad_norm_] parameters[0]['max_norm']": lambda params, limit: gradkern.clip_grad_norm_(
        [{"params": params, "max_norm": limit}], 1.0
    ),
    "[clip_grads_with_norm_] max_norm": lambda params, limit: gradkern.clip_grads_with_norm_(
        params, limit, 9.0
    ),
    "[clip_grads_with_norm_] total_norm": lambda params, norm: gradkern.clip_grads_with_norm_(
        params, 1.0, norm
    ),
    "[clip_grad_value_] clip_value": gradkern.clip_grad_value_,
    "[adaptive_clip_grad_] clip_factor": gradkern.adaptive_clip_grad_,
    "[measure] inv_scale": lambda params, scale: gradkern.measure(params, inv_scale=scale),
    "[GradClipper] max_norm": gradkern.GradClipper,
    "[GradClipper] groups['all']": lambda params, limit: gradkern.GradClipper(
        params, groups={"all": ("*", limit)}
    ),
    "[GlobalNorm] max_norm": lambda _, limit: policies.GlobalNorm(limit),
    "[PerLayerNorm] max_norm": lambda _, limit: policies.PerLayerNorm(limit),
    "[Value] clip_value": lambda _, limit: policies.Value(limit),
    "[SkipOutliers] max_norm": lambda _, limit: policies.SkipOutliers(max_norm=limit),
    "[ZClip] max_norm": lambda _, limit: policies.ZClip(max_norm=limit),
    "[AGC] clip_factor": lambda _, limit: policies.AGC(limit),
    "[Schedule] max_norm": lambda params, limit: gradkern.GradClipper(
        params, policy=policies.Schedule(lambda _: limit)
    ).clip_(),
    "[Schedule] end": lambda _, limit: policies.Schedule.warmup(1.0, limit, 10),
}


@pytest.mark.parametrize("argument", LIMITS)
def test_text_is_no_limit(good, argument):
    """`float` would parse it."""
    for text in TEXTS:
        with pytest.raises(TypeError, match=re.escape(argument)):
            LIMITS[argument](good, text)


def test_text_is_no_limit_that_is_set_later(good):
    clipper = gradkern.GradClipper(good, 1.0)
    by_value = policies.Value(1.0)
    for text in TEXTS:
        with raises(TypeError, "[GradClipper] max_norm: expected a number, got"):
            clipper.max_norm = text
        with raises(TypeError, "[GlobalNorm] max_norm: expected a number, got"):
            clipper.policies[""].max_norm = text
        with raises(TypeError, "[Value] clip_value: expected a number, got"):
            by_value.clip_value = text
    assert clipper.max_norm == by_value.clip_value == 1.0


@pytest.mark.parametrize("value", [None, "abc", torch.ones(2), torch.ones(0)])
def test_total_norms_that_are_no_numbers(good, value):
    with raises((TypeError, ValueError), "[clip_grads_with_norm_] total_norm: expected"):
        gradkern.clip_grads_with_norm_(good, 1.0, value)


def test_norm_type_as_torch_spells_infinity(good):
    assert gradkern.clip_grad_norm_(good, math.inf, norm_type="inf").item() == 40.0


def test_complex_gradients_cannot_be_limited(good):
    bad = parameters([torch.tensor([1 + 1j])])
    with raises(
        TypeError,
        "[clip_grad_value_] parameters[2]: expected a real gradient (complex numbers have no order), "
        "got ComplexFloat",
    ):
        gradkern.clip_grad_value_([*good, *bad], 0.1)


def test_uncoalesced_gradients_cannot_be_limited(good):
    param = nn.Parameter(torch.zeros(4))
    param.grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([5.0, -5.0]), (4,))
    with raises(TypeError, "expected a dense or a coalesced sparse gradient, got an uncoalesced one"):
        gradkern.clip_grad_value_([*good, param], 0.1)


class TestNonfinite:
    def test_error_if_nonfinite_names_the_entries(self, good):
        bad = parameters([torch.tensor([1.0, math.nan, math.inf])])
        before = ref.bits(bad[0].grad)
        with raises(
            RuntimeError,
            "[clip_grad_norm_] The total norm of order 2.0 for gradients from `parameters` is "
            "non-finite, so it cannot be clipped. Non-finite: parameters[1] (2 of 3 elements).",
        ):
            gradkern.clip_grad_norm_([good[0], *bad, good[1]], 1.0, error_if_nonfinite=True)
        assert ref.bits(bad[0].grad) == before

    def test_torch_s_words_are_kept(self):
        """Code that matches torch's message keeps working."""
        bad = parameters([torch.tensor([math.inf])])
        with pytest.raises(RuntimeError) as theirs:
            torch.nn.utils.clip_grad_norm_(bad, 1.0, error_if_nonfinite=True)
        with pytest.raises(RuntimeError) as ours:
            gradkern.clip_grad_norm_(bad, 1.0, error_if_nonfinite=True)
        words = "for gradients from `parameters` is non-finite, so it cannot be clipped"
        assert words in str(theirs.value)
        assert words in str(ours.value)

    def test_many_offenders_are_counted(self):
        bad = parameters([torch.tensor([math.nan]) for _ in range(20)])
        with raises(RuntimeError, "parameters[7] (1 of 1 elements) and 12 more"):
            gradkern.clip_grad_norm_(bad, 1.0, error_if_nonfinite=True)

    def test_a_finite_list_whose_norm_overflows(self):
        params = parameters([torch.full((100,), 3e38)])
        with raises(RuntimeError, "no element: the finite gradients' norm is beyond the largest float32"):
            gradkern.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)

    def test_get_total_norm(self):
        with raises(RuntimeError, "tensors[1] (1 of 2 elements)"):
            gradkern.get_total_norm([torch.ones(3), torch.tensor([math.nan, 1.0])], error_if_nonfinite=True)

    def test_finite_lists_pass(self):
        assert gradkern.get_total_norm([torch.tensor([3.0, 4.0])], error_if_nonfinite=True).item() == 5.0


class TestNothing:
    def test_empty_lists_give_zero(self):
        assert gradkern.clip_grad_norm_([], 1.0).item() == 0.0
        assert gradkern.get_total_norm([]).item() == 0.0
        assert gradkern.clip_grad_norm_((), 1.0).dtype == torch.float32

    def test_parameters_without_gradient_give_zero(self):
        model = nn.Linear(3, 3)
        assert gradkern.clip_grad_norm_(model.parameters(), 1.0).item() == 0.0

    def test_frozen_parameters_give_zero_as_in_torch(self):
        class Quantised(nn.Parameter):
            pass

        frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        own = Quantised(torch.ones(3), requires_grad=False)
        for params in ([frozen], [own], [frozen, own]):
            assert torch.nn.utils.clip_grad_norm_(params, 1.0).item() == 0.0
            assert gradkern.clip_grad_norm_(params, 1.0).item() == 0.0

    @pytest.mark.parametrize("kind", ["generator", "filter", "map", "chain", "zip", "iter"])
    def test_an_iterator_that_is_used_up_warns(self, kind):
        model = nn.Linear(2, 2)
        params = {
            "generator": lambda: model.parameters(),
            "filter": lambda: filter(lambda p: p.requires_grad, model.parameters()),
            "map": lambda: map(lambda p: p, model.parameters()),
            "chain": lambda: itertools.chain(model.parameters()),
            "zip": lambda: zip(model.parameters()),
            "iter": lambda: iter([*model.parameters()]),
        }[kind]()
        list(params)
        calls = [
            lambda: gradkern.clip_grad_norm_(params, 1.0),
            lambda: gradkern.clip_grad_value_(params, 1.0),
            lambda: gradkern.clip_grads_with_norm_(params, 1.0, torch.tensor(1.0)),
            lambda: gradkern.get_total_norm(params),
            lambda: gradkern.measure(params),
        ]
        for call in calls:
            with pytest.warns(gradkern.GradkernWarning, match="yields nothing.*pass a list") as caught:
                call()
            assert [Path(w.filename).name for w in caught] == ["test_errors.py"]
        with (
            pytest.warns(gradkern.GradkernWarning, match=r"\[GradClipper\] params: this .* yields nothing"),
            raises(ValueError, "expected at least one parameter"),
        ):
            gradkern.GradClipper(params, 1.0)

    def test_other_empty_iterables_do_not(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert gradkern.clip_grad_norm_([], 1.0).item() == 0.0
            assert gradkern.clip_grad_norm_({}.values(), 1.0).item() == 0.0


def test_overlapping_views_of_different_types_are_refused(good):
    memory = torch.full((8,), 3.0)
    halves = memory.view(torch.bfloat16)
    params = parameters([memory[2:6], halves[2:9]])
    before = ref.bits(memory)
    with raises(ValueError, "expected gradients that overlap in memory to have one dtype"):
        gradkern.clip_grad_norm_([*good, *params], 0.1)
    assert ref.bits(memory) == before


def test_measure_names_the_parameter():
    bad = torch.zeros(3, dtype=torch.int64)
    bad.grad = torch.tensor([1, 2, 3])
    with raises(
        TypeError,
        "[measure] params[1] ('head.weight'): expected a floating-point or complex gradient, got Long",
    ):
        gradkern.measure([("body.weight", nn.Parameter(torch.zeros(2))), ("head.weight", bad)])


class TestClipperArguments:
    def test_policy(self):
        with raises(
            ValueError,
            "[GradClipper] on_nonfinite: expected one of propagate, raise, raise_later, zero, skip, "
            "got 'ignore'",
        ):
            gradkern.GradClipper(nn.Linear(2, 2), 1.0, on_nonfinite="ignore")

    def test_no_parameters(self):
        with raises(ValueError, "[GradClipper] params: expected at least one parameter, got none"):
            gradkern.GradClipper([], 1.0)

    def test_an_optimizer_that_is_not_fused(self):
        model = nn.Linear(2, 2)
        with raises(
            ValueError, "[GradClipper] optimizer: expected a fused optimizer, got AdamW without fused=True"
        ):
            gradkern.GradClipper(
                model, 1.0, on_nonfinite="skip", optimizer=torch.optim.AdamW(model.parameters())
            )

    def test_an_optimizer_without_the_policy(self):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        with raises(
            ValueError,
            "[GradClipper] optimizer: has no effect with on_nonfinite='zero'. It is used with on_nonfinite=",
        ):
            gradkern.GradClipper(model, 1.0, on_nonfinite="zero", optimizer=optimizer)


def test_a_grad_that_is_no_tensor(good):
    for kind, expected in (
        (object, "expected a Tensor or Parameter, got Odd"),
        (nn.Parameter, "expected .grad to be a Tensor or None, got int"),
    ):
        entry = type("Odd", (kind,), {"grad": 5})()
        with raises(TypeError, f"[clip_grad_norm_] parameters[2]: {expected}"):
            gradkern.clip_grad_norm_([*good, entry], 1.0)


def test_a_number_on_no_device(good):
    nowhere = torch.ones((), device="meta")
    with raises(ValueError, "max_norm: expected a number, got a meta tensor, which has no value"):
        gradkern.clip_grad_norm_(good, nowhere)
    with raises(ValueError, "total_norm: expected a value, got a meta tensor, which has none"):
        gradkern.clip_grads_with_norm_(good, 1.0, nowhere)


def test_what_selects_parameters_by_name(good):
    with raises(ValueError, "[GradClipper] in_process_group: has no effect without process_group"):
        gradkern.GradClipper(good, 1.0, in_process_group=lambda name: True)
    for option in ("in_process_group", "counted_elsewhere"):
        with raises(TypeError, f"[GradClipper] {option}: expected a function of a parameter's name, got str"):
            gradkern.GradClipper(good, 1.0, **{option: "experts"})
