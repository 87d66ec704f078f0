// The floors the benchmarks compare with: reading memory, and reading and writing it, on the same
// threads, with nothing else to do. Built by benchmarks/floor.py; not part of the package.
#include <cstdint>

namespace {
constexpr int64_t kBlock = 1 << 17;  // bytes a thread takes at a time

template <class Body>
void for_each_block(char** pointers, const int64_t* bytes, int64_t count, const Body& body) {
  int64_t blocks = 0;
  for (int64_t t = 0; t < count; ++t) blocks += (bytes[t] + kBlock - 1) / kBlock;
  // Blocks of all tensors as one list, so that many small tensors are spread as well.
  static thread_local int64_t* first = nullptr;
  delete[] first;
  first = new int64_t[count + 1];
  first[0] = 0;
  for (int64_t t = 0; t < count; ++t) first[t + 1] = first[t] + (bytes[t] + kBlock - 1) / kBlock;
  const int64_t* start = first;
#pragma omp parallel if (blocks > 1)
  {
    int64_t t = 0;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks; ++b) {
      while (b >= start[t + 1]) ++t;
      const int64_t offset = (b - start[t]) * kBlock;
      const int64_t rest = bytes[t] - offset;
      body(pointers[t] + offset, rest < kBlock ? rest : kBlock);
    }
  }
}
}  // namespace

extern "C" uint64_t gradkern_floor_read(char** pointers, const int64_t* bytes, int64_t count) {
  static volatile uint64_t sink;
  for_each_block(pointers, bytes, count, [](const char* data, int64_t length) {
    const uint64_t* words = reinterpret_cast<const uint64_t*>(data);
    uint64_t sum = 0;
    for (int64_t i = 0; i < length / 8; ++i) sum += words[i];
    sink = sum;
  });
  return sink;
}

extern "C" void gradkern_floor_write(char** pointers, const int64_t* bytes, int64_t count) {
  for_each_block(pointers, bytes, count, [](char* data, int64_t length) {
    uint64_t* words = reinterpret_cast<uint64_t*>(data);
    for (int64_t i = 0; i < length / 8; ++i) words[i] ^= 1;
  });
}
