/* safetensors.c: u64 length of a JSON header, the header, the data. The header maps each name to dtype, shape and the
 * tensor's bytes [begin, end) in the data. */
#include "safetensors.h"

#include "../bytes.h"
#include "json.h"

static const struct {
    const char *name;
    host_dtype dtype;
} dtypes[] = {
    {"BOOL", MERA_HOST_BOOL},   {"U8", MERA_HOST_UINT8},    {"I8", MERA_HOST_INT8},     {"I16", MERA_HOST_INT16},
    {"I32", MERA_HOST_INT32},   {"I64", MERA_HOST_INT64},   {"F16", MERA_HOST_FLOAT16}, {"BF16", MERA_HOST_BFLOAT16},
    {"F32", MERA_HOST_FLOAT32}, {"F64", MERA_HOST_FLOAT64},
};

static bool find_dtype(const json_value *json, host_dtype *dtype)
{
    if (!json || json->kind != JSON_STRING) return false;
    for (size_t k = 0; k < sizeof dtypes / sizeof *dtypes; k++)
        if (strcmp(dtypes[k].name, json->as.text) == 0) {
            *dtype = dtypes[k].dtype;
            return true;
        }
    return false;
}

static bool read_integer(const json_value *json, int64_t *out)
{
    *out = json->as.integer;
    return json->kind == JSON_INTEGER && *out >= 0;
}

static mera_status read_tensor(mera_context *ctx, arena *memory, const char *what, const json_member *member,
                               const reader *data, stored_tensor *out)
{
    const json_value *shape = json_get(member->value, "shape"), *span = json_get(member->value, "data_offsets");
    int64_t sizes[HOST_MAX_RANK], begin, end;
    host_dtype dtype;
    out->name = member->key;
    if (!find_dtype(json_get(member->value, "dtype"), &dtype)) return MERA_OK;
    if (!shape || shape->kind != JSON_ARRAY || shape->count > HOST_MAX_RANK)
        return fail(ctx, MERA_CORRUPT, "%s: tensor \"%.100s\" has no shape of at most 8 dimensions", what, member->key);
    for (uint32_t d = 0; d < shape->count; d++)
        if (!read_integer(&shape->as.items[d], &sizes[d]))
            return fail(ctx, MERA_CORRUPT, "%s: the shape of tensor \"%.100s\" is malformed", what, member->key);
    if (host_tensor_init(ctx, &out->type, dtype, (int32_t)shape->count, sizes) != MERA_OK)
        return fail(ctx, MERA_CORRUPT, "%s: the shape of tensor \"%.100s\" is malformed", what, member->key);
    if (!span || span->kind != JSON_ARRAY || span->count != 2 || !read_integer(&span->as.items[0], &begin) ||
        !read_integer(&span->as.items[1], &end) || begin > end || end > data->end - data->at ||
        (size_t)(end - begin) != host_bytes(&out->type))
        return fail(ctx, MERA_CORRUPT, "%s: the bytes of tensor \"%.100s\" are not there, or not as many as its shape needs",
                    what, member->key);
    uint8_t *copy = arena_array(memory, (size_t)(end - begin) + 1, 1);
    if (!copy) return out_of_memory(ctx);
    memcpy(copy, data->at + begin, (size_t)(end - begin));
    if (dtype == MERA_HOST_BOOL)
        for (int64_t k = 0; k < end - begin; k++) copy[k] = copy[k] != 0;
    out->data = copy;
    return MERA_OK;
}

mera_status safetensors_read(mera_context *ctx, arena *memory, const char *what, const uint8_t *data, size_t bytes,
                             int32_t *count, stored_tensor **tensors)
{
    reader r = {data, data + bytes, false};
    const uint64_t length = read_u64(&r);
    const uint8_t *header = read_bytes(&r, length);
    if (!header) return fail(ctx, MERA_CORRUPT, "%s: it ends inside of its header", what);
    const json_value *root;
    TRY(json_parse(ctx, memory, what, header, (size_t)length, &root));
    if (root->kind != JSON_OBJECT) return fail(ctx, MERA_CORRUPT, "%s: its header is no object", what);
    *tensors = arena_array(memory, (size_t)root->count + 1, sizeof **tensors);
    if (!*tensors) return out_of_memory(ctx);
    *count = 0;
    uint64_t left = (uint64_t)(r.end - r.at); /* tensors do not overlap: what they copy is bounded by the file */
    for (uint32_t k = 0; k < root->count; k++) {
        if (strcmp(root->as.members[k].key, "__metadata__") == 0) continue;
        stored_tensor *t = &(*tensors)[*count];
        TRY(read_tensor(ctx, memory, what, &root->as.members[k], &r, t));
        if (host_bytes(&t->type) > left) return fail(ctx, MERA_CORRUPT, "%s: its tensors overlap", what);
        left -= host_bytes(&t->type);
        ++*count;
    }
    return MERA_OK;
}
