"""The faulty runs of the eighth set: those of `healthy` with faults of earlier sets, paired by chance.

`draw` has drawn the pairs with ``random.Random(8)``: nine for each expected kind, from all pairs of a
recipe and a fault that applies to it. Pairs whose label the trace at the first seed does not confirm, whose
twin is not healthy or that cannot be built were replaced by the next ones drawn.
"""

from __future__ import annotations

import benchmarks.diagnosis.sets.fifth.faults as fifth
import benchmarks.diagnosis.sets.fourth.faults as fourth
import benchmarks.diagnosis.sets.seventh.faults as seventh
import benchmarks.diagnosis.sets.sixth.faults as sixth
from benchmarks.diagnosis.faulty import Case, Change, cases_of
from benchmarks.diagnosis.sets.eighth.healthy import HEALTHY

__all__ = ["CHANGES", "eighth_cases"]

#: Name of the fault: (key of `LABELS`, what it does to a recipe); of equal names, the latest.
CHANGES: dict[str, tuple[str, Change]] = {
    **fourth.CHANGES,
    **fifth.CHANGES,
    **sixth.CHANGES,
    **seventh.CHANGES,
}

#: The faults that are applied to each healthy recipe, as drawn.
_PAIRS = {
    "teacher_gelu": "withered",
    "clusters_nesterov": "biases_first choked_hard decayed sentinels",
    "spirals_silu": "inputs_lost spike",
    "swiss_mish": "thousand_times withered",
    "swiss_tanh_sgd": "choked_hard",
    "rings_relu": "constant sigmoid_eight surge",
    "rings_sgd": "dead_second log_zero spike",
    "circles_gelu": "alternating",
    "hastie_silu": "negative_second unshuffled",
    "china_relu": "surge",
    "china_sgd": "choked tanh_small",
    "prices_tanh": "decayed_apart",
    "heat_silu": "labels_late limit_far_off",
    "friedman_six": "spare",
    "friedman_relu_sgd": "alternating choked hundred_times",
    "digits_two": "never_zeroed",
    "digits_seven": "biases_second randn",
    "digits_relu_five": "biases_first",
    "moons_leaky": "never_zeroed sigmoid_nine",
    "cancer_adamax": "dead_second",
    "diabetes_elu": "sigmoid_nine",
    "photo_relu": "blank nan_feature",
    "bodies_gelu": "cents",
    "tumors_sigmoid": "normal_small stuck_first thrown_far uphill",
    "tags_silu": "holes sentinel",
    "five_tanh": "eighty_times thrown_far",
    "regression_tanh": "thrown",
    "iris_tanh": "negative_second",
    "residual_teacher": "alternating exp_loss",
    "residual_halves": "decayed_apart",
    "batchnorm_rings": "three_hundred_times",
    "batchnorm_digits_sgd": "normal_1 schedule_spent",
    "funnel_clusters": "nan_batch thousand_times",
    "wide_deep_china": "constant",
    "low_rank_friedman": "normal_small praised",
    "snakes_wave": "loud_stem",
    "layer_scale_sgd": "labels_mixed targets_shifted",
    "repeated_five": "spare thrown",
    "two_experts_clusters": "decayed_apart head_forgotten",
    "skipping_shells": "rate_millionth withered",
    "cosine_digits": "unshuffled",
    "bilinear_phase": "alternating",
    "bilinear_impedance": "inputs_lost limit_millions nan_batch",
    "piecewise_prices": "alternating praised three_hundred_times",
    "dueling_digits": "layers_standing sentinels surge",
    "cnn_layernorm": "inflated",
    "cnn_residual_colored": "inf_batch",
    "cnn_tanh": "hundredths",
    "vgg_images": "gain_4",
    "resnet_gratings": "inflated",
    "bottlenecks_sgd": "choked limit_millions",
    "shift_images": "sentinels",
    "shift_colored": "sentinels",
    "scales_disks": "schedule_spent",
    "response_images": "limit_millions",
    "response_sgd": "inf_batch",
    "attended_colored": "step_forgotten",
    "rnn_rows_sgd": "choked",
    "attention_free_rows": "unshuffled",
    "talking_text": "table_cut",
    "averages_tides": "surge",
    "without_norm_rows": "inflated",
    "adapted_english": "spare",
    "simple_beats": "decayed labels_mixed",
    "multiplicative_rows": "inflated",
    "stack_patches": "loud_head",
    "pairs_rows": "rate_forgotten rate_millionth",
    "moments_patches": "labels_late",
    "autoencoder_silu": "inflated withered",
    "variational_wider": "raw_batch",
    "coder_sliced": "limit_thousands",
    "experts_rings": "limit_thousands ones",
    "frozen_rings": "detached softmax_between",
    "huber_prices": "dead_first",
    "focal_digits": "biases_second targets_shifted",
    "adagrad_bodies": "hundred_times",
    "cycle_clusters": "praised",
    "triangles_five": "outlier",
    "batch_of_four": "blank choked three_hundred_times",
    "accumulated_tags": "limit_thousands sigmoid_twelve",
    "bfloat16_halves": "thousand_times",
    "autocast_cnn": "targets_shifted",
    "float16_scaled_shells": "ones",
    "dropout_tags": "columns",
    "units_rings": "amp_float16",
    "units_halves_gelu": "amp_float16",
    "units_clusters_mish": "amp_float16 largest_alone",
    "units_vgg": "amp_float16 float16",
    "units_tags_silu": "float16",
    "units_shells_leaky": "float16 holes",
    "units_digits_gelu": "amp_float16 float16 limit_far_off",
    "full_rings": "swinging_40 thrown_far",
    "full_clusters": "choked limit_thousands rate_millionth",
    "full_china": "choked inflated stuck_first thrown",
    "full_hastie": "thrown unused",
}


def eighth_cases() -> list[Case]:
    """Each case of the eighth set."""
    return list(cases_of(_PAIRS, HEALTHY, CHANGES))
