/* graph_text.c: the text form of the DNA graph.
 *
 *   graph "digits"
 *   tensor %0 "x" int8[1, 28, 28, 1] scale 0.0039 zero -128
 *   tensor %1 "w" int8[8, 3, 3, 1] scale [0.1, 0.2, ...] zero 0 = base64 "..."
 *   tensor %2 "b" int32[1, 1, 1, 8] = hex "00000000..."
 *   tensor %3 "y" int8[1, 14, 14, 8] scale 0.05 zero -128
 *   input %0
 *   %3 "conv1" = conv2d(%0, %1, %2) {stride_h=2, stride_w=2, pad_top=1, pad_left=1} layer "conv1" source "net.py:12"
 *   output %3
 *
 * Data may also be given as splat(value), random(seed) (int8: -127..127, int32: 16 bits) or list(v, v, ...). Attributes that
 * have their defaults are left out. # begins a comment. */
#include <inttypes.h>

#include "graph.h"
#include "lexer.h"

/* ---- printing ---- */

static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void print_data(text *t, const uint8_t *data, size_t bytes)
{
    enum { HEX_LIMIT = 64 };
    if (bytes <= HEX_LIMIT) {
        text_add(t, " = hex \"");
        for (size_t i = 0; i < bytes; i++) text_add(t, "%02x", data[i]);
    } else {
        text_add(t, " = base64 \"");
        for (size_t i = 0; i < bytes; i += 3) {
            const size_t have = bytes - i < 3 ? bytes - i : 3;
            uint32_t three = 0;
            for (size_t j = 0; j < 3; j++) three = three << 8 | (j < have ? data[i + j] : 0u);
            char four[4];
            for (size_t j = 0; j < 4; j++) four[j] = j <= have ? base64_digits[three >> (18 - 6 * j) & 63] : '=';
            text_bytes(t, four, 4);
        }
    }
    text_add(t, "\"");
}

static void print_tensor(text *t, const mera_graph *graph, size_t index, bool with_data)
{
    const graph_tensor *x = &graph->tensors.at[index];
    text_add(t, "tensor %%%zu ", index);
    text_string(t, x->name);
    text_add(t, " %s[%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "]", x->dtype == MERA_INT8 ? "int8" : "int32",
             x->shape[0], x->shape[1], x->shape[2], x->shape[3]);
    if (x->scale_count) {
        const bool many = x->scale_count > 1;
        bool same_zero = true;
        text_add(t, many ? " scale [" : " scale ");
        for (int64_t i = 0; i < x->scale_count; i++) {
            if (i) text_add(t, ", ");
            text_float(t, x->scale[i]);
            same_zero = same_zero && x->zero_point[i] == x->zero_point[0];
        }
        text_add(t, many ? "] zero " : " zero ");
        if (same_zero) {
            text_add(t, "%d", x->zero_point[0]);
        } else {
            for (int64_t i = 0; i < x->scale_count; i++) text_add(t, "%s%d", i ? ", " : "[", x->zero_point[i]);
            text_add(t, "]");
        }
    }
    if (x->data && with_data) print_data(t, x->data, (size_t)x->bytes);
    if (x->data && !with_data)
        text_add(t, " constant of %" PRId64 " bytes, fnv1a %016" PRIx64, x->bytes, fnv1a(x->data, (size_t)x->bytes));
    text_add(t, "\n");
}

static void print_node(text *t, const graph_node *n)
{
    text_add(t, "%%%d ", n->output);
    text_string(t, n->name);
    text_add(t, " = %s(", op_name(n->op));
    for (int32_t i = 0; i < n->input_count; i++) text_add(t, "%s%%%d", i ? ", " : "", n->inputs[i]);
    text_add(t, ")");
    int shown = 0;
    for (int i = 0; i < op_attr_count(n->op); i++)
        if (n->attrs[i] != mera_op_attr_default((int32_t)n->op, i))
            text_add(t, "%s%s=%" PRId64, shown++ ? ", " : " {", op_attr_name(n->op, i), n->attrs[i]);
    if (shown) text_add(t, "}");
    if (n->layer[0]) {
        text_add(t, " layer ");
        text_string(t, n->layer);
    }
    if (n->source[0]) {
        text_add(t, " source ");
        text_string(t, n->source);
    }
    text_add(t, "\n");
}

