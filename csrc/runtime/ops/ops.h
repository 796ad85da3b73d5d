/* ops.h: what an operator on the host is made of, and what operators share. One file of csrc/runtime/ops a family. */
#ifndef MERA_RUNTIME_OPS_H
#define MERA_RUNTIME_OPS_H

#include "../host.h"

/* A step being planned. Arguments are by position in the operator's schema and have its types. */
typedef struct host_planner {
    mera_context *ctx;
    arena *memory;
    const host_op *op;
    int32_t variant; /* of the operator's row */
    const char *name;
    const host_tensor *tensors;
    host_step *step;
    host_tensor *results;
    int32_t *alias;
    int32_t result_space;
} host_planner;

typedef mera_status (*host_plan_function)(host_planner *p);

struct host_op {
    const char *name;
    const char *schema; /* "Tensor self, *, Scalar alpha=1", as PyTorch writes it, without alias annotations */
    host_plan_function plan;
    int32_t variant;
    bool exact; /* PyTorch's result to the bit */
    const char *note;
};

/* "add (aten.add.Tensor): ..." as the context's error. */
mera_status host_refuse(host_planner *p, mera_status status, const char *format, ...) MERA_PRINTF(3, 4);

/* Fills step->args for the call. */
mera_status host_bind(host_planner *p, const host_call *call, int32_t tensor_count);
/* The name of parameter `index`, for messages; at most `space` bytes. */
void host_parameter_name(const host_op *op, int32_t index, char *name, size_t space);

/* ---- arguments ---- */

bool arg_given(const host_planner *p, int32_t index); /* and not None */
int64_t arg_int(const host_planner *p, int32_t index);
bool arg_flag(const host_planner *p, int32_t index);
double arg_real(const host_planner *p, int32_t index);      /* of a float or a Scalar */
const char *arg_text(const host_planner *p, int32_t index); /* "" for None */
int32_t arg_count(const host_planner *p, int32_t index);    /* of a list; 0 for None */
int64_t arg_item(const host_planner *p, int32_t index, int32_t item);
/* The dtype, or `otherwise` for None. */
host_dtype arg_dtype(const host_planner *p, int32_t index, host_dtype otherwise);
/* Fails if the argument is a number. */
mera_status arg_tensor(host_planner *p, int32_t index, const host_tensor **tensor);
/* As arg_tensor, NULL for None. */
mera_status arg_tensor_or_none(host_planner *p, int32_t index, const host_tensor **tensor);
/* The tensor's number; only of an argument that arg_tensor accepted. */
int32_t arg_number(const host_planner *p, int32_t index);
/* A dimension -rank <= dim < rank, as 0 <= dim < rank. A rank of 0 counts as 1. */
mera_status arg_dim(host_planner *p, int32_t index, int32_t rank, int32_t *dim);
mera_status check_dim(host_planner *p, int64_t value, int32_t rank, int32_t *dim);
/* The dims of a list, as flags; none given means all. Fails for one that is given twice. */
mera_status arg_dims(host_planner *p, int32_t index, int32_t rank, bool flags[HOST_MAX_RANK]);
/* `count` values of a list that has `count` of them or 1. */
mera_status arg_values(host_planner *p, int32_t index, int32_t count, int64_t *values);
mera_status need_rank(host_planner *p, const host_tensor *t, int32_t least, int32_t most, const char *what);
mera_status need_float(host_planner *p, const host_tensor *t, const char *what); /* float32 or float64 */

/* ---- results ---- */

mera_status add_result(host_planner *p, host_dtype dtype, int32_t rank, const int64_t *shape);
/* A result that is tensor `number` under another shape of as many elements. */
mera_status add_alias(host_planner *p, int32_t number, int32_t rank, const int64_t *shape);
/* The step's plan: `size` zeroed bytes. */
void *new_plan(host_planner *p, size_t size);
#define NEW_PLAN(p, type) ((type *)new_plan((p), sizeof(type)))

/* ---- dtypes ---- */

static inline bool is_float(host_dtype d) { return d >= MERA_HOST_FLOAT16; }
static inline bool is_half(host_dtype d) { return d == MERA_HOST_FLOAT16 || d == MERA_HOST_BFLOAT16; }
/* PyTorch's torch.promote_types. */
host_dtype promote(host_dtype a, host_dtype b);
/* to[i] = from[i * step] for i < n, as .to(dtype) does it. */
void convert_row(int64_t n, host_dtype to_type, void *to, host_dtype from_type, const void *from, int64_t step);
/* The bytes of one number as `dtype`. */
void store_number(host_dtype dtype, void *to, const host_arg *number);
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float value);

/* ---- strided copies (copy.c) ---- */

enum { COPY_MAX_RANK = 16 };

/* A dense result of `rank` dimensions whose element (i, j, ...) is element offset + i * stride[0] + j * stride[1] ... of a
 * tensor; written at to_offset with to_stride if that is a part of a larger tensor. All in elements. */
typedef struct strided_copy {
    int32_t rank;
    int64_t shape[COPY_MAX_RANK];
    int64_t stride[COPY_MAX_RANK], to_stride[COPY_MAX_RANK];
    int64_t offset, to_offset;
} strided_copy;

void dense_strides(int32_t rank, const int64_t *shape, int64_t *strides);
/* Of a dense result. The shape is that of `copy`. */
void strided_to_dense(strided_copy *copy);
/* Joins dimensions that can be walked as one, and drops those of 1. */
void strided_simplify(strided_copy *copy);
void strided_run(const strided_copy *copy, size_t element, const void *from, void *to);
/* Element offset of row `row` (counted over all dimensions but the last `inner`). */
int64_t product(int32_t count, const int64_t *values);

/* ---- the table ---- */

typedef enum padding { PAD_CONSTANT, PAD_REFLECT, PAD_REPLICATE, PAD_CIRCULAR } padding;
typedef enum resize_mode { RESIZE_NEAREST, RESIZE_NEAREST_EXACT, RESIZE_LINEAR, RESIZE_CUBIC } resize_mode;
enum { RESIZE_BY_FACTORS = 8, RESIZE_ONE_DIMENSION = 16 }; /* added to a mode */

const host_op *host_op_at(int32_t index); /* NULL beyond the end */

#define HOST_OP(name, schema, plan, variant, exact, note) mera_status plan(host_planner *p);
#include "../host_ops.def"
#undef HOST_OP

#endif
