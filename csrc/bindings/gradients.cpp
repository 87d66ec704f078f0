#include "bindings/gradients.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_unique.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <deque>
#include <string_view>
#include <utility>

#include "bindings/cuda_backend.h"
#include "bindings/overlap.h"
#include "core/prefetch.h"

namespace gradkern {
namespace {

void check(const CallSite& site, int64_t index, const at::Tensor& g) {
  GRADKERN_CHECK_TYPE(!g.is_meta(), site, index, "expected a gradient with data, got a meta tensor");
  GRADKERN_CHECK_TYPE(g.layout() == at::kStrided || g.layout() == at::kSparse, site, index,
                      "expected a strided or sparse COO gradient, got layout ", g.layout());
  GRADKERN_CHECK_TYPE(at::isFloatingType(g.scalar_type()) || at::isComplexType(g.scalar_type()), site,
                      index, "expected a floating-point or complex gradient, got ", g.scalar_type());
  DType ignored;
  if (has_kernel_dtype(g.scalar_type(), ignored)) return;
  // By name, because older versions of torch do not have the type.
  GRADKERN_CHECK_TYPE(std::string_view(c10::toString(g.scalar_type())) != "Float4_e2m1fn_x2", site, index,
                      "expected a gradient with one number an element, got Float4_e2m1fn_x2, which packs two");
}

bool in_place_capable(const at::Tensor& g, DType& dtype) {
  return g.layout() == at::kStrided && has_kernel_dtype(g.scalar_type(), dtype) &&
         g.is_non_overlapping_and_dense();
}

TensorRef ref_of(const at::Tensor& g) {
  DType dtype = DType::kFloat32;
  has_kernel_dtype(g.scalar_type(), dtype);
  return {g.mutable_data_ptr(), g.numel(), dtype};
}

/// The smallest type with a kernel that represents every value of `type`.
at::ScalarType kernel_type(at::ScalarType type) {
  DType ignored;
  if (has_kernel_dtype(type, ignored)) return type;
  return at::isComplexType(type) ? at::kComplexFloat : at::kFloat;
}

at::Tensor dense_copy(const at::Tensor& values) {
  return values.resolve_conj().resolve_neg().to(kernel_type(values.scalar_type())).contiguous();
}

void set_staged(Prepared& prepared, size_t position, at::Tensor copy, at::Tensor target) {
  prepared.refs[position] = ref_of(copy);
  prepared.staged.push_back({std::move(copy), std::move(target), {}, position});
}

void set_written(Prepared& prepared, size_t position, const at::Tensor& memory) {
  DType ignored;
  prepared.refs[position] = {};
  if (in_place_capable(memory, ignored)) prepared.refs[position] = ref_of(memory);
  else set_staged(prepared, position, dense_copy(memory), memory);
}

bool same_view(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
         // Lazy clones that have not been written share memory but are different gradients.
         (a.is_alias_of(b) || !c10::impl::cow::is_cow_data_ptr(a.storage().data_ptr()));
}

/// Gradients that fill their storage share no memory with others. Storages of memory that torch did not allocate
/// (from_numpy, for example), which cannot be resized, are excluded because they may overlap others.
bool fills_its_storage(const at::Tensor& g) {
  return g.storage().nbytes() <= size_t(g.numel()) * g.element_size() && g.storage().resizable();
}

/// The address of a gradient's memory, or of a sparse gradient's values. Equal for two references to one gradient.
const void* identity(const at::Tensor& g) {
  return g.layout() == at::kSparse ? g._values().const_data_ptr() : g.const_data_ptr();
}

bool same_gradient(const at::Tensor& a, const at::Tensor& b) {
  if (a.layout() != b.layout()) return false;
  if (!a.is_sparse()) return same_view(a, b);
  return a.sizes() == b.sizes() && same_view(a._values(), b._values()) &&
         a._indices().const_data_ptr() == b._indices().const_data_ptr();
}

/// The offsets of the elements of g, in elements, from an address `before` elements before its own.
at::Tensor element_offsets(const at::Tensor& g, int64_t before) {
  const at::Tensor all = at::arange(span_of(g), g.options().dtype(at::kLong));
  // Not add_, because the reshape of an expanded tensor may be a view with repeated elements.
  return all.as_strided(g.sizes(), g.strides(), 0).reshape({-1}).add(before);
}

/// The tensors that a write to each gradient changes (the values of a sparse one, kept in `values`). Null for a gradient
/// that is empty or repeated.
Memory written_memory(const GradList& grads, const Prepared& prepared, std::deque<at::Tensor>& values) {
  Memory memory(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined() || prepared.first[i] != int64_t(i)) continue;
    const at::Tensor* written = grads[i].is_sparse() ? &values.emplace_back(grads[i]._values()) : &grads[i];
    if (written->numel()) memory[i] = written;
  }
  return memory;
}

/// Stages the union of the elements of several gradients that share memory, at the position that is first in the list.
void stage_union(const CallSite& site, const Memory& memory_of, Cluster cluster, Prepared& out) {
  const at::Tensor& any = *memory_of[cluster.front().position];
  const uintptr_t origin = cluster.front().begin;  // the lowest: clusters are sorted
  uintptr_t end = origin;
  size_t earliest = cluster.front().position;
  std::vector<at::Tensor> offsets;
  for (const Interval& member : cluster) {
    const at::Tensor& g = *memory_of[member.position];
    GRADKERN_CHECK_VALUE(g.scalar_type() == any.scalar_type() && (member.begin - origin) % g.element_size() == 0,
                         site, int64_t(member.position), "expected gradients that overlap in memory to have ",
                         "one dtype and to start a whole number of elements apart, got ", g.scalar_type(), " over ",
                         any.scalar_type());
    end = std::max(end, member.end);
    earliest = std::min(earliest, member.position);
    offsets.push_back(element_offsets(g, int64_t((member.begin - origin) / g.element_size())));
  }
  for (const Interval& member : cluster) out.refs[member.position] = {};
  const at::Tensor unique = std::get<0>(at::_unique(at::cat(offsets)));
  // Not a view of a gradient, because tensors of foreign memory (from_numpy) have separate storages.
  const at::Tensor memory = at::from_blob(reinterpret_cast<void*>(origin),
                                          {int64_t((end - origin) / any.element_size())}, any.options());
  memory._set_conj(any.is_conj());  // lazily conjugated or negated elements are resolved when read and written
  memory._set_neg(any.is_neg());
  set_staged(out, earliest, dense_copy(memory.index_select(0, unique)), memory);
  out.staged.back().offsets = unique;
}

/// Prefetches what is_native(), prepare() and measuring read of later entries.
void prefetch_ahead(const GradList& grads, size_t i) {
  constexpr size_t kTurns = 6;
  if (i + 2 * kTurns < grads.size())
    prefetch_tensor(grads[i + 2 * kTurns].unsafeGetTensorImpl());
  if (i + kTurns < grads.size() && grads[i + kTurns].unsafeGetTensorImpl()->has_storage())
    prefetch(grads[i + kTurns].unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl(), 64);
}

}  // namespace