mera_status mera_graph_print(mera_graph *graph, int32_t with_data, char **out)
{
    text t;
    text_init(&t, graph->object.ctx);
    text_add(&t, "graph ");
    text_string(&t, graph->name);
    text_add(&t, "\n");
    for (size_t i = 0; i < graph->tensors.count; i++) print_tensor(&t, graph, i, with_data != 0);
    for (size_t i = 0; i < graph->inputs.count; i++) text_add(&t, "input %%%d\n", graph->inputs.at[i]);
    for (size_t i = 0; i < graph->nodes.count; i++) print_node(&t, &graph->nodes.at[i]);
    for (size_t i = 0; i < graph->outputs.count; i++) text_add(&t, "output %%%d\n", graph->outputs.at[i]);
    return text_finish(&t, out);
}

/* ---- parsing ---- */

typedef struct parser {
    lexer l;
    arena memory; /* of what is on its way to the builder */
    mera_graph *graph;
} parser;

static mera_status parse_index(parser *p, int32_t *tensor)
{
    int64_t value;
    TRY(lexer_expect(&p->l, '%'));
    TRY(lexer_int(&p->l, 0, INT32_MAX, &value));
    *tensor = (int32_t)value;
    return MERA_OK;
}

/* Values of a constant, little endian, as the file and the accelerator have them. */
static void store_value(uint8_t *data, mera_dtype dtype, int64_t i, int64_t value)
{
    if (dtype == MERA_INT8) {
        data[i] = (uint8_t)value;
    } else {
        const int32_t word = (int32_t)value;
        memcpy(data + 4 * i, &word, sizeof word);
    }
}

static int64_t random_value(uint64_t *state, mera_dtype dtype) /* splitmix64 */
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return dtype == MERA_INT8 ? (int64_t)(x % 255) - 127 : (int64_t)(x % 65536) - 32768;
}

static int digit_of(const char *digits, char c)
{
    const char *found = c ? strchr(digits, c) : NULL;
    return found ? (int)(found - digits) : -1;
}

static mera_status parse_hex(parser *p, uint8_t *data, int64_t bytes)
{
    const char *at;
    size_t length;
    TRY(lexer_raw_string(&p->l, &at, &length));
    if (length != 2 * (size_t)bytes)
        return lexer_fail(&p->l, "%" PRId64 " hex digits are expected, got %zu", 2 * bytes, length);
    for (int64_t i = 0; i < bytes; i++) {
        const int high = digit_of("0123456789abcdef", at[2 * i]), low = digit_of("0123456789abcdef", at[2 * i + 1]);
        if (high < 0 || low < 0) return lexer_fail(&p->l, "the string before must be hex digits, 0 to 9 and a to f");
        data[i] = (uint8_t)(high << 4 | low);
    }
    return MERA_OK;
}

static mera_status parse_base64(parser *p, uint8_t *data, int64_t bytes)
{
    const char *at;
    size_t length;
    TRY(lexer_raw_string(&p->l, &at, &length));
    if (length != (size_t)ceil_div(bytes, 3) * 4)
        return lexer_fail(&p->l, "%" PRId64 " base64 digits are expected, got %zu", ceil_div(bytes, 3) * 4, length);
    for (int64_t i = 0; i < bytes; i += 3, at += 4) {
        uint32_t three = 0;
        const int64_t have = min_i64(3, bytes - i);
        for (int64_t j = 0; j < 4; j++) {
            const int digit = j <= have ? digit_of(base64_digits, at[j]) : at[j] == '=' ? 0 : -1;
            if (digit < 0) return lexer_fail(&p->l, "the string before must be base64, with = at its end alone");
            three = three << 6 | (uint32_t)digit;
        }
        if (three & ((1u << (8 * (3 - have))) - 1))
            return lexer_fail(&p->l, "the string before has bits beyond its last byte");
        for (int64_t j = 0; j < have; j++) data[i + j] = (uint8_t)(three >> (16 - 8 * j));
    }
    return MERA_OK;
}

