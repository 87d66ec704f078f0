/* The C interface of gradkern's kernels: libgradkern_kernels.so, which does not use torch, Python or OpenMP.
 *
 * The bindings for all versions of torch call the same library through this header. Only plain data crosses the
 * boundary, once per list and not once per tensor. Functions return GRADKERN_OK or GRADKERN_ERROR and never throw;
 * gradkern_last_error() has the message. Pointers are borrowed for the duration of the call.
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
#define GRADKERN_ABI_VERSION 5

#if defined(_WIN32)
#define GRADKERN_API __declspec(dllexport)
#else
#define GRADKERN_API __attribute__((visibility("default")))
#endif

enum { GRADKERN_OK = 0, GRADKERN_ERROR = 1 };

GRADKERN_API int32_t gradkern_abi_version(void);

/* The message of this thread's last GRADKERN_ERROR, until its next one. */
GRADKERN_API const char *gradkern_last_error(void);

/* How the library was compiled, as text. `cuda_version` and `cuda_architectures` are empty without CUDA kernels.
 * `instruction_set` is the one in use on this processor, or null if GRADKERN_CPU_ISA names one that it lacks. */
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

/* `numel` elements, dense in memory, in memory order. A tensor with numel 0 is skipped and has norm 0. */
typedef struct {
  void *data;
  int64_t numel;
  uint8_t dtype;
} gradkern_tensor;

/* Tensors of one device. If `first` is given, a tensor with numel 0 and first[i] < i has the results of tensor
 * first[i], which totals count once. */
typedef struct {
  const gradkern_tensor *tensors;
  int64_t count;
  const int64_t *first;
} gradkern_list;

/* --------------------------------------------------------------------------------------- operations */

enum { GRADKERN_PROPAGATE, GRADKERN_ZERO, GRADKERN_SKIP };

/* The addresses of the results, on the list's device. Any pointer may be null. "real" is double if `is_double`, else
 * float. Set `is_double` if the list has a float64 or complex128 tensor. */
