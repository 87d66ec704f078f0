// The state and the decisions of adaptive policies, one step at a time, with the same code for a thread of the CPU
// and a block of a GPU.
//
// The state of a policy is a row of float64, initially zeros. A total that is not finite does not enter the state
// and limits nothing; non-finite gradients are handled elsewhere.
#pragma once

#include "core/clip.h"

namespace gradkern {

/// kNothing leaves gradients as they are; kGlobalNorm goes by constants[0], the largest norm to leave. These two
/// remember nothing.
enum class PolicyKind : uint8_t { kNothing, kGlobalNorm, kAutoClip, kZClip, kSkipOutliers, kAdaGC };

constexpr int kPolicyConstants = 8;

/// The arguments of one step. Only AdaGC uses `norms` and `rows`.
struct PolicyStep {
  PolicyKind kind;
  double constants[kPolicyConstants];
  const void* total;      ///< double if total_is_double, else float
  const void* norms;      ///< [rows], double if norms_are_double, else float
  double* state;          ///< as policy_state_size() says
  double* result;         ///< factor, skip (0 or 1), threshold; AdaGC: factors, thresholds, skip
  int64_t rows;
  bool total_is_double, norms_are_double;
};

/// The lengths of the state and the result of a policy, in float64 numbers.
inline int64_t policy_state_size(const PolicyStep& p) {
  switch (p.kind) {
    case PolicyKind::kAutoClip: return 1 + 2 * int64_t(p.constants[1]);
    case PolicyKind::kZClip: return 3;
    case PolicyKind::kSkipOutliers: return 1 + int64_t(p.constants[1]);
    case PolicyKind::kAdaGC: return 1 + p.rows;
    case PolicyKind::kNothing:
    case PolicyKind::kGlobalNorm: break;
  }
  return 0;
}
inline int64_t policy_result_size(const PolicyStep& p) {
  return p.kind == PolicyKind::kAdaGC ? 2 * p.rows + 1 : 3;
}

/// The threads that process a step together. All of them call every function below.
struct OneThread {
  int64_t rank = 0, size = 1;
  GRADKERN_HD void sync() const {}
};

GRADKERN_HD double real_at(const void* row, int64_t i, bool is_double) {
  return is_double ? static_cast<const double*>(row)[i] : double(static_cast<const float*>(row)[i]);
}

/// The factor that limits `norm` to `threshold`, with the formula of decide_clip().
GRADKERN_HD double limiting_factor(double threshold, double norm) {
  const double coef = clip_coefficient(threshold, norm);
  return coef < 1.0 ? coef : 1.0;
}

/// A gradient and its weights in the order of memory, each `rows` units of `length` elements.
struct UnitsRef {
  void* grad = nullptr;
  const void* weights = nullptr;
  int64_t rows = 0, length = 0;
  DType grad_dtype = DType::kFloat32, weights_dtype = DType::kFloat32;
};

/// AGC (Brock et al. 2021), as timm.utils.agc: the factor that limits the gradient of a unit to clip_factor times
/// the norm of its weights. NaN is passed on, as there.
GRADKERN_HD double unit_factor(double weight_norm, double grad_norm, double clip_factor, double eps) {
  const double limit = clip_factor * (weight_norm < eps ? eps : weight_norm);
  if (grad_norm < limit) return 1.0;
  return limit / (grad_norm < 1e-6 ? 1e-6 : grad_norm);
}

/// The number of the `count` ascending values that are below x.
GRADKERN_HD int64_t numbers_below(const double* sorted, int64_t count, double x) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (sorted[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/// The percentile with linear interpolation, as in numpy.percentile and torch.quantile.
GRADKERN_HD double percentile_of(const double* sorted, int64_t count, double percentile) {
  const double at = percentile / 100.0 * double(count - 1);
  const int64_t below = int64_t(at);
  if (below + 1 >= count) return sorted[count - 1];
  return sorted[below] + (at - double(below)) * (sorted[below + 1] - sorted[below]);
}

/// Inserts x into `sorted` and removes the number at `leaving` (none if leaving == count). Writes nothing before the
/// first sync(), so that `leaving` may have been found in `sorted`.
template <class Team>
GRADKERN_HD void replace_in_order(double* sorted, int64_t count, int64_t leaving, double x, const Team& team) {
  int64_t entering = numbers_below(sorted, count, x);
  if (entering > leaving) --entering;
  // Numbers in between move by one place, those beside `leaving` first. A round reads nothing that an earlier one has
  // written, so that each needs a single sync(), before it overwrites what others read.
  const int64_t step = entering > leaving ? 1 : -1, distance = step * (entering - leaving);
  int64_t begin = 0;
  do {
    const int64_t k = begin + team.rank, i = leaving + step * k;
    const double neighbour = k < distance ? sorted[i + step] : 0;
    team.sync();
    if (k < distance) sorted[i] = neighbour;
    begin += team.size;
  } while (begin < distance);
  if (team.rank == 0) sorted[entering] = x;
}

/// The same by one thread: plain loops, which become block moves.
GRADKERN_HD void replace_in_order(double* sorted, int64_t count, int64_t leaving, double x, const OneThread&) {
  int64_t entering = numbers_below(sorted, count, x);
  if (entering > leaving) {
    --entering;
    for (int64_t i = leaving; i < entering; ++i) sorted[i] = sorted[i + 1];
  } else {
    for (int64_t i = leaving; i > entering; --i) sorted[i] = sorted[i - 1];
  }
  sorted[entering] = x;
}

/// AutoClip (Seetharaman et al. 2020): the threshold is a percentile of the norms before this one.
/// Constants: percentile, window. State: the number of norms, a ring of the latest ones, the same sorted.
template <class Team>
GRADKERN_HD double auto_clip_threshold(const PolicyStep& p, double total, const Team& team) {
  const int64_t window = int64_t(p.constants[1]), seen = int64_t(p.state[0]);
  const int64_t count = seen < window ? seen : window;
  double* const ring = p.state + 1;
  double* const sorted = ring + window;
  const double threshold = count ? percentile_of(sorted, count, p.constants[0]) : infinity();
  if (!is_finite(total)) return threshold;
  const double oldest = ring[seen % window];
  const int64_t leaving = count < window ? count : numbers_below(sorted, count, oldest);
  replace_in_order(sorted, count, leaving, total, team);
  if (team.rank == 0) {
    ring[seen % window] = total;
    p.state[0] = double(seen + 1);
  }
  return threshold;
}

/// ZClip (Kumar et al. 2025), with the formulas of the package zclip 1.0.0.
struct ZClipConstants {
  double alpha, z_threshold, warmup, mode, max_norm, eps, clip_factor, skip_update;
};

/// The threshold from the running mean and variance; infinite if `total` is not an outlier.
GRADKERN_HD double zclip_limit(const ZClipConstants& c, double total, double mean, double variance) {
  constexpr double kPercentile = 0, kAdaptive = 1;
  const double deviation = sqrt(variance);
  if (c.mode == kPercentile) {
    const double limit = mean + c.z_threshold * deviation;
    return total > limit ? limit : infinity();
  }
  const double z = (total - mean) / (deviation + c.eps);
  if (!(z > c.z_threshold)) return infinity();
  if (c.mode != kAdaptive) return mean;
  return (mean + c.z_threshold * deviation / (z / c.z_threshold)) * c.clip_factor;
}

/// State: the number of norms, their mean, their variance (in warm-up the sum of squared deviations, by Welford).
GRADKERN_HD double zclip_threshold(const PolicyStep& p, double total) {
  const ZClipConstants c = bit_cast<ZClipConstants>(p.constants);
  double seen = p.state[0], mean = p.state[1], variance = p.state[2];
  const bool warming_up = seen < c.warmup;
  const double limit = warming_up || !is_finite(total) ? infinity() : zclip_limit(c, total, mean, variance);
  const double threshold = limit < c.max_norm ? limit : c.max_norm;
  const bool spike = limit < infinity();
  if (!is_finite(total) || (spike && c.skip_update != 0)) return threshold;
  if (warming_up) {
    const double off = total - mean;
    mean += off / (seen + 1);
    variance += off * (total - mean);
    if (seen + 1 >= c.warmup) variance /= seen + 1;
  } else {
    const double entering = spike ? limit : total;
    mean = c.alpha * mean + (1 - c.alpha) * entering;
    variance = c.alpha * variance + (1 - c.alpha) * (entering - mean) * (entering - mean);
  }
  p.state[0] = seen + 1;
  p.state[1] = mean;
  p.state[2] = variance;
  return threshold;
}

/// The largest norm that is not an outlier: the mean of the earlier norms plus `sigma` unbiased standard deviations,
/// as in OLMo-core's optimizers that skip steps. Constants: sigma, window, first step that can be skipped (from 1),
/// whether outliers enter the window, max_norm. State: the number of norms, a ring of the latest ones.
GRADKERN_HD double outlier_limit(const PolicyStep& p) {
  const int64_t window = int64_t(p.constants[1]), seen = int64_t(p.state[0]);
  const int64_t count = seen < window ? seen : window;
  if (count < 2 || double(seen + 1) < p.constants[2]) return infinity();
  const double* const ring = p.state + 1;
  double mean = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) mean += ring[i] / double(count);
  for (int64_t i = 0; i < count; ++i) squares += (ring[i] - mean) * (ring[i] - mean);
  return mean + p.constants[0] * sqrt(squares / double(count - 1));
}

GRADKERN_HD void enter_ring(const PolicyStep& p, double total) {
  const int64_t seen = int64_t(p.state[0]);
  p.state[1 + seen % int64_t(p.constants[1])] = total;
  p.state[0] = double(seen + 1);
}

/// AdaGC (Wang et al. 2025): limits every tensor relative to the running mean of its own clipped norms. Constants:
/// beta, lambda_abs, lambda_rel, warm-up steps. State: the number of steps, then one mean per tensor, 0 for none yet.
/// Norms of 0 do not enter, because a tensor without gradient in one step would be clipped to 0 forever.
struct AdaGCRow {
  double factor, threshold, mean;
};
GRADKERN_HD AdaGCRow adagc_row(const PolicyStep& p, double norm, double mean, bool warming_up, double of_all) {
  const double beta = p.constants[0], lambda_abs = p.constants[1], lambda_rel = p.constants[2];
  if (!is_finite(norm)) return {1.0, infinity(), mean};
  AdaGCRow row{of_all, infinity(), mean};
  if (!warming_up) {
    row.threshold = mean > 0 ? lambda_rel * mean : lambda_abs;
    row.factor = limiting_factor(row.threshold, norm);
  }
  const double clipped = norm * row.factor;
  if (!(clipped > 0)) return row;
  if (mean == 0) row.mean = clipped;
  else if (warming_up) row.mean = clipped < mean ? clipped : mean;
  else row.mean = beta * mean + (1 - beta) * clipped;
  return row;
}

template <class Team>
GRADKERN_HD void step_adagc(const PolicyStep& p, double total, const Team& team) {
  const bool finite = is_finite(total), warming_up = p.state[0] < p.constants[3];
  const double of_all = limiting_factor(p.constants[1], total);
  team.sync();
  for (int64_t i = team.rank; i < p.rows; i += team.size) {
    const double norm = real_at(p.norms, i, p.norms_are_double);
    const bool enters = finite || !warming_up;
    const AdaGCRow row = enters ? adagc_row(p, norm, p.state[1 + i], warming_up, of_all)
                                : AdaGCRow{1.0, infinity(), p.state[1 + i]};
    p.result[i] = row.factor;
    p.result[p.rows + i] = row.threshold;
    p.state[1 + i] = row.mean;
  }
  if (team.rank != 0) return;
  p.result[2 * p.rows] = 0;
  if (finite) p.state[0] += 1;
}

/// As torch.nn.utils.clip_grad_norm_: NaN and inf are passed on.
template <class Team>
GRADKERN_HD void step_global_norm(const PolicyStep& p, double max_norm, double total, const Team& team) {
  if (team.rank != 0) return;
  p.result[0] = decide_clip(max_norm, total, 0, OnNonfinite::kPropagate).coef;
  p.result[1] = 0;
  p.result[2] = max_norm;
}

/// Decides from the state, and adds this step to it.
template <class Team>
GRADKERN_HD void take_policy_step(const PolicyStep& p, const Team& team) {
  const double total = real_at(p.total, 0, p.total_is_double);
  if (p.kind == PolicyKind::kNothing) return step_global_norm(p, infinity(), total, team);
  if (p.kind == PolicyKind::kGlobalNorm) return step_global_norm(p, p.constants[0], total, team);
  if (p.kind == PolicyKind::kAdaGC) return step_adagc(p, total, team);
  // Only AutoClip needs the others. They must not read what the first thread writes.
  if (p.kind != PolicyKind::kAutoClip && team.rank != 0) return;
  double threshold = infinity(), limit = infinity();
  switch (p.kind) {
    case PolicyKind::kAutoClip: limit = threshold = auto_clip_threshold(p, total, team); break;
    case PolicyKind::kZClip: limit = threshold = zclip_threshold(p, total); break;
    case PolicyKind::kSkipOutliers:
      threshold = outlier_limit(p);
      limit = p.constants[4];
      break;
    case PolicyKind::kAdaGC:
    case PolicyKind::kNothing:
    case PolicyKind::kGlobalNorm: break;
  }
  if (team.rank != 0) return;
  const bool skip = p.kind == PolicyKind::kSkipOutliers && is_finite(total) && total > threshold;
  if (p.kind == PolicyKind::kSkipOutliers && is_finite(total) && (!skip || p.constants[3] != 0))
    enter_ring(p, total);
  p.result[0] = is_finite(total) && !skip ? limiting_factor(limit, total) : 1.0;
  p.result[1] = skip ? 1.0 : 0.0;
  p.result[2] = threshold;
}

}  // namespace gradkern
