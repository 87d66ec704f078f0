// One step of an adaptive policy, in one block, because the state is small.
#include "core/policies.h"
#include "cuda/check.h"
#include "cuda/launch.h"
#include "cuda/usable.h"

namespace gradkern::cuda {
namespace {

constexpr unsigned kPolicyThreads = 256;

struct BlockTeam {
  int64_t rank, size;
  __device__ __forceinline__ void sync() const { __syncthreads(); }
};

__global__ void __launch_bounds__(kPolicyThreads, 1) policy_kernel(const __grid_constant__ PolicyStep step) {
  take_policy_step(step, BlockTeam{int64_t(threadIdx.x), int64_t(kPolicyThreads)});
}

}  // namespace

void launch_policy(const PolicyStep& step, int device, cudaStream_t stream) {
  DeviceGuard guard(device, "policy");
  launch_kernel(policy_kernel, 1, kPolicyThreads, stream, step, "cudaLaunchKernel(policy_kernel)", "policy");
}

cudaError_t load_policy_kernels() { return load_kernels(policy_kernel); }

}  // namespace gradkern::cuda