/* What follows '=': the data of a constant of t's shape. */
static mera_status parse_data(parser *p, const graph_tensor *t, uint8_t *data)
{
    lexer *l = &p->l;
    const int64_t low = t->dtype == MERA_INT8 ? INT8_MIN : INT32_MIN, high = t->dtype == MERA_INT8 ? INT8_MAX : INT32_MAX;
    int64_t value;
    if (lexer_accept_word(l, "hex")) return parse_hex(p, data, t->bytes);
    if (lexer_accept_word(l, "base64")) return parse_base64(p, data, t->bytes);
    if (lexer_accept_word(l, "splat")) {
        TRY(lexer_expect(l, '('));
        TRY(lexer_int(l, low, high, &value));
        for (int64_t i = 0; i < t->elements; i++) store_value(data, t->dtype, i, value);
        return lexer_expect(l, ')');
    }
    if (lexer_accept_word(l, "random")) {
        TRY(lexer_expect(l, '('));
        TRY(lexer_int(l, 0, INT64_MAX, &value));
        uint64_t state = (uint64_t)value;
        for (int64_t i = 0; i < t->elements; i++) store_value(data, t->dtype, i, random_value(&state, t->dtype));
        return lexer_expect(l, ')');
    }
    if (lexer_accept_word(l, "list")) {
        for (int64_t i = 0; i < t->elements; i++) {
            TRY(lexer_expect(l, i ? ',' : '('));
            TRY(lexer_int(l, low, high, &value));
            store_value(data, t->dtype, i, value);
        }
        return lexer_expect(l, ')');
    }
    return lexer_fail(l, "hex, base64, splat, random or list is expected after =");
}

static mera_status parse_scales(parser *p, const graph_tensor *t, int64_t *count, float **scale, int32_t **zero)
{
    lexer *l = &p->l;
    const bool many = lexer_accept(l, '[');
    *count = many ? t->shape[0] : 1;
    *scale = arena_array(&p->memory, (size_t)*count, sizeof **scale);
    *zero = arena_array(&p->memory, (size_t)*count, sizeof **zero);
    if (!*scale || !*zero) return out_of_memory(l->ctx);
    for (int64_t i = 0; i < *count; i++) {
        if (i) TRY(lexer_expect(l, ','));
        TRY(lexer_float(l, &(*scale)[i]));
    }
    if (many) TRY(lexer_expect(l, ']'));
    if (!lexer_accept_word(l, "zero")) return MERA_OK; /* they are 0 */
    const bool listed = many && lexer_accept(l, '[');
    int64_t value = 0;
    for (int64_t i = 0; i < *count; i++) {
        if (i && listed) TRY(lexer_expect(l, ','));
        if (i == 0 || listed) TRY(lexer_int(l, -128, 127, &value));
        (*zero)[i] = (int32_t)value;
    }
    return listed ? lexer_expect(l, ']') : MERA_OK;
}

static mera_status parse_tensor(parser *p)
{
    lexer *l = &p->l;
    int32_t index, tensor;
    const char *name;
    int64_t shape[4];
    TRY(parse_index(p, &index));
    if ((size_t)index != p->graph->tensors.count)
        return lexer_fail(l, "tensors are numbered in order: %%%zu is expected, got %%%d", p->graph->tensors.count, index);
    TRY(lexer_string(l, &p->memory, &name));
    mera_dtype dtype = MERA_INT8;
    if (lexer_accept_word(l, "int32"))
        dtype = MERA_INT32;
    else if (!lexer_accept_word(l, "int8"))
        return lexer_fail(l, "int8 or int32 is expected");
    for (int d = 0; d < 4; d++) {
        TRY(lexer_expect(l, d ? ',' : '['));
        TRY(lexer_int(l, 1, INT32_MAX, &shape[d]));
    }
    TRY(lexer_expect(l, ']'));
    TRY(lexer_blame(l, mera_graph_tensor(p->graph, name, dtype, shape, &tensor)));
    const graph_tensor declared = p->graph->tensors.at[tensor];
    int64_t count = 0;
    float *scale = NULL;
    int32_t *zero = NULL;
    if (lexer_accept_word(l, "scale")) TRY(parse_scales(p, &declared, &count, &scale, &zero));
    if (lexer_accept(l, '=')) {
        arena memory; /* freed at once: constants are large */
        arena_init(&memory, l->ctx);
        uint8_t *data = arena_array(&memory, (size_t)declared.bytes, 1);
        mera_status status = data ? parse_data(p, &declared, data) : out_of_memory(l->ctx);
        if (status == MERA_OK) {
            p->graph->tensors.count--; /* made again, with its data */
            status =
                lexer_blame(l, mera_graph_constant(p->graph, name, dtype, shape, data, (size_t)declared.bytes, &tensor));
        }
        arena_free(&memory);
        TRY(status);
    }
    return count ? lexer_blame(l, mera_graph_quantize(p->graph, tensor, count, scale, zero)) : MERA_OK;
}

