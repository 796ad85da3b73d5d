/* elementwise.c: add, sub and mul, with either operand broadcast. */
#include "../ops.h"

enum { CHUNK = 1 << 14 };

/* Whether small's dimensions each equal large's or are 1. */
static bool broadcasts(const int64_t small[4], const int64_t large[4])
{
    for (int d = 0; d < 4; d++)
        if (small[d] != large[d] && small[d] != 1) return false;
    return true;
}

static mera_status check(const mera_graph *graph, const graph_node *node)
{
    TRY(check_activation(graph, node, 0));
    TRY(check_activation(graph, node, 1));
    TRY(check_clamp(graph, node, 0));
    const graph_tensor *a = node_input(graph, node, 0), *b = node_input(graph, node, 1), *y = node_output(graph, node);
    const bool b_small = broadcasts(b->shape, a->shape);
    if (!b_small && !broadcasts(a->shape, b->shape))
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "each dimension of one operand must equal the other's or be 1, got [%lld, %lld, %lld, %lld] and "
                         "[%lld, %lld, %lld, %lld]",
                         (long long)a->shape[0], (long long)a->shape[1], (long long)a->shape[2], (long long)a->shape[3],
                         (long long)b->shape[0], (long long)b->shape[1], (long long)b->shape[2], (long long)b->shape[3]);
    TRY(check_output_shape(graph, node, b_small ? a->shape : b->shape));
    if (node->op != OP_MUL && add_rescale_from_scales(a->scale[0], b->scale[0], y->scale[0]).y.shift > 0)
        return node_fail(graph, node, MERA_INVALID_ARGUMENT,
                         "the output's scale must exceed 2^-19 of the larger input scale, got %.9g for %.9g and %.9g",
                         (double)y->scale[0], (double)a->scale[0], (double)b->scale[0]);
    return MERA_OK;
}

/* y splits into `rows` runs of `length` elements. In a run an operand is dense, or one value if `single`. */
typedef struct broadcast {
    int64_t rows, length;
    bool single[2];
} broadcast;

static broadcast broadcast_of(const int64_t *a, const int64_t *b, const int64_t *y)
{
    /* The run takes the innermost dimensions as long as each operand goes on as it began: full or broadcast. */
    broadcast r = {1, 1, {false, false}};
    int d = 3;
    while (d >= 0 && y[d] == 1) d--;
    if (d >= 0) r.single[0] = a[d] == 1, r.single[1] = b[d] == 1;
    for (; d >= 0; d--) {
        if (y[d] != 1 && ((a[d] == 1) != r.single[0] || (b[d] == 1) != r.single[1])) break;
        r.length *= y[d];
    }
    for (; d >= 0; d--) r.rows *= y[d];
    return r;
}

/* The offset of y's element `flat` in an operand. */
static int64_t operand_offset(const int64_t *operand, const int64_t *y, int64_t flat)
{
    int64_t offset = 0, stride = 1;
    for (int d = 3; d >= 0; d--) {
        if (operand[d] != 1) offset += flat % y[d] * stride;
        stride *= operand[d];
        flat /= y[d];
    }
    return offset;
}

typedef struct elementwise {
    const mera_kernels *kernels;
    dna_op op;
    int32_t zero[2], zero_y, low, high;
    add_rescale add;
    rescale mul;
} elementwise;

static void run_chunk(const elementwise *e, int64_t n, const int8_t *a, const int8_t *b, int8_t *y)
{
    if (e->op == OP_MUL)
        e->kernels->mul_s8(n, a, b, e->zero[0], e->zero[1], e->zero_y, e->mul, e->low, e->high, y);
    else
        e->kernels->add_s8(n, a, b, e->zero[0], e->zero[1], e->zero_y, e->op == OP_ADD ? 1 : -1, &e->add, e->low, e->high,
                           y);
}

/* A task is a chunk of one long run, or several short runs. */
static int64_t chunks_of(const broadcast *shape) { return ceil_div(shape->length, CHUNK); }
static int64_t group_of(const broadcast *shape) { return max_i64(1, CHUNK / shape->length); }

static mera_status prepare(op_plan *plan, arena *memory)
{
    (void)memory;
    const int64_t *a = node_input(plan->graph, plan->node, 0)->shape, *b = node_input(plan->graph, plan->node, 1)->shape;
    const broadcast shape = broadcast_of(a, b, node_output(plan->graph, plan->node)->shape);
    plan->tasks = ceil_div(shape.rows, group_of(&shape)) * chunks_of(&shape);
    plan->scratch_bytes = CHUNK; /* a single value, repeated */
    return MERA_OK;
}

static elementwise elementwise_of(const op_plan *plan)
{
    const graph_node *node = plan->node;
    const graph_tensor *a = node_input(plan->graph, node, 0), *b = node_input(plan->graph, node, 1);
    const graph_tensor *y = node_output(plan->graph, node);
    return (elementwise){
        .kernels = plan->kernels,
        .op = node->op,
        .zero = {a->zero_point[0], b->zero_point[0]},
        .zero_y = y->zero_point[0],
        .low = (int32_t)node->attrs[0],
        .high = (int32_t)node->attrs[1],
        .add = add_rescale_from_scales(a->scale[0], b->scale[0], y->scale[0]),
        .mul = mul_rescale(a->scale[0], b->scale[0], y->scale[0]),
    };
}

static void run(const op_run *r, int64_t task, uint8_t *scratch)
{
    const graph_node *node = r->plan->node;
    const graph_tensor *t[2] = {node_input(r->plan->graph, node, 0), node_input(r->plan->graph, node, 1)};
    const int64_t *y = node_output(r->plan->graph, node)->shape;
    const elementwise e = elementwise_of(r->plan);
    const broadcast shape = broadcast_of(t[0]->shape, t[1]->shape, y);
    const int64_t chunks = chunks_of(&shape), group = group_of(&shape);
    const int64_t begin = task % chunks * CHUNK, count = min_i64(CHUNK, shape.length - begin);
    const int64_t last = min_i64(shape.rows, (task / chunks + 1) * group);
    for (int64_t row = task / chunks * group; row < last; row++) {
        const int8_t *in[2];
        for (int i = 0; i < 2; i++) {
            in[i] = r->in[i] + operand_offset(t[i]->shape, y, row * shape.length) + (shape.single[i] ? 0 : begin);
            if (shape.single[i]) in[i] = memset(scratch, in[i][0], (size_t)count); /* never both */
        }
        run_chunk(&e, count, in[0], in[1], r->out + row * shape.length + begin);
    }
}

const op_impl add_impl = {check, prepare, run};
const op_impl sub_impl = {check, prepare, run};
const op_impl mul_impl = {check, prepare, run};

_Static_assert((int)ATTR_ADD_clamp_min == 0 && (int)ATTR_SUB_clamp_min == 0 && (int)ATTR_MUL_clamp_min == 0,
               "attrs[0], attrs[1]");
