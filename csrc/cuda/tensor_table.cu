// Tensor tables in device memory.
//
// Each stream keeps a few tables in device memory, also for functions without a clipper. A call compares its list with
// them and copies the table only if something has changed, in stream order, so that kernels that read it need no waiting.
// The copy is asynchronous, from pinned memory, which is reused when an event shows that its last copy is done. If all
// pinned memory is in use, kernels write the table from their arguments instead. So they do during a capture, into the
// graph's own memory, so that nothing outside the graph can change its table. A stream that is destroyed leaves its
// tables behind, a few kilobytes for each; torch's streams are from a pool.
#include <array>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/launch.h"
#include "cuda/tensor_table.h"
#include "cuda/usable.h"

namespace gradkern::cuda {
namespace {

// Kernel arguments may take 32,764 bytes since CUDA 12.1 and 4 KB before.
#if CUDART_VERSION >= 12010
constexpr int kLargestArguments = 32764;
#else
constexpr int kLargestArguments = 4096;
#endif
constexpr int kSmallArguments = 4096;
constexpr int kLargeArgumentsDriver = 12010;  ///< drivers of CUDA 12.1 (530) and later take more than kSmallArguments

template <int kBytes>
struct WriteParams {
  static constexpr uint32_t kWords = (kBytes - 16) / 4;
  uint32_t* to;
  uint32_t words;
  uint32_t word[kWords];
};

template <int kBytes>
__global__ void __launch_bounds__(256) write_table_kernel(const __grid_constant__ WriteParams<kBytes> p) {
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i < p.words) p.to[i] = p.word[i];
}

/// The offsets of the parts of a table. The first part, `data`, is the only one that changes with the tensors' addresses.
struct Layout {
  uint32_t spans;
  size_t first_unit, last_unit, first_tensor, arrived, bytes;

  Layout(int64_t tensors, uint32_t blocks)
      : spans(blocks * kWarps),
        first_unit(size_t(tensors) * sizeof(uint64_t)),
        last_unit(first_unit + (size_t(tensors) + 1) * sizeof(uint32_t)),
        first_tensor(last_unit + size_t(tensors) * sizeof(uint32_t)),
        arrived(first_tensor + (size_t(spans) + 1) * sizeof(uint32_t)),
        bytes((arrived + (size_t(blocks) + 1) * sizeof(uint32_t) + 15) / 16 * 16) {}

