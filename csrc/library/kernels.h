/* The C interface of gradkern's kernels: libgradkern_kernels.so, which knows no torch, no Python and no OpenMP.
 *
 * One library serves every binding: those for several versions of torch call it through this header. Only plain
 * data crosses the boundary, once a list and not once a tensor. Functions return GRADKERN_OK or GRADKERN_ERROR, and
 * no exception leaves them; gradkern_last_error() then says what was wrong. Pointers are borrowed for the call.
 *
 * The numbers are defined in core/norm.h (norms, their error bounds), core/clip.h (decisions) and core/policies.h.
 */
#ifndef GRADKERN_LIBRARY_KERNELS_H
#define GRADKERN_LIBRARY_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes with every change of this header. A binding compares it with gradkern_abi_version() when it is loaded. */
#define GRADKERN_ABI_VERSION 2

#if defined(_WIN32)
#define GRADKERN_API __declspec(dllexport)
#else
#define GRADKERN_API __attribute__((visibility("default")))
#endif

enum { GRADKERN_OK = 0, GRADKERN_ERROR = 1 };

GRADKERN_API int32_t gradkern_abi_version(void);

/* The message of this thread's last GRADKERN_ERROR, until its next one. */
GRADKERN_API const char *gradkern_last_error(void);

/* What was compiled, in words. `cuda_version` and `cuda_architectures` are empty without CUDA kernels.
 * `instruction_set` is the one in use on this processor; null if GRADKERN_CPU_ISA names none that it has. */
typedef struct {
  const char *compiler;
  const char *instruction_sets;
  const char *instruction_set;
  const char *cuda_version;
  const char *cuda_architectures;
} gradkern_build;
GRADKERN_API gradkern_build gradkern_build_info(void);

/* ------------------------------------------------------------------------------------------- lists */

enum {
  GRADKERN_FLOAT32,
  GRADKERN_BFLOAT16,
  GRADKERN_FLOAT16,
  GRADKERN_FLOAT64,
  GRADKERN_COMPLEX64,
  GRADKERN_COMPLEX128
};

/* `numel` elements, dense in memory, in the order of memory. numel 0: nothing to do, its norm is 0. */
typedef struct {
  void *data;
  int64_t numel;
  uint8_t dtype;
} gradkern_tensor;

/* Tensors of one device. Where `first` is given, a tensor with numel 0 and first[i] < i reports what tensor
 * first[i] reports; totals count that one once. */
typedef struct {
  const gradkern_tensor *tensors;
  int64_t count;
  const int64_t *first;
} gradkern_list;

/* -------------------------------------------------------------------------------- what is to be done */

enum { GRADKERN_PROPAGATE, GRADKERN_ZERO, GRADKERN_SKIP };

/* Where results go: memory of the list's device. Any pointer may be null. "real" is double if `is_double`, else
 * float; set it whenever the list has a float64 or complex128 tensor. */
typedef struct {
  uint8_t is_double;
  void *norm;               /* real [count], of the order asked for */
  void *l2;                 /* real [count] */
  void *max_abs;            /* real [count] */
  double *wide_norm;        /* [count], CPU: norm before rounding */
  int64_t *nonfinite;       /* [count] */
  int64_t *zeros;           /* [count], filled if count_zeros */
  void *total_norm;         /* real, before clipping */
  double *decision_norm;    /* what clipping goes by, see core/clip.h */
  void *clip_coef;          /* real; 1 where nothing is to be clipped */
  int64_t *total_nonfinite; /* one number */
  uint8_t *skip_step;       /* whether total_nonfinite is not 0 */
  void *total;              /* CUDA: GRADKERN_PARTIAL_BYTES for gradkern_cuda_combine, before inv_scale */
  /* For ranks (core/packed.h), before inv_scale: one row of the whole list, after one a tensor if packed_rows. */
  double *packed_sums;
  int64_t *packed_keys;
  uint8_t packed_rows;
} gradkern_results;

typedef struct {
  double norm_type;     /* 2, 1, 0, +-inf or any other p */
  double inv_scale;     /* norms and magnitudes are multiplied by its absolute value */
  double max_norm;      /* for clip_coef, as is on_nonfinite */
  uint8_t on_nonfinite; /* GRADKERN_PROPAGATE … */
  uint8_t count_zeros;
  gradkern_results results;
} gradkern_measure;

/* What every element is multiplied by, with one rounding; all pointers are memory of the list's device.
 * With `factor`: by factor[0], or those of tensor i by factor[i] if factor_per_tensor, unless *zero holds, which
 * sets everything to zero. Without: by max_norm / (*total_norm + 1e-6), if that is below 1, and as on_nonfinite
 * says where *total_nonfinite is not 0. Without anything to do nothing is written. */
typedef struct {
  const double *factor;
  const uint8_t *zero;
  const void *total_norm; /* double if total_norm_is_double, else float */
  const int64_t *total_nonfinite;
  double max_norm;
  uint8_t factor_per_tensor;
  uint8_t total_norm_is_double;
  uint8_t on_nonfinite;
} gradkern_scale;

