// The CUDA kernels that write, and the launchers' errors; see test_cuda_measure.cpp.
#include "cuda/usable.h"
#include "tests/kernel_runs.h"
#include "tests/policy_steps.h"

namespace gradkern::test {
namespace {

struct Scaling {
  double total, max_norm;
  bool is_double;
  OnNonfinite policy = OnNonfinite::kPropagate;
  int64_t nonfinite = 0;
};

void run_scale(const TensorSet& set, const Scaling& s) {
  const float narrow = float(s.total);
  cuda::ScaleLaunch launch;
  launch.list = list_of(set);
  launch.total_norm = s.is_double ? static_cast<const void*>(&s.total) : &narrow;
  launch.total_norm_is_double = s.is_double;
  launch.max_norm = s.max_norm;
  launch.on_nonfinite = s.policy;
  launch.total_nonfinite = &s.nonfinite;
  cuda::launch_scale(launch);
}

bool same_elements(const TensorSet& a, const TensorSet& b, int64_t i) {
  const auto x = a.bytes(i), y = b.bytes(i);
  const DType real = real_of(a[i].dtype);
  for (int64_t k = 0; k < a[i].numel * (is_complex(a[i].dtype) ? 2 : 1); ++k) {
    const double u = real_at(x.data(), real, k), v = real_at(y.data(), real, k);
    if (u != u && v != v) continue;  // payloads of NaN differ between processors
    if (std::memcmp(&u, &v, sizeof(u))) return false;
  }
  return true;
}

std::vector<Spec> specs_to_write(bool complex) {
  std::vector<Spec> specs;
  for (DType d : kDTypes)
    if (complex || !is_complex(d))
      for (int64_t n : {0, 1, 33, 1009, 4096, 20011})
        for (int64_t misalign : {0, 2, 4, 8})
          if (misalign % itemsize(real_of(d)) == 0)
            for (Fill fill : {Fill::kNormal, Fill::kSubnormal, Fill::kNanAndInf}) specs.push_back({d, n, misalign, fill});
  return specs;
}

void test_scale() {
  const auto specs = specs_to_write(true);
  for (const Scaling& s : {Scaling{3.7, 1, false}, Scaling{3.7, 1, true}, Scaling{HUGE_VAL, 1, false}, Scaling{std::nan(""), 1, false},
                           Scaling{2, 0, false}, Scaling{2, -1, true}}) {
    context = "scale, total " + std::to_string(s.total);
    TensorSet set(specs), want(specs);
    run_scale(set, s);
    const double total = s.is_double ? s.total : double(float(s.total));
    const ChunkPlan plan(want.refs(), want.count());
    cpu::apply(plan, decide_clip(s.max_norm, total, s.nonfinite, s.policy), serial());
    for (int64_t i = 0; i < set.count(); ++i) CHECK(same_elements(set, want, i), "tensor %lld differs from the CPU's", (long long)i);
    CHECK(set.guards_intact(), "wrote outside a tensor");
  }
}

/// `factor` as the loss scale's inverse times a coefficient: more than 1 as well.
void test_scale_by_factor() {
  const auto specs = specs_to_write(true);
  for (double factor : {0.37, 1.0, -1.0, 0.0, 3.3, std::nan("")}) {
    context = "scale by " + std::to_string(factor);
    TensorSet set(specs), want(specs);
    cuda::ScaleLaunch launch;
    launch.list = list_of(set);
    launch.factor = &factor;
    cuda::launch_scale(launch);
    const ClipDecision decision{factor == 1 ? ClipAction::kNone : ClipAction::kScale, factor};
    cpu::apply(ChunkPlan(want.refs(), want.count()), decision, serial());
    for (int64_t i = 0; i < set.count(); ++i) CHECK(same_elements(set, want, i), "tensor %lld differs from the CPU's", (long long)i);
    CHECK(set.guards_intact(), "wrote outside a tensor");
  }
}

/// A factor of its own for every tensor, over several tables; a verdict of zero overrules them.
void test_scale_by_factors() {
  std::vector<Spec> specs = specs_to_write(true);
  while (specs.size() < 5000) specs.push_back({DType::kFloat32, int64_t(specs.size() % 7)});
  for (const bool zero : {false, true}) {
    context = zero ? "factors and zero" : "factors";
    TensorSet set(specs), want(specs);
    std::vector<double> factors(specs.size());
    for (size_t i = 0; i < factors.size(); ++i) factors[i] = i % 3 ? 1.0 / double(i) : 1.0;
    cuda::ScaleLaunch launch;
    launch.list = list_of(set);
    launch.factor = factors.data();
    launch.factor_per_tensor = true;
    launch.zero = &zero;
    cuda::launch_scale(launch);
    const ChunkPlan plan(want.refs(), want.count());
    if (zero) cpu::apply(plan, {ClipAction::kZero, 0.0}, serial());
    else cpu::apply(plan, factors.data(), serial());
    for (int64_t i = 0; i < set.count(); ++i) CHECK(same_elements(set, want, i), "tensor %lld differs from the CPU's", (long long)i);
    CHECK(set.guards_intact(), "wrote outside a tensor");
  }
}

void test_policies() { check_policy_steps(1); }

/// Coefficients that float32 holds coarsely or not at all lose no bit of what they leave.
void test_tiny_factors() {
  std::vector<Spec> specs;
  for (DType d : {DType::kBFloat16, DType::kFloat16, DType::kFloat32})
    for (int64_t n : {1, 33, 20011})
      for (int64_t misalign : {0, 4}) specs.push_back({d, n, misalign, Fill::kHuge});
  for (double factor : {0x1p-126, 0x1.fp-127, -1.7e-40, 1e-45, 3e-60}) {
    context = "tiny factor " + std::to_string(std::log2(std::fabs(factor)));
    TensorSet set(specs), want(specs);
    const TensorSet before(specs);
    cuda::ScaleLaunch launch;
    launch.list = list_of(set);
    launch.factor = &factor;
    cuda::launch_scale(launch);
    cpu::apply(ChunkPlan(want.refs(), want.count()), {ClipAction::kScale, factor}, serial());
    int64_t visible = 0;
    for (int64_t i = 0; i < set.count(); ++i) {
      CHECK(same_elements(set, want, i), "tensor %lld differs from the CPU's", (long long)i);
      const auto got = set.bytes(i), old = before.bytes(i);
      const DType d = set[i].dtype;
      // One rounding: half a unit of 8, 11 or 24 bits; below the smallest normal number, of that.
      const double unit = d == DType::kBFloat16 ? 0x1p-8 : d == DType::kFloat16 ? 0x1p-11 : 0x1p-24;
      const double smallest = d == DType::kFloat16 ? 0x1p-14 : 0x1p-126;
      for (int64_t k = 0; k < set[i].numel; ++k) {
        const double exact = real_at(old.data(), d, k) * factor, result = real_at(got.data(), d, k);
        const double allowed = 1.0001 * unit * std::fmax(std::fabs(exact), smallest);
        CHECK(std::fabs(result - exact) <= allowed, "element %lld: %g, expected %g", (long long)k, result, exact);
        visible += result != 0;
      }
    }
    CHECK(visible > 0, "everything vanished");
    CHECK(set.guards_intact(), "wrote outside a tensor");
  }
}

void test_no_write() {
  const auto specs = specs_to_write(true);
  for (const Scaling& s : {Scaling{0.5, 1, false}, Scaling{0, 0.001, true}, Scaling{5, HUGE_VAL, false},
                           Scaling{std::nan(""), HUGE_VAL, false}, Scaling{HUGE_VAL, HUGE_VAL, false},
                           Scaling{9, 1, false, OnNonfinite::kSkip, 3}}) {
    context = "no write, total " + std::to_string(s.total);
    TensorSet set(specs), want(specs);
    run_scale(set, s);
    for (int64_t i = 0; i < set.count(); ++i) CHECK(set.bytes(i) == want.bytes(i), "tensor %lld was written", (long long)i);
  }
  context = "zero";
  TensorSet set(specs);
  run_scale(set, {9, 1, false, OnNonfinite::kZero, 3});
  for (int64_t i = 0; i < set.count(); ++i)
    for (unsigned char byte : set.bytes(i)) CHECK(byte == 0, "tensor %lld is not zero", (long long)i);
  CHECK(set.guards_intact(), "wrote outside a tensor");
}

void test_clamp() {
  const auto specs = specs_to_write(false);
  for (double limit : {0.5, 0.0, 1e-7, 1e9, -1.0, HUGE_VAL}) {
    context = "clamp, limit " + std::to_string(limit);
    TensorSet set(specs), want(specs);
    cuda::launch_clamp({list_of(set), limit});
    cpu::clamp(ChunkPlan(want.refs(), want.count()), limit, serial());
    for (int64_t i = 0; i < set.count(); ++i) CHECK(same_elements(set, want, i), "tensor %lld differs from the CPU's", (long long)i);
    CHECK(set.guards_intact(), "wrote outside a tensor");
  }
}

template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "no error";
}

void test_errors() {
  context = "errors";
  const TensorSet set({{DType::kFloat32, 10}});
  cuda_shim::next_error = cudaErrorInvalidValue;
  const std::string failed = message_of([&] { run_scale(set, {2, 1, false}); });
  CHECK(failed == "[scale] cudaGetDevice failed: a shim error (cudaErrorShim)", "%s", failed.c_str());
  const std::string small = message_of([&] { cuda::launch_measure({list_of(set), {}, 1, OnNonfinite::kPropagate, 1, {}, nullptr, 0}); });
  CHECK(small.find("[measure] the workspace is smaller") == 0, "%s", small.c_str());
  const TensorSet complex({{DType::kComplex64, 10}});
  const std::string refused = message_of([&] { cuda::launch_clamp({list_of(complex), 1}); });
  CHECK(refused == "[clamp] expected real tensors, got a complex one", "%s", refused.c_str());
  const TensorRef odd{reinterpret_cast<char*>(set[0].data) + 1, 1, DType::kFloat32};
  const std::string unaligned = message_of([&] { cuda::launch_clamp({{&odd, 1, nullptr, 0, nullptr}, 1}); });
  CHECK(unaligned.find("[clamp] a tensor's data pointer is odd") == 0, "%s", unaligned.c_str());
}

/// Views that start anywhere: every element is scaled once, whatever its place in a 16-byte word.
void test_misaligned_writes() {
  for (DType d : kDTypes)
    for (int64_t n : {1, 2, 3, 5, 8, 9, 17, 1500, 5000})
      for (int64_t misalign = itemsize(real_of(d)); misalign < 16; misalign += itemsize(real_of(d))) {
        context = "misaligned, dtype " + std::to_string(int(d)) + ", " + std::to_string(misalign);
        TensorSet set({{d, n, misalign}}), want({{d, n, misalign}});
        run_scale(set, {3.7, 1, true});
        cpu::apply(ChunkPlan(want.refs(), 1), decide_clip(1, 3.7, 0, OnNonfinite::kPropagate), serial());
        CHECK(same_elements(set, want, 0), "%lld elements", (long long)n);
        CHECK(set.guards_intact(), "wrote outside the tensor");
      }
}

/// Why a GPU cannot be used; a GPU that can has every kernel loaded.
void test_usable() {
  context = "usable";
  cuda_shim::loaded = 0;
  CHECK(cuda::why_unusable(0).empty(), "%s", cuda::why_unusable(0).c_str());
  const int all = cuda_shim::loaded;
  cuda_shim::driver_version = CUDART_VERSION / 1000 * 1000;  // an older minor version
  CHECK(cuda::why_unusable(0).empty() && all > 0, "minor version compatibility");
  cuda_shim::driver_version = 12020;
  const std::string old = cuda::why_unusable(0);
  CHECK(old == "the driver supports CUDA 12.2, and the kernels were built with CUDA 13.0, which needs a newer driver", "%s", old.c_str());
  cuda_shim::driver_version = CUDART_VERSION;
  cuda_shim::load_error = cudaErrorNoKernelImageForDevice;
  const std::string none = cuda::why_unusable(0);
  cuda_shim::load_error = cudaSuccess;
  CHECK(none == "this build has no kernels for compute capability 7.5", "%s", none.c_str());
  CHECK(cuda::why_unusable(3).find("cudaSetDevice failed") != std::string::npos, "no such device");
}

}  // namespace

const std::vector<NamedTest> kWriteTests = {
    {"scale", test_scale}, {"scale_by_factor", test_scale_by_factor}, {"scale_by_factors", test_scale_by_factors},
    {"tiny_factors", test_tiny_factors}, {"no_write", test_no_write}, {"clamp", test_clamp}, {"errors", test_errors},
    {"policies", test_policies}, {"misaligned_writes", test_misaligned_writes}, {"usable", test_usable}};

}  // namespace gradkern::test