bool is_native(const GradList& grads) {
  if (grads.plain()) return grads.plain()->device().is_cpu() || cuda_backend::usable(grads.plain()->device());
  if (c10::impl::dispatch_mode_enabled()) return false;
  constexpr c10::DispatchKeySet kForeign({c10::DispatchKey::Python, c10::DispatchKey::FuncTorchBatched,
                                          c10::DispatchKey::FuncTorchGradWrapper,
                                          c10::DispatchKey::Functionalize, c10::DispatchKey::ZeroTensor});
  const at::Tensor* first = nullptr;
  for (const at::Tensor& g : grads) {
    if (!g.defined()) continue;
    if (g.key_set().has_any(kForeign) || g.is_nested()) return false;
    const bool cuda = g.is_cuda() && cuda_backend::usable(g.device());
    if (!(g.is_cpu() || cuda || g.is_meta())) return false;
    if (!first) first = &g;
    else if (g.device().type() != first->device().type() && !g.is_meta() && !first->is_meta()) return false;
  }
  return true;
}

namespace {

Prepared prepare_any(const CallSite& site, const GradList& grads) {
  const size_t count = grads.size();
  Prepared out;
  out.refs.resize(count);
  out.first.resize(count);
  PointerTable table;
  table.clear(count);
  for (size_t i = 0; i < count; ++i) {
    out.first[i] = int64_t(i);
    prefetch_ahead(grads, i);
    const at::Tensor& g = grads[i];
    if (!g.defined()) continue;
    check(site, int64_t(i), g);
    DType dtype = DType::kFloat32;
    const bool in_place = in_place_capable(g, dtype);
    if (has_kernel_dtype(g.scalar_type(), dtype)) out.any_double |= is_double(dtype);
    if (g.numel() == 0) continue;

    if (in_place) g.mutable_data_ptr();  // gives a lazy clone its own memory before its address is stored
    bool seen;
    const int64_t same = table.find_or_insert(
        identity(g), int64_t(i), [&](int64_t j) { return identity(grads[size_t(j)]); },
        [&](int64_t j) { return same_gradient(g, grads[size_t(j)]); },
        seen);
    if (same >= 0) {
      out.first[i] = same;
      out.any_duplicate = true;
      continue;
    }
    if (g.layout() == at::kSparse) {
      const at::Tensor values = g.coalesce().values();
      if (values.numel()) set_staged(out, i, dense_copy(values), {});
      continue;
    }
    out.maybe_overlapping |= seen || !fills_its_storage(g);
    if (in_place) out.refs[i] = ref_of(g);
    else set_staged(out, i, dense_copy(g), {});
  }
  return out;
}

}  // namespace

