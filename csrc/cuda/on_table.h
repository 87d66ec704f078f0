// Launches for a table that is on the device.
#pragma once

#include "cuda/launch.h"
#include "cuda/tensor_table.h"

namespace gradkern::cuda {

/// Bytes of the workspace of launch_measure_on().
size_t records_bytes(uint32_t units, int device, const MeasureOptions& options);

/// launch_measure() and launch_scale() over `table`, by `blocks` of blocks_for(). Of the launch's list they use the
/// device, the stream and whether there is a `first`. Their device is the current one.
void launch_measure_on(const MeasureLaunch& launch, const ListPlan& plan, const TensorTable& table, uint32_t blocks);
void launch_scale_on(const ScaleLaunch& launch, const TensorTable& table, uint32_t blocks);

}  // namespace gradkern::cuda
