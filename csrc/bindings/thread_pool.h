// torch's intra-op threads, lent to the library.
#pragma once

#include "library/kernels.h"

namespace gradkern {

/// As many threads as torch.get_num_threads() allows; one inside a parallel region and in a forked
/// child, where OpenMP's threads no longer exist.
gradkern_pool intraop_pool();

}  // namespace gradkern