typedef struct {
  uint8_t is_double;
  void *norm;               /* real [count], of the order asked for */
  void *l2;                 /* real [count] */
  void *max_abs;            /* real [count] */
  double *wide_norm;        /* [count], CPU: norm before rounding */
  int64_t *nonfinite;       /* [count] */
  int64_t *zeros;           /* [count], filled if count_zeros */
  void *total_norm;         /* real, before clipping */
  double *decision_norm;    /* the norm that decisions use, see core/clip.h */
  void *clip_coef;          /* real; 1 if nothing has to be clipped */
  int64_t *total_nonfinite; /* one number */
  uint8_t *skip_step;       /* whether total_nonfinite is not 0 */
  void *total;              /* CUDA: GRADKERN_PARTIAL_BYTES for gradkern_cuda_combine, before inv_scale */
  /* For ranks (core/packed.h), before inv_scale: a row of the whole list, preceded by one per tensor if packed_rows. */
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

/* The factor of every element, applied with one rounding. All pointers are on the list's device.
 * With `factor`: factor[0], or factor[i] for tensor i if factor_per_tensor. If *zero is true, all elements are set to
 * zero instead. Without `factor`: max_norm / (*total_norm + 1e-6) if that is below 1; if *total_nonfinite is not 0,
 * on_nonfinite decides. A factor of 1 writes nothing. */
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

/* The threads for a call. parallel_for calls body(context, 0) … body(context, count - 1), possibly at the same time,
 * and returns when all are done. With threads 1 it is not called. */
typedef struct {
  int32_t threads;
  void (*parallel_for)(int32_t count, void (*body)(void *context, int32_t index), void *context);
} gradkern_pool;

/* The results have the same bits for any number of threads. */
GRADKERN_API int32_t gradkern_cpu_measure(const gradkern_list *list, const gradkern_measure *measure,
                                          const gradkern_pool *pool);
GRADKERN_API int32_t gradkern_cpu_scale(const gradkern_list *list, const gradkern_scale *scale,
                                        const gradkern_pool *pool);
/* x = clamp(x, -limit, limit). Writes only where an element changes. Complex tensors are not supported. */
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

/* Adaptive gradient clipping: limits the gradient of each unit to clip_factor times the norm of its weights, with a
 * lower bound of eps for that norm. Sets norms[i] to the L2 norm of gradient i before, norms[count + i] to that after,
 * and changed[i] to whether it was written. */
GRADKERN_API int32_t gradkern_cpu_clip_units(const gradkern_units *list, int64_t count, double clip_factor, double eps,
                                             const gradkern_pool *pool, double *norms, uint8_t *changed);

/* The limits of a gradient's units. */
typedef struct {
  double clip_factor;
  double eps;
} gradkern_unit_limits;

/* Measures a list and decides on its units in one read. units[i] are those of tensor i; with rows 0 it is only measured.
 * limits[i] are theirs. Sets factors to the factor of every unit, tensor after tensor, and norms and changed as
 * gradkern_cpu_clip_units does. Writes no gradient; gradkern_cpu_scale_units does. */
GRADKERN_API int32_t gradkern_cpu_measure_units(const gradkern_list *list, const gradkern_measure *measure,
                                                const gradkern_units *units, const gradkern_unit_limits *limits,
                                                const gradkern_pool *pool, double *factors, double *norms,
                                                uint8_t *changed);
GRADKERN_API int32_t gradkern_cpu_scale_units(const gradkern_units *units, int64_t count, const double *factors,
                                              const uint8_t *changed, const gradkern_pool *pool);

/* -------------------------------------------------------------------------------------------- CUDA
 * Calls launch work on a stream and return. They do not allocate, wait for the device or break a capture. In a build
 * without CUDA kernels all of them fail. */

enum { GRADKERN_PARTIAL_BYTES = 80 };

/* How a list is divided among blocks. Made once for all launches over the list. */
typedef struct {
  uint64_t opaque[8];
} gradkern_cuda_plan;

/* Where a call runs. The workspace is device memory, aligned to 16 bytes, with the size that the functions below return.
 * It needs no initialization, may be freed in stream order, and must not be used by two calls that can run at the same
 * time. */
typedef struct {
  int32_t device;
  void *stream; /* cudaStream_t */
  const gradkern_cuda_plan *plan;
  void *workspace;
  size_t workspace_bytes;
} gradkern_cuda_place;

/* GRADKERN_OK if the kernels run on this device and driver; else gradkern_last_error() has the reason. Also loads the
 * kernels, which is not possible while a graph is captured. The context of the device should exist. */
GRADKERN_API int32_t gradkern_cuda_usable(int32_t device);

GRADKERN_API int32_t gradkern_cuda_plan_list(const gradkern_list *list, gradkern_cuda_plan *plan);

/* Bytes of workspace for gradkern_cuda_measure, and for gradkern_cuda_scale and gradkern_cuda_clamp. */
GRADKERN_API int32_t gradkern_cuda_measure_workspace_bytes(const gradkern_list *list, const gradkern_measure *measure,
                                                           const gradkern_cuda_place *place, size_t *bytes);
GRADKERN_API int32_t gradkern_cuda_write_workspace_bytes(const gradkern_list *list, const gradkern_cuda_place *place,
                                                         size_t *bytes);

GRADKERN_API int32_t gradkern_cuda_measure(const gradkern_list *list, const gradkern_measure *measure,
                                           const gradkern_cuda_place *place);
/* For lists on several devices: combines the results.total of each, copied to one device in a fixed order. Fills the
 * totals of measure->results. Only the device and the stream of `place` are used. */
GRADKERN_API int32_t gradkern_cuda_combine(const void *totals, int64_t count, const gradkern_measure *measure,
                                           const gradkern_cuda_place *place);
GRADKERN_API int32_t gradkern_cuda_scale(const gradkern_list *list, const gradkern_scale *scale,
                                         const gradkern_cuda_place *place);
/* gradkern_cuda_measure, then gradkern_cuda_scale of the same list, whose tables are made once. The workspace is that of
 * the measurement. */
GRADKERN_API int32_t gradkern_cuda_clip(const gradkern_list *list, const gradkern_measure *measure,
                                        const gradkern_scale *scale, const gradkern_cuda_place *place);
GRADKERN_API int32_t gradkern_cuda_clamp(const gradkern_list *list, double limit, const gradkern_cuda_place *place);
GRADKERN_API int32_t gradkern_cuda_policy_step(const gradkern_policy_step *step, const gradkern_cuda_place *place);
/* gradkern_cpu_clip_units on a GPU, with `norms` in device memory. It needs a workspace of its own size. */
GRADKERN_API int32_t gradkern_cuda_units_workspace_bytes(const gradkern_units *list, int64_t count,
                                                         const gradkern_cuda_place *place, size_t *bytes);
GRADKERN_API int32_t gradkern_cuda_clip_units(const gradkern_units *list, int64_t count, double clip_factor, double eps,
                                              const gradkern_cuda_place *place, double *norms);
/* Whether work on the stream is being captured into a graph. */
GRADKERN_API int32_t gradkern_cuda_is_capturing(const gradkern_cuda_place *place, int32_t *capturing);

#ifdef __cplusplus
}
#endif

#endif