/* One step of an adaptive policy; see PolicyStep in core/policies.h. */
typedef struct {
  double constants[8];
  const void *total;
  const void *norms;
  double *state;
  double *result;
  int64_t rows;
  uint8_t kind;
  uint8_t total_is_double;
  uint8_t norms_are_double;
} gradkern_policy_step;

/* --------------------------------------------------------------------------------------------- CPU */

/* Threads lent for a call: parallel_for calls body(context, 0) … body(context, count - 1), possibly at the same
 * time, and returns when all are done. threads 1: it is not called. */
typedef struct {
  int32_t threads;
  void (*parallel_for)(int32_t count, void (*body)(void *context, int32_t index), void *context);
} gradkern_pool;

/* The same bits for any number of threads. */
GRADKERN_API int32_t gradkern_cpu_measure(const gradkern_list *list, const gradkern_measure *measure,
                                          const gradkern_pool *pool);
GRADKERN_API int32_t gradkern_cpu_scale(const gradkern_list *list, const gradkern_scale *scale,
                                        const gradkern_pool *pool);
/* x = clamp(x, -limit, limit); writes only where something changes. No complex tensors. */
GRADKERN_API int32_t gradkern_cpu_clamp(const gradkern_list *list, double limit, const gradkern_pool *pool);
GRADKERN_API int32_t gradkern_cpu_policy_step(const gradkern_policy_step *step);

/* A gradient and its weights in the order of memory, each `rows` units of `length` elements. */
typedef struct {
  void *grad;
  const void *weights;
  int64_t rows;
  int64_t length;
  uint8_t grad_dtype;
  uint8_t weights_dtype;
} gradkern_units;

/* Adaptive gradient clipping: limits the gradient of each unit to clip_factor times the norm of its weights, which
 * counts as eps at least. ratios[i] becomes the ratio of gradient i's L2 norms after and before; changed[i] whether
 * it was written to. */
GRADKERN_API int32_t gradkern_cpu_clip_units(const gradkern_units *list, int64_t count, double clip_factor, double eps,
                                             const gradkern_pool *pool, double *ratios, uint8_t *changed);

/* -------------------------------------------------------------------------------------------- CUDA
 * Calls launch work on a stream and return; nothing allocates, waits for the device or breaks a capture. Without
 * CUDA kernels in the build all of them are errors. */

enum { GRADKERN_PARTIAL_BYTES = 80 };

/* How a list is cut into the work of blocks: made once for all launches over it. */
typedef struct {
  uint64_t opaque[8];
} gradkern_cuda_plan;

/* Where a call runs. The workspace is device memory, aligned to 16, as large as the functions below say. It needs no
 * preparation, may be freed in the order of the stream, and must not serve two calls that can run at the same time. */
typedef struct {
  int32_t device;
  void *stream; /* cudaStream_t */
  const gradkern_cuda_plan *plan;
  void *workspace;
  size_t workspace_bytes;
} gradkern_cuda_place;

/* GRADKERN_OK if the kernels run on this device and driver; else the reason is gradkern_last_error(). Loads them,
 * which could not be done later, within the capture of a graph. The device's context should exist. */
GRADKERN_API int32_t gradkern_cuda_usable(int32_t device);

GRADKERN_API int32_t gradkern_cuda_plan_list(const gradkern_list *list, gradkern_cuda_plan *plan);

/* Bytes of workspace for gradkern_cuda_measure, and for gradkern_cuda_scale and gradkern_cuda_clamp. */
GRADKERN_API int32_t gradkern_cuda_measure_workspace_bytes(const gradkern_list *list, const gradkern_measure *measure,
                                                           const gradkern_cuda_place *place, size_t *bytes);
GRADKERN_API int32_t gradkern_cuda_write_workspace_bytes(const gradkern_list *list, const gradkern_cuda_place *place,
                                                         size_t *bytes);

GRADKERN_API int32_t gradkern_cuda_measure(const gradkern_list *list, const gradkern_measure *measure,
                                           const gradkern_cuda_place *place);
/* Several devices in one call: combines the results.total of each, copied to one device in a fixed order. Fills
 * the totals of measure->results; only the place's device and stream are looked at. */
GRADKERN_API int32_t gradkern_cuda_combine(const void *totals, int64_t count, const gradkern_measure *measure,
                                           const gradkern_cuda_place *place);
GRADKERN_API int32_t gradkern_cuda_scale(const gradkern_list *list, const gradkern_scale *scale,
                                         const gradkern_cuda_place *place);
GRADKERN_API int32_t gradkern_cuda_clamp(const gradkern_list *list, double limit, const gradkern_cuda_place *place);
GRADKERN_API int32_t gradkern_cuda_policy_step(const gradkern_policy_step *step, const gradkern_cuda_place *place);
/* Whether work on the stream is being captured into a graph. */
GRADKERN_API int32_t gradkern_cuda_is_capturing(const gradkern_cuda_place *place, int32_t *capturing);

#ifdef __cplusplus
}
#endif

#endif
