/* memory.c: where the values of a request lie in its memory: inputs and outputs at places of their own, everything else in
 * places that are used again as soon as nothing reads it any more. See deployment.h. */
#include "../placement.h"
#include "deployment.h"

enum { MOST_BYTES_SHIFT = 46 }; /* more is no memory that any machine has; keeps sums from overflowing */

typedef struct layout {
    dna_deployment *d;
    placement shared;
    int64_t base; /* of the shared part */
} layout;

static mera_status check_sizes(dna_deployment *d)
{
    int64_t total = 0, most = (int64_t)1 << MOST_BYTES_SHIFT;
    for (int32_t v = 0; v < d->value_count; v++) {
        const size_t bytes = value_bytes(d, v);
        if (bytes > (size_t)(most - total))
            return fail(d->ctx, MERA_OUT_OF_MEMORY, "the values of one request need more than 2^%d bytes", MOST_BYTES_SHIFT);
        total += (int64_t)bytes;
    }
    return MERA_OK;
}

/* An output whose bytes nothing else holds for good is computed where it is read. */
static int64_t place_borders(dna_deployment *d)
{
    int64_t at = 0;
    for (int32_t k = 0; k < d->input_count; k++) {
        value *v = &d->values[d->inputs[d->tensor_inputs[k]].value];
        v->offset = at;
        at += placement_bytes((int64_t)value_bytes(d, v->root));
    }
    for (int32_t k = 0; k < d->output_count; k++) {
        model_output *out = &d->outputs[k];
        value *v = &d->values[d->values[out->value].root];
        out->offset = at;
        if (v->place == PLACE_SHARED) {
            v->place = PLACE_OUTPUT;
            v->offset = at;
        }
        at += placement_bytes((int64_t)value_bytes(d, out->value));
    }
    return at;
}

static int64_t take(layout *l, int64_t bytes) { return l->base + placement_take(&l->shared, bytes); }

static mera_status give(layout *l, int64_t at, int64_t bytes)
{
    return placement_give(l->d->ctx, &l->shared, at - l->base, bytes) ? MERA_OK : out_of_memory(l->d->ctx);
}

static void take_value(layout *l, int32_t number)
{
    value *v = &l->d->values[number];
    if (v->root == number && v->place == PLACE_SHARED) v->offset = take(l, (int64_t)value_bytes(l->d, number));
}

static mera_status give_if_last(layout *l, int32_t now, int32_t number)
{
    const int32_t root = l->d->values[number].root;
    value *v = &l->d->values[root];
    if (v->place != PLACE_SHARED || v->last_use != now) return MERA_OK;
    v->last_use = -2; /* given back */
    return give(l, v->offset, (int64_t)value_bytes(l->d, root));
}

/* A result that nothing ever reads. */
static mera_status give_if_unread(layout *l, int32_t number)
{
    value *v = &l->d->values[number];
    if (v->root != number || v->place != PLACE_SHARED || v->last_use != -1) return MERA_OK;
    return give(l, v->offset, (int64_t)value_bytes(l->d, number));
}

static void need_scratch(dna_deployment *d, size_t bytes)
{
    if ((int64_t)bytes > d->scratch_bytes) d->scratch_bytes = (int64_t)bytes;
}

/* The DNA's tensors of a region live during its step alone. */
static mera_status place_region(layout *l, int32_t now, step *st)
{
    dna_deployment *d = l->d;
    const region *r = &d->regions[st->region];
    st->store_at = arena_array(&d->memory, (size_t)r->input_count + 1, sizeof *st->store_at);
    st->result_at = arena_array(&d->memory, (size_t)r->result_count + 1, sizeof *st->result_at);
    if (!st->store_at || !st->result_at) return out_of_memory(d->ctx);
    for (int32_t k = 0; k < r->input_count; k++) {
        need_scratch(d, port_scratch_bytes(&r->inputs[k]));
        st->store_at[k] = take(l, r->inputs[k].elements);
    }
    for (int32_t k = 0; k < r->result_count; k++) st->result_at[k] = take(l, r->result_bytes[k]);
    for (int32_t k = 0; k < r->output_count; k++) {
        need_scratch(d, port_scratch_bytes(&r->outputs[k]));
        take_value(l, st->first_value + k);
    }
    for (int32_t k = 0; k < r->input_count; k++) {
        TRY(give(l, st->store_at[k], r->inputs[k].elements));
        TRY(give_if_last(l, now, st->inputs[k]));
    }
    for (int32_t k = 0; k < r->result_count; k++) TRY(give(l, st->result_at[k], r->result_bytes[k]));
    for (int32_t k = 0; k < r->output_count; k++) TRY(give_if_unread(l, st->first_value + k));
    return MERA_OK;
}

static mera_status place_host_step(layout *l, int32_t now, step *st)
{
    need_scratch(l->d, st->host.scratch_bytes);
    for (int32_t k = 0; k < st->host.result_count; k++) take_value(l, st->first_value + k);
    for (int32_t k = 0; k < st->host.read_count; k++) TRY(give_if_last(l, now, st->host.reads[k]));
    for (int32_t k = 0; k < st->host.result_count; k++) TRY(give_if_unread(l, st->first_value + k));
    return MERA_OK;
}

mera_status memory_plan(dna_deployment *d)
{
    TRY(check_sizes(d));
    layout l = {.d = d, .base = place_borders(d)};
    mera_status status = MERA_OK;
    for (int32_t now = 0; now < d->step_count && status == MERA_OK; now++) {
        step *st = &d->steps[now];
        status = st->region >= 0 ? place_region(&l, now, st) : place_host_step(&l, now, st);
    }
    d->scratch_at = l.base + l.shared.end;
    d->request_bytes = d->scratch_at + placement_bytes(d->scratch_bytes);
    vec_free(d->ctx, &l.shared.holes);
    return status;
}
