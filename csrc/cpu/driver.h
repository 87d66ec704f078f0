// Runs a chunk plan on threads. Torch-free: the caller lends its thread pool.
#pragma once

#include <functional>

#include "core/chunk_plan.h"
#include "core/clip.h"
#include "core/norm.h"
#include "cpu/chunk_kernels.h"

namespace gradkern::cpu {

/// A borrowed thread pool: run(n, body) calls body(0) … body(n - 1), possibly at the same time,
/// and returns when all are done. threads == 1 means: call it serially.
struct ThreadPool {
  int threads = 1;
  std::function<void(int, const std::function<void(int)>&)> run;
};

/// Measures every tensor of the plan. `per_tensor` receives plan.tensors() entries; returned is
/// the combination of all. The same bits for any number of threads.
Partial measure(const ChunkPlan& plan, const MeasureOptions& options, const ThreadPool& pool,
                Partial* per_tensor);

/// Multiplies every element by decision.coef, or sets it to zero (0 * NaN would not), or nothing.
void apply(const ChunkPlan& plan, const ClipDecision& decision, const ThreadPool& pool);

/// Multiplies every element of tensor i by factors[i].
void apply(const ChunkPlan& plan, const double* factors, const ThreadPool& pool);

/// Limits every element to [-limit, limit]. changed[i] tells whether tensor i was written to.
void clamp(const ChunkPlan& plan, double limit, const ThreadPool& pool, bool* changed);

}  // namespace gradkern::cpu
