/* names.c: see names.h. A hash table with open addressing, at most half full. */
#include "names.h"

static size_t slot_of(const names *n, const char *name)
{
    size_t at = (size_t)fnv1a(name, strlen(name)) & (n->table_size - 1);
    while (n->table[at] && strcmp(n->rows.at[n->table[at] - 1].name, name) != 0) at = (at + 1) & (n->table_size - 1);
    return at;
}

static mera_status grow(mera_context *ctx, names *n)
{
    const size_t size = n->table_size ? 2 * n->table_size : 64;
    int32_t *table = ctx_alloc_zeroed(ctx, size * sizeof *table);
    if (!table) return out_of_memory(ctx);
    ctx_free(ctx, n->table);
    n->table = table;
    n->table_size = size;
    for (size_t k = 0; k < n->rows.count; k++) table[slot_of(n, n->rows.at[k].name)] = (int32_t)k + 1;
    return MERA_OK;
}

const named *names_find(const names *n, const char *name)
{
    if (!n->table_size) return NULL;
    const int32_t found = n->table[slot_of(n, name)];
    return found ? &n->rows.at[found - 1] : NULL;
}

mera_status names_add(mera_context *ctx, names *n, named row)
{
    if (names_find(n, row.name))
        return fail(ctx, MERA_CORRUPT, "deployment.json is malformed: two things are named '%.100s'", row.name);
    if (2 * (n->rows.count + 1) > n->table_size) TRY(grow(ctx, n));
    if (!vec_push(ctx, &n->rows, row)) return out_of_memory(ctx);
    n->table[slot_of(n, row.name)] = (int32_t)n->rows.count;
    return MERA_OK;
}

void names_free(mera_context *ctx, names *n)
{
    vec_free(ctx, &n->rows);
    ctx_free(ctx, n->table);
    n->table = NULL;
    n->table_size = 0;
}
