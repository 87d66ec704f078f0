// Runs a chunk plan on threads of the caller's thread pool. Without torch.
#pragma once

#include "core/chunk_plan.h"
#include "core/clip.h"
#include "core/norm.h"
#include "cpu/chunk_kernels.h"

namespace gradkern::cpu {

/// The caller's thread pool. run(n, body, context) calls body(context, 0) … body(context, n - 1), possibly
/// concurrently, and returns when all are done. With threads == 1, all work is done on the calling thread.
struct ThreadPool {
  using Body = void (*)(void* context, int32_t index);

  int32_t threads = 1;
  void (*run)(int32_t count, Body body, void* context) = nullptr;
};

/// Measures every tensor of the plan into `per_tensor`, which has plan.tensors() entries. Returns the
/// combination of all. The bits do not depend on the number of threads.
Partial measure(const ChunkPlan& plan, const MeasureOptions& options, const ThreadPool& pool,
                Partial* per_tensor);

/// Multiplies every element by decision.coef, sets every element to zero (also NaN), or does nothing.
void apply(const ChunkPlan& plan, const ClipDecision& decision, const ThreadPool& pool);

/// Multiplies every element of tensor i by factors[i].
void apply(const ChunkPlan& plan, const double* factors, const ThreadPool& pool);

/// Limits every element to [-limit, limit]. Blocks without a change are not written.
void clamp(const ChunkPlan& plan, double limit, const ThreadPool& pool);

}  // namespace gradkern::cpu