static mera_status parse_attrs(parser *p, int op, int64_t *attrs)
{
    lexer *l = &p->l;
    do {
        char name[64];
        int attr = 0;
        TRY(lexer_word(l, name, sizeof name));
        while (attr < op_attr_count((dna_op)op) && strcmp(op_attr_name((dna_op)op, attr), name) != 0) attr++;
        if (attr == op_attr_count((dna_op)op)) {
            l->at -= strlen(name); /* the column of the word */
            return lexer_fail(l, "%s has no attribute \"%s\"", op_name((dna_op)op), name);
        }
        TRY(lexer_expect(l, '='));
        TRY(lexer_int(l, INT64_MIN, INT64_MAX, &attrs[attr]));
    } while (lexer_accept(l, ','));
    return lexer_expect(l, '}');
}

static mera_status parse_node(parser *p)
{
    lexer *l = &p->l;
    int32_t output, inputs[DNA_MAX_INPUTS], input_count = 0;
    const char *name, *layer = "", *source = "";
    char op_word[64];
    TRY(parse_index(p, &output));
    TRY(lexer_string(l, &p->memory, &name));
    TRY(lexer_expect(l, '='));
    TRY(lexer_word(l, op_word, sizeof op_word));
    const int op = op_by_name(op_word);
    if (op < 0) {
        l->at -= strlen(op_word); /* the column of the word */
        return lexer_fail(l, "there is no operator \"%s\"", op_word);
    }
    TRY(lexer_expect(l, '('));
    do {
        if (input_count == DNA_MAX_INPUTS) return lexer_fail(l, "at most %d inputs are expected", DNA_MAX_INPUTS);
        TRY(parse_index(p, &inputs[input_count++]));
    } while (lexer_accept(l, ','));
    TRY(lexer_expect(l, ')'));
    int64_t attrs[DNA_MAX_ATTRS];
    for (int i = 0; i < op_attr_count((dna_op)op); i++) attrs[i] = mera_op_attr_default(op, i);
    if (lexer_accept(l, '{')) TRY(parse_attrs(p, op, attrs));
    if (lexer_accept_word(l, "layer")) TRY(lexer_string(l, &p->memory, &layer));
    if (lexer_accept_word(l, "source")) TRY(lexer_string(l, &p->memory, &source));
    return lexer_blame(l, mera_graph_node(p->graph, op, name, layer, source, input_count, inputs, output,
                                          op_attr_count((dna_op)op), attrs, NULL));
}

static mera_status parse_graph(parser *p)
{
    lexer *l = &p->l;
    const char *name;
    if (!lexer_accept_word(l, "graph")) return lexer_fail(l, "the text must begin with: graph \"name\"");
    TRY(lexer_string(l, &p->memory, &name));
    TRY(mera_graph_create(l->ctx, name, &p->graph));
    while (!lexer_done(l)) {
        int32_t tensor;
        if (lexer_accept_word(l, "tensor")) {
            TRY(parse_tensor(p));
        } else if (lexer_accept_word(l, "input")) {
            TRY(parse_index(p, &tensor));
            TRY(lexer_blame(l, mera_graph_input(p->graph, tensor)));
        } else if (lexer_accept_word(l, "output")) {
            TRY(parse_index(p, &tensor));
            TRY(lexer_blame(l, mera_graph_output(p->graph, tensor)));
        } else if (*l->at == '%') {
            TRY(parse_node(p));
        } else {
            return lexer_fail(l, "tensor, input, output or %%number is expected");
        }
    }
    return mera_graph_finish(p->graph);
}

mera_status mera_graph_parse(mera_context *ctx, const char *text, size_t bytes, mera_graph **out)
{
    parser p = {.graph = NULL};
    lexer_init(&p.l, ctx, "graph", text, bytes);
    arena_init(&p.memory, ctx);
    const mera_status status = parse_graph(&p);
    arena_free(&p.memory);
    if (status == MERA_OK)
        *out = p.graph;
    else
        mera_graph_destroy(p.graph);
    return status;
}
