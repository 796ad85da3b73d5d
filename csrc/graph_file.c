/* graph_file.c: the binary form of the DNA graph.
 *
 *   "MERAGRPH"  u32 version  u64 payload bytes  u64 FNV-1a of the payload  payload
 *
 * payload: name, tensors, inputs, nodes, outputs; each list begins with its u32 count; a string is a u32 length and its
 * bytes. Numbers are little endian. The reader trusts nothing: every count is bounded by the bytes that are left, and what
 * it reads goes through the builder, whose checks it does not repeat. */
#include "bytes.h"
#include "graph.h"

static const char magic[8] = {'M', 'E', 'R', 'A', 'G', 'R', 'P', 'H'};
enum { VERSION = 1, LENGTH_AT = 12, HASH_AT = 20, HEADER_BYTES = 28 };

/* ---- writing ---- */

static void write_f32(text *t, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    write_u32(t, bits);
}

static void write_tensor(text *t, const graph_tensor *x)
{
    write_text(t, x->name);
    write_u32(t, (uint32_t)x->dtype);
    for (int d = 0; d < 4; d++) write_u32(t, (uint32_t)x->shape[d]);
    write_u32(t, (uint32_t)x->scale_count);
    for (int64_t i = 0; i < x->scale_count; i++) write_f32(t, x->scale[i]);
    for (int64_t i = 0; i < x->scale_count; i++) write_u32(t, (uint32_t)x->zero_point[i]);
    write_u32(t, x->data != NULL);
    if (x->data) text_bytes(t, x->data, (size_t)x->bytes);
}

static void write_node(text *t, const graph_node *n)
{
    write_text(t, op_name(n->op)); /* by name, so that the table may grow */
    write_text(t, n->name);
    write_text(t, n->layer);
    write_text(t, n->source);
    write_u32(t, (uint32_t)n->input_count);
    for (int32_t i = 0; i < n->input_count; i++) write_u32(t, (uint32_t)n->inputs[i]);
    write_u32(t, (uint32_t)n->output);
    write_u32(t, (uint32_t)op_attr_count(n->op));
    for (int i = 0; i < op_attr_count(n->op); i++) write_u64(t, (uint64_t)n->attrs[i]);
}

static void write_indices(text *t, const int32_t *indices, size_t count)
{
    write_u32(t, (uint32_t)count);
    for (size_t i = 0; i < count; i++) write_u32(t, (uint32_t)indices[i]);
}

static void set_u64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++) at[i] = (uint8_t)(value >> (8 * i));
}

mera_status mera_graph_save(mera_graph *graph, const uint8_t **data, size_t *bytes)
{
    mera_context *ctx = graph->object.ctx;
    TRY(graph_check_finished(graph, "it can be saved"));
    text t;
    text_init(&t, ctx);
    text_bytes(&t, magic, sizeof magic);
    write_u32(&t, VERSION);
    write_u64(&t, 0); /* length and checksum: below */
    write_u64(&t, 0);
    write_text(&t, graph->name);
    write_u32(&t, (uint32_t)graph->tensors.count);
    for (size_t i = 0; i < graph->tensors.count; i++) write_tensor(&t, &graph->tensors.at[i]);
    write_indices(&t, graph->inputs.at, graph->inputs.count);
    write_u32(&t, (uint32_t)graph->nodes.count);
    for (size_t i = 0; i < graph->nodes.count; i++) write_node(&t, &graph->nodes.at[i]);
    write_indices(&t, graph->outputs.at, graph->outputs.count);

    const size_t total = t.count;
    char *saved;
    TRY(text_finish(&t, &saved));
    ctx_free(ctx, graph->saved);
    graph->saved = (uint8_t *)saved;
    set_u64(graph->saved + LENGTH_AT, total - HEADER_BYTES);
    set_u64(graph->saved + HASH_AT, fnv1a(saved + HEADER_BYTES, total - HEADER_BYTES));
    *data = graph->saved;
    *bytes = total;
    return MERA_OK;
}

/* ---- reading ---- */

typedef struct loader {
    mera_context *ctx;
    reader r;
    arena memory; /* of strings and lists while they are on their way to the builder */
    mera_graph *graph;
} loader;

static mera_status truncated(const loader *l)
{
    return fail(l->ctx, MERA_CORRUPT, "graph file: it ends too early, or a count in it is too large");
}

/* A count of things that take at least `each` bytes, so that no count asks for more memory than the file's size warrants. */
static mera_status read_count(loader *l, size_t each, uint32_t *count)
{
    *count = read_u32(&l->r);
    return l->r.failed || *count > (size_t)(l->r.end - l->r.at) / each ? truncated(l) : MERA_OK;
}

static mera_status read_string(loader *l, const char **string)
{
    *string = read_text(&l->r, &l->memory);
    if (l->r.failed) return truncated(l);
    return *string ? MERA_OK : out_of_memory(l->ctx);
}

static mera_status read_indices(loader *l, int32_t **indices, uint32_t *count)
{
    TRY(read_count(l, 4, count));
    *indices = arena_array(&l->memory, *count, sizeof **indices);
    if (!*indices) return out_of_memory(l->ctx);
    for (uint32_t i = 0; i < *count; i++) (*indices)[i] = (int32_t)read_u32(&l->r);
    return MERA_OK;
}

static mera_status read_quantization(loader *l, uint32_t *count, float **scale, int32_t **zero_point)
{
    TRY(read_count(l, 8, count));
    *scale = arena_array(&l->memory, *count, sizeof **scale);
    *zero_point = arena_array(&l->memory, *count, sizeof **zero_point);
    if (!*scale || !*zero_point) return out_of_memory(l->ctx);
    for (uint32_t i = 0; i < *count; i++) {
        const uint32_t bits = read_u32(&l->r);
        memcpy(&(*scale)[i], &bits, sizeof bits);
    }
    for (uint32_t i = 0; i < *count; i++) (*zero_point)[i] = (int32_t)read_u32(&l->r);
    return MERA_OK;
}

