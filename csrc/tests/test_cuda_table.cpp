// The tensor table: how lists are walked, and how tables get to the device and stay there.
#include <random>

#include "cuda/tensor_table.h"
#include "tests/kernel_runs.h"

namespace gradkern::test {
namespace {

/// The units of each tensor that one warp was given.
struct Visited {
  uint32_t tensor, begin, end;
};

/// All segments of a span, by one warp of the model.
std::vector<Visited> walk(const cuda::TensorTable& table, const cuda::Spans& spans, uint32_t span, bool backwards) {
  std::vector<Visited> visited;
  const auto note = [&](const cuda::Segment& s) {
    if (threadIdx.x == 0) visited.push_back({s.tensor, s.begin, s.end});
  };
  cuda_shim::run_grid(dim3(1), dim3(cuda::kWarpSize), [&] {
    if (backwards) cuda::for_each_segment<true>(table, spans, span, note);
    else cuda::for_each_segment<false>(table, spans, span, note);
  });
  return visited;
}

/// Every unit of every tensor exactly once and in order, whatever the number of blocks.
void check_walk(const std::vector<TensorRef>& refs, int processors) {
  const cuda::TensorList list{refs.data(), int64_t(refs.size()), nullptr, 0, nullptr};
  const cuda::ListPlan plan = cuda::plan_of(list.tensors, list.count, "test");
  cuda_shim::multiprocessors = processors;
  const cuda::TableOnDevice on_device(list, plan, nullptr, 0, "test");
  cuda_shim::multiprocessors = 3;
  const cuda::Spans spans = cuda::spans_of(plan.units, on_device.blocks);
  std::vector<uint32_t> next(refs.size(), 0);
  const uint32_t all = on_device.blocks * cuda::kWarps;
  CHECK(spans.begin(0) == 0 && spans.begin(all) == plan.units, "spans cover %u units", plan.units);
  for (uint32_t span = 0; span < all; ++span) {
    const uint32_t begin = spans.begin(span), end = spans.begin(span + 1);
    if (begin == end) continue;
    CHECK(spans.of_unit(begin) == span && spans.of_unit(end - 1) == span, "span of units %u to %u", begin, end);
    const std::vector<Visited> forward = walk(on_device.table, spans, span, false), back = walk(on_device.table, spans, span, true);
    CHECK(forward.size() == back.size(), "as many segments backwards");
    for (size_t i = 0; i < forward.size(); ++i) {
      const Visited &a = forward[i], &b = back[back.size() - 1 - i];
      CHECK(a.tensor == b.tensor && a.begin == b.begin && a.end == b.end, "segment %zu backwards", i);
      CHECK(a.begin == next[a.tensor] && a.end > a.begin, "tensor %u goes on where it was left", a.tensor);
      next[a.tensor] = a.end;
    }
  }
  for (size_t i = 0; i < refs.size(); ++i) CHECK(int64_t(next[i]) == cuda::units_of(refs[i]), "tensor %zu is covered", i);
}

void test_walks() {
  std::mt19937_64 rng(4);
  for (int turn = 0; turn < 40; ++turn) {
    context = "walk " + std::to_string(turn);
    std::vector<TensorRef> refs(1 + rng() % 200);
    for (size_t i = 0; i < refs.size(); ++i) {
      const int64_t numel = turn % 4 == 0 ? int64_t(rng() % 3) : rng() % 3 == 0 ? 0 : int64_t(rng() % 6000);
      refs[i] = {reinterpret_cast<void*>((i + 1) << 20), numel, kDTypes[rng() % 6]};
    }
    check_walk(refs, 1 + int(rng() % 5));
  }
}

/// Tensors that no test machine could hold: 64-bit offsets.
void test_giants() {
  context = "giants";
  const int64_t huge = 5'000'000'011;
  const std::vector<TensorRef> refs = {{reinterpret_cast<void*>(0x100000000000), huge, DType::kBFloat16}, {nullptr, 0, DType::kFloat32},
                                       {reinterpret_cast<void*>(0x200000000000), huge, DType::kComplex128}, {reinterpret_cast<void*>(0x300000000008), 3, DType::kFloat64}};
  check_walk(refs, 132);
  const int64_t units = cuda::units_of(refs[2]);
  const auto last = uint32_t(cuda::bytes_of(refs[2]) - ((units - 1) << cuda::kUnitLog2));
  CHECK(cuda::numel_of(uint32_t(units), last << 3 | uint32_t(DType::kComplex128)) == huge, "numel");
}

struct Counts {
  int copies, launches, allocations;
};
template <class Call>
Counts counted(const Call& call) {
  const Counts before{cuda_shim::copies, cuda_shim::launches, cuda_shim::allocations};
  call();
  return {cuda_shim::copies - before.copies, cuda_shim::launches - before.launches, cuda_shim::allocations - before.allocations};
}

using Sets = std::vector<std::unique_ptr<TensorSet>>;
Sets sets_of(const std::vector<Spec>& specs, int count, uint64_t seed) {
  Sets sets;
  for (int i = 0; i < count; ++i) sets.push_back(std::make_unique<TensorSet>(specs, seed + uint64_t(i)));
  return sets;
}

/// One copy where something has changed and none where nothing has; never more than one launch of each kernel.
void test_uploads() {
  context = "uploads";
  const Sets fresh = sets_of(std::vector<Spec>(700, Spec{DType::kFloat32, 30}), 12, 1);  // more than are kept
  run_measure(*fresh[0]);
  const Counts same = counted([&] { run_measure(*fresh[0]); });
  CHECK(same.copies == 0 && same.launches == 1, "unchanged: %d copies, %d launches", same.copies, same.launches);
  for (int round = 0; round < 2; ++round)
    for (size_t i = 1; i < fresh.size(); ++i) {
      Measured m;
      const Counts counts = counted([&] { m = run_measure(*fresh[i]); });
      CHECK(counts.copies == 1 && counts.launches == 1, "fresh gradients: %d copies, %d launches", counts.copies, counts.launches);
      CHECK(round == 0 || counts.allocations == 0, "fresh gradients: %d allocations", counts.allocations);
      check_against_reference(*fresh[i], {}, m);
    }
}

/// Several lists in turns, as of several clippers, have a table each, those of the same sizes as well; also beside one
/// that has fresh gradients in every step.
void test_turns() {
  context = "turns";
  const std::vector<Spec> specs(40, Spec{DType::kBFloat16, 500});
  const TensorSet first(specs), second(specs, 2), third(std::vector<Spec>(30, Spec{DType::kBFloat16, 500}), 3);
  const auto turn = [&] {
    for (const TensorSet* set : {&first, &second, &third}) check_against_reference(*set, {}, run_measure(*set));
  };
  turn();
  const Counts same = counted([&] { turn(), turn(); });
  CHECK(same.copies == 0 && same.launches == 6, "%d copies, %d launches", same.copies, same.launches);
  for (const auto& fresh : sets_of(specs, 12, 4)) {
    check_against_reference(*fresh, {}, run_measure(*fresh));
    const Counts beside = counted(turn);
    CHECK(beside.copies == 0, "%d copies beside fresh gradients", beside.copies);
  }
}

/// Streams that run later than the host goes on: lists change, are let go of and outgrow their table while copies and
/// kernels are under way. More copies than there is pinned memory for, so that kernels write tables as well.
void test_in_flight() {
  context = "in flight";
  const std::vector<Spec> specs(300, Spec{DType::kFloat32, 40});
  const std::vector<Spec> more(900, Spec{DType::kFloat32, 40});
  Sets sets = sets_of(specs, 12, 10);
  sets[7] = std::make_unique<TensorSet>(more, 30);
  for (int streams : {1, 2}) {
    cuda_shim::deferred = true;
    std::vector<std::unique_ptr<MeasureCall>> calls;
    for (size_t i = 0; i < sets.size(); ++i) {
      const auto stream = reinterpret_cast<cudaStream_t>(0x100 + i % size_t(streams));
      const std::vector<TensorRef> list(sets[i]->refs(), sets[i]->refs() + sets[i]->count());  // gone before it runs
      calls.push_back(std::make_unique<MeasureCall>(cuda::TensorList{list.data(), int64_t(list.size()), nullptr, 0, stream}, false, Request()));
    }
    cuda_shim::deferred = false;
    for (int s = streams; s-- > 0;) cuda_shim::run(cuda_shim::take_work(reinterpret_cast<cudaStream_t>(0x100 + s)));
    for (size_t i = 0; i < sets.size(); ++i) {
      context = "in flight, " + std::to_string(streams) + " streams, call " + std::to_string(i);
      check_against_reference(*sets[i], {}, calls[i]->results());
    }
  }
}

/// A table takes the memory of the oldest one, of another layout and the same number of bytes: its counters lie where
/// that one has lengths.
void test_layouts() {
  context = "layouts";
  const TensorSet four(std::vector<Spec>(4, Spec{DType::kFloat32, 100}), 1);
  const TensorSet three(std::vector<Spec>(3, Spec{DType::kFloat32, 6 * 2048}), 2);  // 18 units for 5 blocks of 4 warps
  run_measure(four);
  for (int i = 0; i < 7; ++i) run_measure(TensorSet(std::vector<Spec>(size_t(10 + i), Spec{DType::kFloat32, 10})));
  for (int call = 0; call < 2; ++call) check_against_reference(three, {}, run_measure(three));
}

/// A graph that is replayed beside eager calls on the same stream, which change the tables and the pinned memory.
void test_graph() {
  context = "graph";
  const std::vector<Spec> specs(700, Spec{DType::kFloat32, 30});
  TensorSet set(specs);
  const Sets others = sets_of(specs, 10, 2);
  cuda_shim::capturing = cuda_shim::deferred = true;
  MeasureCall captured(list_of(set), false, {});
  cuda_shim::capturing = cuda_shim::deferred = false;
  const cuda_shim::Work graph = cuda_shim::take_work(nullptr);
  for (int replay = 0; replay < 3; ++replay) {
    const Counts counts = counted([&] { cuda_shim::run(graph); });
    CHECK(counts.copies == 0 && counts.allocations == 0, "%d copies in a replay", counts.copies);
    check_against_reference(set, {}, captured.results());
    for (const auto& other : others) check_against_reference(*other, {}, run_measure(*other));
    auto* const values = static_cast<float*>(set[3].data);  // other gradients at the same addresses
    for (int i = 0; i < 30; ++i) values[i] *= 2;
  }
}

/// Everything that a table says is compared. Of a list whose tensors have only moved, their addresses are copied.
void test_changes() {
  TensorSet set({{DType::kFloat32, 300}, {DType::kBFloat16, 300}, {DType::kFloat32, 210}});
  std::vector<TensorRef> refs(set.refs(), set.refs() + 3);
  refs[2].numel = 200;
  const auto norm_of_first = [&](const int64_t* first) {
    return run_measure_of({refs.data(), 3, first, 0, nullptr}, false, {}).norm;
  };
  norm_of_first(nullptr);
  const auto move = [](TensorRef& t) { t.numel -= 4, t.data = static_cast<float*>(t.data) + 4; };
  const std::vector<std::pair<std::string, std::function<void()>>> changes = {
      {"address", [&] { refs[2].data = static_cast<float*>(refs[2].data) + 1; }},
      {"length", [&] { refs[2].numel = 190; }},
      {"pointer", [&] { move(refs[2]); }},
      {"first pointer", [&] { move(refs[0]); }},
      {"type", [&] { refs[1].dtype = DType::kFloat16; }}};
  for (const auto& [name, change] : changes) {
    context = "change of " + name;
    change();
    const Counts counts = counted([&] {
      const std::vector<double> norm = norm_of_first(nullptr);
      for (size_t i = 0; i < 3; ++i) {
        Reference want;
        want.add(refs[i]);
        check_norm(norm[i], want.norm(2), 2, false, false, "norm");
      }
    });
    CHECK(counts.copies == 1, "%d copies", counts.copies);
    const size_t addresses = refs.size() * sizeof(uint64_t);
    CHECK((cuda_shim::copied == addresses) == (name == "address"), "%zu bytes copied", cuda_shim::copied);
  }
}

/// Clips both to half of a norm of 2: `set` by the kernel, `want` on the CPU.
void scale_both(TensorSet& set, TensorSet& want) {
  std::vector<char> workspace(cuda::write_workspace_bytes(list_of(set)));
  const double total = 2;
  cuda::ScaleLaunch scale;
  scale.list = list_of(set);
  scale.total_norm = &total;
  scale.total_norm_is_double = true;
  scale.max_norm = 1;
  scale.workspace = workspace.data();
  scale.workspace_bytes = workspace.size();
  cuda::launch_scale(scale);
  cpu::apply(ChunkPlan(want.refs(), want.count()), decide_clip(1, total, 0, OnNonfinite::kPropagate), serial());
}

/// Pinned memory that is still being copied is left alone; a capture uses none of what is kept.
void test_writers() {
  std::vector<Spec> specs(1000, Spec{DType::kFloat32, 5});
  TensorSet set(specs), other(specs, 3), want(specs);
  const Measured expected = run_measure(set);
  std::vector<TensorRef> changed(set.refs(), set.refs() + set.count());  // of which one is different
  changed[5] = other[5];
  const cuda::TensorList changed_list{changed.data(), set.count(), nullptr, 0, nullptr};
  const auto check = [&](const char* what, int copies, int launches) {
    context = what;
    run_measure_of(changed_list, false, {});
    const Counts counts = counted([&] { CHECK(run_measure(set).raw == expected.raw, "bits"); });
    CHECK(counts.copies == copies && counts.launches == launches, "%d copies, %d launches", counts.copies, counts.launches);
  };
  check("copies", 1, 1);
  cuda_shim::copies_pending = true;
  check("all copies pending", 0, 2);
  cuda_shim::copies_pending = false;
  cuda_shim::capturing = true;
  check("capture", 0, 2);
  CHECK(counted([&] { run_measure(set); }).allocations == 0, "allocates in a capture");
  for (int version : {12000, CUDART_VERSION}) {
    cuda_shim::driver_version = version;
    cuda_shim::largest_params = 0;
    run_measure(set);
    CHECK((cuda_shim::largest_params <= 4096) == (version == 12000), "arguments of %zu bytes", cuda_shim::largest_params);
  }
  scale_both(set, want);
  for (int64_t i = 0; i < set.count(); ++i) CHECK(set.bytes(i) == want.bytes(i), "tensor %lld", (long long)i);
  cuda_shim::capturing = false;
  CHECK(cuda::write_workspace_bytes(list_of(set)) == 0, "workspace outside a capture");
}

/// The two kernels of a clip read one table.
void test_clip() {
  const std::vector<Spec> specs(100, Spec{DType::kFloat32, 30});
  for (const bool capturing : {false, true}) {
    context = capturing ? "clip in a capture" : "clip";
    cuda_shim::capturing = capturing;
    TensorSet set(specs, 5), want(specs, 5);
    double total = 0;
    cuda::MeasureLaunch measure;
    measure.list = list_of(set);
    measure.options = {norm_order(2)};
    measure.results.decision_norm = &total;
    GuardedBuffer workspace(int64_t(cuda::measure_workspace_bytes(measure.list, measure.options)), 0);
    measure.workspace = workspace.data();
    measure.workspace_bytes = cuda::measure_workspace_bytes(measure.list, measure.options);
    cuda::ScaleLaunch scale;
    scale.total_norm = &total;
    scale.total_norm_is_double = true;
    scale.max_norm = 1;
    const Counts counts = counted([&] { cuda::launch_clip(measure, scale); });
    CHECK(counts.copies == !capturing && counts.launches == 2 + capturing, "%d copies, %d launches", counts.copies, counts.launches);
    CHECK(workspace.guards_intact(), "wrote outside the workspace");
    cpu::apply(ChunkPlan(want.refs(), want.count()), decide_clip(1, total, 0, OnNonfinite::kPropagate), serial());
    for (int64_t i = 0; i < set.count(); ++i) CHECK(set.bytes(i) == want.bytes(i), "tensor %lld", (long long)i);
  }
  cuda_shim::capturing = false;
}

}  // namespace

const std::vector<NamedTest> kTableTests = {
    {"walks", test_walks}, {"giants", test_giants}, {"uploads", test_uploads}, {"turns", test_turns}, {"changes", test_changes},
    {"in_flight", test_in_flight}, {"layouts", test_layouts}, {"graph", test_graph}, {"writers", test_writers},
    {"clip", test_clip}};

}  // namespace gradkern::test