  TensorTable at(void* base, const TensorList& list, const ListPlan& plan) const {
    char* b = static_cast<char*>(base);
    const auto words = [b](size_t offset) { return reinterpret_cast<uint32_t*>(b + offset); };
    return {reinterpret_cast<uint64_t*>(b), words(first_unit), words(last_unit), words(first_tensor), words(arrived),
            uint32_t(list.count), plan.units};
  }
};

/// A table's bytes on the host.
using Image = std::vector<uint64_t>;

void find_first_tensors(uint32_t* first_tensor, uint32_t count, const uint32_t* first_unit, uint32_t tensors) {
  const Spans spans = spans_of(first_unit[tensors], count / kWarps);
  uint32_t tensor = 0;
  for (uint32_t span = 0; span <= count; ++span) {
    while (tensor + 1 < tensors && first_unit[tensor + 1] <= spans.begin(span)) ++tensor;
    first_tensor[span] = tensor;
  }
}

/// Brings an image up to date. Returns how many of its first bytes have changed: all or, where no size or dtype has
/// changed, those of `data` at most.
size_t update(Image& image, const Layout& layout, const TensorList& list) {
  uint64_t sizes_changed = image.size() * sizeof(uint64_t) != layout.bytes, data_changed = 0;
  if (sizes_changed) image.assign(layout.bytes / sizeof(uint64_t), 0);
  char* base = reinterpret_cast<char*>(image.data());
  uint64_t* data = image.data();
  uint32_t* first_unit = reinterpret_cast<uint32_t*>(base + layout.first_unit);
  uint32_t* last_unit = reinterpret_cast<uint32_t*>(base + layout.last_unit);
  uint32_t* first_tensor = reinterpret_cast<uint32_t*>(base + layout.first_tensor);
  const auto put = [](uint64_t& changed, auto& at, auto value) {
    changed |= at ^ value;
    at = value;
  };
  uint32_t unit = 0;
  for (int64_t i = 0; i < list.count; ++i) {
    const TensorRef& t = list.tensors[i];
    const int64_t bytes = bytes_of(t), own = units_of(t);
    put(data_changed, data[i], own ? reinterpret_cast<uint64_t>(t.data) : list.first ? uint64_t(list.first[i]) + 1 : 0);
    put(sizes_changed, first_unit[i], unit);
    put(sizes_changed, last_unit[i], own ? uint32_t(bytes - ((own - 1) << kUnitLog2)) << 3 | uint32_t(t.dtype) : 0u);
    unit += uint32_t(own);
  }
  put(sizes_changed, first_unit[list.count], unit);
  if (!sizes_changed) return data_changed ? layout.first_unit : 0;
  find_first_tensors(first_tensor, layout.spans, first_unit, uint32_t(list.count));
  return layout.bytes;
}

template <int kBytes>
void write_part(char* to, const char* from, size_t bytes, cudaStream_t stream, const char* operation) {
  WriteParams<kBytes> p;  // not initialized: the used part is written here
  p.to = reinterpret_cast<uint32_t*>(to);
  p.words = uint32_t(bytes / 4);
  std::memcpy(p.word, from, bytes);
  launch_kernel(write_table_kernel<kBytes>, (p.words + 255) / 256, 256, stream, p, "cudaLaunchKernel(write_table_kernel)", operation);
}

void write_by_kernels(void* to, const Image& image, size_t all, cudaStream_t stream, const char* operation) {
  const bool large = driver_version(operation) >= kLargeArgumentsDriver;
  const size_t most = 4 * size_t(large ? WriteParams<kLargestArguments>::kWords : WriteParams<kSmallArguments>::kWords);
  const char* from = reinterpret_cast<const char*>(image.data());
  for (size_t done = 0; done < all;) {
    const size_t next = all - done < most ? all - done : most;
    char* at = static_cast<char*>(to) + done;
    if (next > 4 * WriteParams<kSmallArguments>::kWords) write_part<kLargestArguments>(at, from + done, next, stream, operation);
    else write_part<kSmallArguments>(at, from + done, next, stream, operation);
    done += next;
  }
}

size_t capacity_for(size_t bytes) {
  size_t capacity = 4096;
  while (capacity < bytes) capacity *= 2;
  return capacity;
}

/// Pinned memory for copies to the device. A buffer that is too small is replaced and not freed, because that would wait
/// for the device. All such buffers together are smaller than those in use.
class PinnedRing {
 public:
  /// Copies an image's first bytes in stream order. False if the copies of all buffers are still in progress.
  bool copy(void* to, const Image& image, size_t bytes, cudaStream_t stream, const char* operation) {
    Buffer& buffer = buffers_[next_];
    if (buffer.used && cudaEventQuery(buffer.copied) != cudaSuccess) return false;
    next_ = (next_ + 1) % buffers_.size();
    if (!buffer.copied)
      check(cudaEventCreateWithFlags(&buffer.copied, cudaEventDisableTiming), "cudaEventCreateWithFlags", operation);
    if (buffer.capacity < bytes) {
      buffer.capacity = 0;
      check(cudaHostAlloc(&buffer.memory, capacity_for(bytes), cudaHostAllocDefault), "cudaHostAlloc", operation);
      buffer.capacity = capacity_for(bytes);
    }
    std::memcpy(buffer.memory, image.data(), bytes);
    check(cudaMemcpyAsync(to, buffer.memory, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync", operation);
    check(cudaEventRecord(buffer.copied, stream), "cudaEventRecord", operation);
    buffer.used = true;
    return true;
  }

 private:
  struct Buffer {
    void* memory = nullptr;
    size_t capacity = 0;
    cudaEvent_t copied = nullptr;
    bool used = false;
  };
  std::array<Buffer, 4> buffers_;
  size_t next_ = 0;
};

/// A table in device memory, with its contents.
struct KeptTable {
  Image image;
  void* memory = nullptr;
  size_t capacity = 0;
  int64_t tensors = -1;
  uint32_t units = 0;
  const void* first = nullptr;  ///< its first pointer, which tells lists of the same sizes apart
  uint64_t last_use = 0;
};

/// The tables of one stream, for as many lists as alternate in a training step.
class StreamTables {
 public:
  void* find(const TensorList& list, const ListPlan& plan, const Layout& layout, const char* operation) {
    KeptTable& kept = choose(list, plan);
    if (const size_t bytes = update(kept.image, layout, list)) {
      const DuringCaptures allowed;
      Image image = std::exchange(kept.image, {});  // empty while the contents on the device are unknown
      reserve(kept, layout.bytes, operation);
      if (!ring_.copy(kept.memory, image, bytes, list.stream, operation))
        write_by_kernels(kept.memory, image, bytes, list.stream, operation);
      kept.image = std::move(image);
    }
    return kept.memory;
  }

 private:
  KeptTable& choose(const TensorList& list, const ListPlan& plan) {
    const void* const first = list.count ? list.tensors[0].data : nullptr;
    KeptTable* chosen = &kept_[0];
    for (KeptTable& kept : kept_) {
      if (kept.tensors == list.count && kept.units == plan.units && kept.first == first) {
        chosen = &kept;
        break;
      }
      if (kept.last_use < chosen->last_use) chosen = &kept;
    }
    if (chosen->tensors != list.count || chosen->units != plan.units) chosen->image.clear();  // of another layout
    chosen->tensors = list.count;
    chosen->units = plan.units;
    chosen->first = first;
    chosen->last_use = ++uses_;
    return *chosen;
  }

  static void reserve(KeptTable& kept, size_t bytes, const char* operation) {
    if (kept.capacity >= bytes) return;
    kept.capacity = 0;
    check(cudaMalloc(&kept.memory, capacity_for(bytes)), "cudaMalloc", operation);
    kept.capacity = capacity_for(bytes);
  }

  std::array<KeptTable, 8> kept_;
  PinnedRing ring_;
  uint64_t uses_ = 0;
};

std::mutex tables_in_use;

/// By device and stream ID, which is never reused. Not destroyed, because the driver may be gone at exit.
StreamTables& tables_of(int device, cudaStream_t stream, const char* operation) {
  static auto& tables = *new std::map<std::pair<int, unsigned long long>, StreamTables>;
#if CUDART_VERSION >= 12000
  unsigned long long id = 0;
  check(cudaStreamGetId(stream, &id), "cudaStreamGetId", operation);
#else
  const auto id = reinterpret_cast<unsigned long long>(stream);
#endif
  return tables[{device, id}];
}

}  // namespace

TableOnDevice::TableOnDevice(const TensorList& list, const ListPlan& plan, void* workspace, size_t workspace_bytes,
                             const char* operation)
    : blocks(blocks_for(plan.units, multiprocessors(list.device, operation))) {
  const Layout layout(list.count, blocks);
  if (is_capturing(list.device, list.stream)) {
    require(workspace && layout.bytes <= workspace_bytes, "a CUDA graph capture needs workspace for the tensor table", operation);
    Image image;
    write_by_kernels(workspace, image, update(image, layout, list), list.stream, operation);
    table = layout.at(workspace, list, plan);
    return;
  }
  alone_ = std::unique_lock(tables_in_use);
  table = layout.at(tables_of(list.device, list.stream, operation).find(list, plan, layout, operation), list, plan);
}

bool is_capturing(int device, cudaStream_t stream) {
  DeviceGuard guard(device, "is_capturing");
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing", "is_capturing");
  return status != cudaStreamCaptureStatusNone;
}

size_t table_workspace_bytes(const TensorList& list) {
  if (!is_capturing(list.device, list.stream)) return 0;
  const uint32_t units = list.planned("workspace").units;
  return Layout(list.count, blocks_for(units, multiprocessors(list.device, "workspace"))).bytes;
}

cudaError_t load_table_kernels() {
  const cudaError_t status = load_kernels(write_table_kernel<kSmallArguments>);
  const bool large = driver_version("why_unusable") >= kLargeArgumentsDriver;
  return status != cudaSuccess || !large ? status : load_kernels(write_table_kernel<kLargestArguments>);
}

}  // namespace gradkern::cuda
