// torch's intra-op threads, lent to csrc/cpu.
#pragma once

#include "cpu/driver.h"

namespace gradkern {

/// As many threads as torch.get_num_threads() allows; one inside a parallel region and in a forked
/// child, where OpenMP's threads no longer exist.
cpu::ThreadPool intraop_pool();

}  // namespace gradkern
