#include "grid.h"

#include <random>
#include <stdexcept>

namespace ptx {
namespace {

constexpr size_t kResident = 3;  ///< blocks that run at once, with a seed

class Block {
 public:
  Block(const Launch& launch, uint32_t index, Pool& pool) : shared_(launch.program->shared_bytes, 0xcd), pool_(pool) {
    for (uint32_t first = 0; first < launch.threads; first += kLanes) {
      if (pool.empty()) pool.push_back(std::make_unique<WarpMemory>(*launch.program));
      warps_.emplace_back(launch, index, shared_.data(), first, std::move(pool.back()));
      pool.pop_back();
    }
  }
  ~Block() {
    for (Warp& warp : warps_) pool_.push_back(warp.take_memory());
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  std::vector<Warp>& warps() { return warps_; }

  /// Opens the barrier if all are there. False if no warp can go on and some have not finished.
  bool can_go_on() {
    if (ready()) return true;
    bool all = true;
    for (const Warp& warp : warps_) all &= warp.at_barrier();
    if (all)
      for (Warp& warp : warps_) warp.pass_barrier();
    return ready() || finished();
  }
  bool finished() const {
    bool all = true;
    for (const Warp& warp : warps_) all &= warp.finished();
    return all;
  }
  std::string where() const {
    std::string lines;
    for (const Warp& warp : warps_) lines += warp.where();
    return lines;
  }

 private:
  bool ready() const {
    bool any = false;
    for (const Warp& warp : warps_) any |= warp.ready();
    return any;
  }

  std::vector<unsigned char> shared_;
  std::vector<Warp> warps_;
  Pool& pool_;
};

void check(const Launch& launch, Block& block) {
  if (!block.can_go_on())
    throw std::runtime_error(launch.program->name + ": threads wait for ever at lines" + block.where());
}

void in_order(const Launch& launch, Pool& pool) {
  for (uint32_t i = 0; i < launch.blocks; ++i) {
    Block block(launch, i, pool);
    while (!block.finished()) {
      for (Warp& warp : block.warps()) warp.run(~0ull);
      check(launch, block);
    }
  }
}

void at_random(const Launch& launch, uint64_t seed, Pool& pool) {
  std::mt19937_64 random(seed);
  std::vector<std::unique_ptr<Block>> resident;
  for (uint32_t next = 0; next < launch.blocks || !resident.empty();) {
    while (next < launch.blocks && resident.size() < kResident) resident.push_back(std::make_unique<Block>(launch, next++, pool));
    const size_t chosen = random() % resident.size();
    Block& block = *resident[chosen];
    Warp& warp = block.warps()[random() % block.warps().size()];
    warp.run(1 + random() % 500);
    if (warp.ready()) continue;
    check(launch, block);
    if (block.finished()) resident.erase(resident.begin() + std::ptrdiff_t(chosen));
  }
}

}  // namespace

void run_grid(const Launch& launch, const Order& order, Pool& pool) {
  if (order.seed) at_random(launch, order.seed, pool);
  else in_order(launch, pool);
}

}  // namespace ptx