const Prepared& prepare(const CallSite& site, const GradList& grads) {
  if (grads.plain_) return grads.plain_->prepared();
  if (!grads.prepared_) grads.prepared_ = prepare_any(site, grads);
  return *grads.prepared_;
}

Prepared prepare_for_write(const CallSite& site, const GradList& grads, const Prepared& prepared) {
  Prepared out;
  out.refs = prepared.refs;
  out.first = prepared.first;
  std::deque<at::Tensor> values;
  const Memory memory = written_memory(grads, prepared, values);
  const std::vector<Interval> intervals = intervals_of(memory);
  for (Cluster rest = intervals; !rest.empty();) {
    const Cluster cluster = first_cluster(rest);
    rest = rest.slice(cluster.size());
    const size_t first = cluster.front().position;
    if (cluster.size() == 1 && memory[first]->is_non_overlapping_and_dense()) {  // most are
      set_written(out, first, *memory[first]);
    } else if (has_distinct_elements(memory, cluster)) {
      for (const Interval& member : cluster) set_written(out, member.position, *memory[member.position]);
    } else {
      stage_union(site, memory, cluster, out);
    }
  }
  return out;
}

std::optional<std::pair<int64_t, int64_t>> shared_by_groups(const GradList& grads,
                                                            const std::vector<int64_t>& group_of) {
  std::deque<at::Tensor> values;
  Memory memory(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) continue;
    const at::Tensor& written = grads[i].is_sparse() ? values.emplace_back(grads[i]._values()) : grads[i];
    if (written.numel()) memory[i] = &written;
  }
  return shared_by_groups(memory, group_of);
}

void write_back(const Prepared& prepared) {
  // Without autograd's checks, which could raise for an inference tensor after others were written.
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (const Staged& s : prepared.staged) {
    if (!s.offsets.defined()) {
      s.target.copy_(s.copy);
      continue;
    }
    const at::Tensor values = s.copy.to(s.target.scalar_type());
    if (at::isFloat8Type(values.scalar_type()))  // torch has no index_copy_ for these
      s.target.view(at::kByte).index_copy_(0, s.offsets, values.view(at::kByte));
    else
      s.target.index_copy_(0, s.offsets, values);
  }
}

}  // namespace gradkern