static mera_status read_tensor(loader *l)
{
    const char *name;
    int64_t shape[4];
    uint32_t count;
    float *scale;
    int32_t *zero_point, tensor;
    TRY(read_string(l, &name));
    const uint32_t dtype = read_u32(&l->r);
    if (dtype > MERA_FLOAT32)
        return fail(l->ctx, MERA_CORRUPT, "graph file: tensor \"%.100s\" has the unknown dtype %u", name, dtype);
    for (int d = 0; d < 4; d++) shape[d] = read_u32(&l->r);
    TRY(read_quantization(l, &count, &scale, &zero_point));
    const bool constant = read_u32(&l->r) != 0;
    if (l->r.failed) return truncated(l);
    TRY(mera_graph_tensor(l->graph, name, (mera_dtype)dtype, shape, &tensor));
    if (constant) {
        const size_t bytes = (size_t)l->graph->tensors.at[tensor].bytes;
        const uint8_t *data = read_bytes(&l->r, bytes);
        if (!data) return truncated(l);
        l->graph->tensors.count--; /* made again, with its data: now its size is known to be sound */
        TRY(mera_graph_constant(l->graph, name, (mera_dtype)dtype, shape, data, bytes, &tensor));
    }
    return count ? mera_graph_quantize(l->graph, tensor, count, scale, zero_point) : MERA_OK;
}

static mera_status read_node(loader *l)
{
    const char *op, *name, *layer, *source;
    uint32_t input_count, attr_count;
    int32_t *inputs;
    TRY(read_string(l, &op));
    TRY(read_string(l, &name));
    TRY(read_string(l, &layer));
    TRY(read_string(l, &source));
    TRY(read_indices(l, &inputs, &input_count));
    const int32_t output = (int32_t)read_u32(&l->r);
    TRY(read_count(l, 8, &attr_count));
    int64_t *attrs = arena_array(&l->memory, attr_count, sizeof *attrs);
    if (!attrs) return out_of_memory(l->ctx);
    for (uint32_t i = 0; i < attr_count; i++) attrs[i] = (int64_t)read_u64(&l->r);
    if (l->r.failed) return truncated(l);
    const int index = op_by_name(op);
    if (index < 0)
        return fail(l->ctx, MERA_CORRUPT, "graph file: node \"%.100s\" has the unknown operator \"%.100s\"", name, op);
    return mera_graph_node(l->graph, index, name, layer, source, (int32_t)input_count, inputs, output, (int32_t)attr_count,
                           attrs, NULL);
}

static mera_status read_graph(loader *l)
{
    const char *name;
    uint32_t count;
    int32_t *indices;
    TRY(read_string(l, &name));
    TRY(mera_graph_create(l->ctx, name, &l->graph));
    TRY(read_count(l, 1, &count));
    for (uint32_t i = 0; i < count; i++) TRY(read_tensor(l));
    TRY(read_indices(l, &indices, &count));
    for (uint32_t i = 0; i < count; i++) TRY(mera_graph_input(l->graph, indices[i]));
    TRY(read_count(l, 1, &count));
    for (uint32_t i = 0; i < count; i++) TRY(read_node(l));
    TRY(read_indices(l, &indices, &count));
    for (uint32_t i = 0; i < count; i++) TRY(mera_graph_output(l->graph, indices[i]));
    if (l->r.at != l->r.end) return fail(l->ctx, MERA_CORRUPT, "graph file: bytes follow its end");
    return mera_graph_finish(l->graph);
}

static mera_status read_header(loader *l)
{
    const uint8_t *begin = read_bytes(&l->r, sizeof magic);
    if (!begin || memcmp(begin, magic, sizeof magic) != 0)
        return fail(l->ctx, MERA_CORRUPT, "graph file: it does not begin as a graph file does");
    const uint32_t version = read_u32(&l->r);
    const uint64_t length = read_u64(&l->r), hash = read_u64(&l->r);
    if (l->r.failed) return truncated(l);
    if (version != VERSION)
        return fail(l->ctx, MERA_CORRUPT, "graph file: its version is %u, this build reads version %d", version, VERSION);
    if (length != (uint64_t)(l->r.end - l->r.at))
        return fail(l->ctx, MERA_CORRUPT, "graph file: %llu bytes should follow its header, %lld do",
                    (unsigned long long)length, (long long)(l->r.end - l->r.at));
    if (hash != fnv1a(l->r.at, (size_t)length))
        return fail(l->ctx, MERA_CORRUPT, "graph file: its checksum does not match, it was altered");
    return MERA_OK;
}

mera_status mera_graph_load(mera_context *ctx, const uint8_t *data, size_t bytes, mera_graph **out)
{
    loader l = {.ctx = ctx, .r = {data, data + bytes, false}};
    arena_init(&l.memory, ctx);
    mera_status status = read_header(&l);
    if (status == MERA_OK) status = read_graph(&l);
    arena_free(&l.memory);
    if (status == MERA_OK) {
        *out = l.graph;
        return MERA_OK;
    }
    mera_graph_destroy(l.graph);
    if (status == MERA_OUT_OF_MEMORY || status == MERA_CORRUPT) return status;
    char why[700]; /* what the builder refused */
    strncpy(why, mera_last_error(ctx), sizeof why - 1);
    why[sizeof why - 1] = '\0';
    return fail(ctx, MERA_CORRUPT, "graph file: %s", why);
}
