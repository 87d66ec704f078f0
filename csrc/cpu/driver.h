// Runs a chunk plan on threads. Torch-free: the caller lends its thread pool.
#pragma once

#include "core/chunk_plan.h"
#include "core/clip.h"
#include "core/norm.h"
#include "cpu/chunk_kernels.h"

namespace gradkern::cpu {

/// A borrowed thread pool: run(n, body, context) calls body(context, 0) … body(context, n - 1), possibly at
/// the same time, and returns when all are done. threads == 1: everything happens on the calling thread.
struct ThreadPool {
  using Body = void (*)(void* context, int32_t index);

  int32_t threads = 1;
  void (*run)(int32_t count, Body body, void* context) = nullptr;
};

/// Measures every tensor of the plan. `per_tensor` receives plan.tensors() entries; returned is
/// the combination of all. The same bits for any number of threads.
Partial measure(const ChunkPlan& plan, const MeasureOptions& options, const ThreadPool& pool,
                Partial* per_tensor);

/// Multiplies every element by decision.coef, or sets it to zero (0 * NaN would not), or nothing.
void apply(const ChunkPlan& plan, const ClipDecision& decision, const ThreadPool& pool);

/// Multiplies every element of tensor i by factors[i].
void apply(const ChunkPlan& plan, const double* factors, const ThreadPool& pool);

/// Limits every element to [-limit, limit]; writes only where something changes.
void clamp(const ChunkPlan& plan, double limit, const ThreadPool& pool);

}  // namespace gradkern::cpu
