/* steps.c: the host's steps: every tensor that there is gets a number, every step is planned. See deployment.h. */
#include <math.h>
#include <stdio.h>

#include "deployment.h"
#include "names.h"

typedef struct state {
    dna_deployment *d;
    mera_context *ctx;
    names names;
    VEC(host_tensor) types; /* a value */
    VEC(value) values;
    VEC(step) steps;
    int32_t now;         /* the number of the step that is read */
    const char *foreign; /* set if an argument is known to PyTorch alone: its name */
} state;

static mera_status malformed(state *s, const char *step, const char *what)
{
    return fail(s->ctx, MERA_CORRUPT, "deployment.json is malformed: step '%.100s' %s", step, what);
}

/* ---- values ---- */

static mera_status add_value(state *s, const host_tensor *type, value v, int32_t *number)
{
    *number = (int32_t)s->values.count;
    if (v.root < 0) v.root = *number;
    v.last_use = -1;
    if (!vec_push(s->ctx, &s->types, *type) || !vec_push(s->ctx, &s->values, v)) return out_of_memory(s->ctx);
    return MERA_OK;
}

static void use_value(state *s, int32_t number) { s->values.at[s->values.at[number].root].last_use = s->now; }

static mera_status add_inputs(state *s)
{
    for (int32_t k = 0; k < s->d->flat_input_count; k++) {
        model_input *in = &s->d->inputs[k];
        if (in->is_tensor) TRY(add_value(s, &in->type, (value){.root = -1, .place = PLACE_INPUT}, &in->value));
        const named row = {in->node, in->is_tensor ? MEANS_TENSOR : MEANS_CONSTANT, in->is_tensor ? in->value : k, 1};
        TRY(names_add(s->ctx, &s->names, row));
    }
    return MERA_OK;
}

static mera_status add_constants(state *s, int32_t count, const stored_tensor *constants)
{
    for (int32_t k = 0; k < count; k++) {
        const stored_tensor *c = &constants[k];
        named row = {c->name, c->data ? MEANS_TENSOR : MEANS_UNKNOWN, 0, 1};
        if (c->data) TRY(add_value(s, &c->type, (value){.root = -1, .place = PLACE_CONSTANT, .data = c->data}, &row.first));
        TRY(names_add(s->ctx, &s->names, row));
    }
    return MERA_OK;
}

/* ---- arguments: see encode() in mera_torch/backend/host.py ---- */

static mera_status read_arg(state *s, const char *step, const json_value *json, host_arg *out);

static mera_status read_list(state *s, const char *step, const json_value *json, host_arg *out)
{
    host_arg *items = arena_array(&s->d->memory, (size_t)json->count + 1, sizeof *items);
    if (!items) return out_of_memory(s->ctx);
    for (uint32_t k = 0; k < json->count; k++) TRY(read_arg(s, step, &json->as.items[k], &items[k]));
    *out = (host_arg){.kind = MERA_HOST_LIST, .integer = json->count, .items = items};
    return MERA_OK;
}

static mera_status read_ref(state *s, const char *step, const char *name, host_arg *out)
{
    const named *found = names_find(&s->names, name);
    if (!found) return malformed(s, step, "reads a value that no step before it gives");
    if (found->meaning == MEANS_CONSTANT) {
        *out = s->d->inputs[found->first].constant;
    } else if (found->meaning == MEANS_TENSOR) {
        *out = (host_arg){.kind = MERA_HOST_TENSOR, .integer = found->first};
    } else if (found->meaning == MEANS_MANY) {
        host_arg *items = arena_array(&s->d->memory, (size_t)found->count + 1, sizeof *items);
        if (!items) return out_of_memory(s->ctx);
        for (int32_t k = 0; k < found->count; k++)
            items[k] = (host_arg){.kind = MERA_HOST_TENSOR, .integer = found->first + k};
        *out = (host_arg){.kind = MERA_HOST_LIST, .integer = found->count, .items = items};
    } else {
        s->foreign = name;
        *out = (host_arg){.kind = MERA_HOST_NONE};
    }
    return MERA_OK;
}

static mera_status read_special(state *s, const char *step, const json_value *json, host_arg *out)
{
    const char *kind = json->count == 1 ? json->as.members[0].key : "";
    const json_value *content = json->count == 1 ? json->as.members[0].value : NULL;
    const char *text = content && content->kind == JSON_STRING ? content->as.text : NULL;
    if (!text) return malformed(s, step, "has an argument of an unknown kind");
    if (strcmp(kind, "ref") == 0) return read_ref(s, step, text, out);
    *out = (host_arg){.text = text};
    if (strcmp(kind, "torch") == 0)
        out->kind = MERA_HOST_NAME;
    else if (strcmp(kind, "device") == 0)
        out->kind = MERA_HOST_DEVICE;
    else if (strcmp(kind, "float") == 0 && (!strcmp(text, "inf") || !strcmp(text, "-inf") || !strcmp(text, "nan")))
        *out = (host_arg){.kind = MERA_HOST_REAL, .real = text[0] == 'n' ? NAN : text[0] == '-' ? -INFINITY : INFINITY};
    else
        return malformed(s, step, "has an argument of an unknown kind");
    return MERA_OK;
}

static mera_status read_arg(state *s, const char *step, const json_value *json, host_arg *out)
{
    switch (json->kind) {
    case JSON_NULL:
        *out = (host_arg){.kind = MERA_HOST_NONE};
        return MERA_OK;
    case JSON_BOOL:
        *out = (host_arg){.kind = MERA_HOST_FLAG, .integer = json->as.boolean};
        return MERA_OK;
    case JSON_INTEGER:
        *out = (host_arg){.kind = MERA_HOST_INT, .integer = json->as.integer};
        return MERA_OK;
    case JSON_REAL:
        *out = (host_arg){.kind = MERA_HOST_REAL, .real = json->as.real};
        return MERA_OK;
    case JSON_STRING:
        *out = (host_arg){.kind = MERA_HOST_STRING, .text = json->as.text};
        return MERA_OK;
    case JSON_ARRAY:
        return read_list(s, step, json, out);
    default:
        return read_special(s, step, json, out);
    }
}

/* ---- steps that need PyTorch ---- */

/* The first one's sentence is kept; what the step gives is known to PyTorch alone from here on. */
static mera_status leave_to_torch(state *s, const json_value *json, const char *name, const char *reason)
{
    const json_value *source = json_get(json, "source");
    const char *where = source && source->kind == JSON_STRING && source->count > 0 ? source->as.text : NULL;
    if (!s->d->needs_torch) {
        text t;
        char *sentence;
        text_init(&t, s->ctx);
        text_add(&t, "%s%s%s: the runtime cannot run this step without PyTorch", reason, where ? ", from " : "",
                 where ? where : "");
        TRY(text_finish(&t, &sentence));
        s->d->needs_torch = arena_string(&s->d->memory, sentence);
        ctx_free(s->ctx, sentence);
        if (!s->d->needs_torch) return out_of_memory(s->ctx);
    }
    return names_add(s->ctx, &s->names, (named){name, MEANS_UNKNOWN, 0, 1});
}

static mera_status leave_behind(state *s, const json_value *json, const char *name)
{
    char reason[512];
    snprintf(reason, sizeof reason, "step '%.100s': its argument '%.100s' is a tensor of a dtype that PyTorch alone knows",
             name, s->foreign);
    return leave_to_torch(s, json, name, reason);
}

/* ---- host steps ---- */

static mera_status read_call(state *s, const json_value *json, host_call *call)
{
    const json_value *target = json_get(json, "target"), *args = json_get(json, "args"), *kwargs = json_get(json, "kwargs");
    if (!target || target->kind != JSON_STRING) return malformed(s, call->name, "has no target");
    if (!args || args->kind != JSON_ARRAY || !kwargs || kwargs->kind != JSON_OBJECT)
        return malformed(s, call->name, "has no arguments");
    call->target = target->as.text;
    host_arg all = {0};
    TRY(read_list(s, call->name, args, &all));
    call->arg_count = (int32_t)args->count;
    call->args = all.items;
    const char **names = arena_array(&s->d->memory, (size_t)kwargs->count + 1, sizeof *names);
    host_arg *values = arena_array(&s->d->memory, (size_t)kwargs->count + 1, sizeof *values);
    if (!names || !values) return out_of_memory(s->ctx);
    for (uint32_t k = 0; k < kwargs->count; k++) {
        names[k] = kwargs->as.members[k].key;
        TRY(read_arg(s, call->name, kwargs->as.members[k].value, &values[k]));
    }
    call->kwarg_count = (int32_t)kwargs->count;
    call->kwarg_names = names;
    call->kwargs = values;
    return MERA_OK;
}

static mera_status add_results(state *s, step *st, const char *name)
{
    const host_step *h = &st->host;
    st->first_value = (int32_t)s->values.count;
    for (int32_t k = 0; k < h->read_count; k++) use_value(s, h->reads[k]);
    for (int32_t k = 0; k < h->result_count; k++) {
        int32_t number;
        const int32_t root = h->alias[k] >= 0 ? s->values.at[h->alias[k]].root : -1;
        if (root >= 0 && host_bytes(&s->types.at[root]) != host_bytes(&h->results[k]))
            return fail(s->ctx, MERA_INTERNAL, "step '%.100s': an alias of another size", name);
        TRY(add_value(s, &h->results[k], (value){.root = root, .place = PLACE_SHARED}, &number));
    }
    const bool many = h->many || h->result_count != 1;
    return names_add(s->ctx, &s->names, (named){name, many ? MEANS_MANY : MEANS_TENSOR, st->first_value, h->result_count});
}

static mera_status read_host_step(state *s, const json_value *json, const char *name)
{
    step st = {.region = -1};
    host_call call = {.name = name};
    s->foreign = NULL;
    s->d->host_step_count++;
    TRY(read_call(s, json, &call));
    if (s->foreign) return leave_behind(s, json, name);
    const mera_status status = host_plan(s->ctx, &s->d->memory, &call, (int32_t)s->types.count, s->types.at, &st.host);
    if (status == MERA_UNSUPPORTED || status == MERA_INVALID_ARGUMENT) {
        char reason[1024];
        snprintf(reason, sizeof reason, "%s", mera_last_error(s->ctx));
        return leave_to_torch(s, json, name, reason);
    }
    TRY(status);
    TRY(add_results(s, &st, name));
    return vec_push(s->ctx, &s->steps, st) ? MERA_OK : out_of_memory(s->ctx);
}

/* ---- regions ---- */

static bool same_type(const host_tensor *a, const host_tensor *b)
{
    return a->dtype == b->dtype && a->rank == b->rank && memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0;
}

static mera_status read_region_step(state *s, const json_value *json, const char *name)
{
    const json_value *index = json_get(json, "region");
    if (index->kind != JSON_INTEGER || index->as.integer < 0 || index->as.integer >= s->d->region_count)
        return malformed(s, name, "runs a region that does not exist");
    step st = {.region = (int32_t)index->as.integer};
    const region *r = &s->d->regions[st.region];
    int32_t *inputs = arena_array(&s->d->memory, (size_t)r->input_count + 1, sizeof *inputs);
    if (!inputs) return out_of_memory(s->ctx);
    bool known = true;
    for (int32_t k = 0; k < r->input_count; k++) {
        const named *found = names_find(&s->names, r->inputs[k].value);
        known = known && !(found && found->meaning == MEANS_UNKNOWN);
        if (!known) continue;
        if (!found || found->meaning != MEANS_TENSOR || !same_type(&s->types.at[found->first], &r->inputs[k].type))
            return malformed(s, name, "runs a region whose input is not there, or of another shape or dtype");
        inputs[k] = found->first;
        use_value(s, inputs[k]);
    }
    st.inputs = inputs;
    st.first_value = (int32_t)s->values.count;
    for (int32_t k = 0; k < r->output_count; k++) {
        named row = {r->outputs[k].value, known ? MEANS_TENSOR : MEANS_UNKNOWN, 0, 1};
        if (known) TRY(add_value(s, &r->outputs[k].type, (value){.root = -1, .place = PLACE_SHARED}, &row.first));
        TRY(names_add(s->ctx, &s->names, row));
    }
    if (!known) return MERA_OK;
    return vec_push(s->ctx, &s->steps, st) ? MERA_OK : out_of_memory(s->ctx);
}

/* ---- outputs ---- */

/* Its row's; version 1 has no rows. NULL when out of memory. */
static const char *output_name(dna_deployment *d, const json_value *rows, uint32_t flat)
{
    const bool has_row = rows && rows->kind == JSON_ARRAY && flat < rows->count;
    const json_value *name = has_row ? json_get(&rows->as.items[flat], "name") : NULL;
    char made[32];
    snprintf(made, sizeof made, "output_%u", flat);
    return name && name->kind == JSON_STRING ? name->as.text : arena_string(&d->memory, made);
}

static mera_status read_outputs(state *s, const json_value *json, const json_value *rows)
{
    dna_deployment *d = s->d;
    if (!json || json->kind != JSON_ARRAY || json->count > MAX_STEPS) return malformed(s, "outputs", "are missing");
    d->outputs = arena_array(&d->memory, (size_t)json->count + 1, sizeof *d->outputs);
    if (!d->outputs) return out_of_memory(s->ctx);
    s->now = (int32_t)s->steps.count; /* outputs live to the end */
    for (uint32_t k = 0; k < json->count; k++) {
        const json_value *ref = json_get(&json->as.items[k], "ref");
        if (!ref) continue; /* a constant */
        const named *found = ref->kind == JSON_STRING ? names_find(&s->names, ref->as.text) : NULL;
        if (!found || found->meaning == MEANS_MANY) return malformed(s, "outputs", "name a tensor that is not there");
        if (found->meaning == MEANS_CONSTANT) continue;
        model_output *out = &d->outputs[d->output_count];
        out->name = output_name(d, rows, k);
        if (!out->name) return out_of_memory(s->ctx);
        out->value = found->meaning == MEANS_TENSOR ? found->first : -1;
        if (out->value >= 0) use_value(s, out->value);
        d->output_count++;
    }
    return MERA_OK;
}

/* ---- all ---- */

static mera_status read_all(state *s, const json_value *json, int32_t constant_count, const stored_tensor *constants)
{
    const json_value *host = json_get(json, "host"), *rows = json_get(host, "steps");
    if (!rows || rows->kind != JSON_ARRAY || rows->count > MAX_STEPS) return malformed(s, "list", "is missing or too long");
    TRY(add_constants(s, constant_count, constants));
    TRY(add_inputs(s));
    for (uint32_t k = 0; k < rows->count; k++) {
        const json_value *row = &rows->as.items[k], *name = json_get(row, "name");
        s->now = (int32_t)s->steps.count;
        if (!name || name->kind != JSON_STRING) return malformed(s, "?", "has no name");
        TRY(json_get(row, "region") ? read_region_step(s, row, name->as.text) : read_host_step(s, row, name->as.text));
    }
    return read_outputs(s, json_get(host, "outputs"), json_get(json, "outputs"));
}

/* What was collected, to the deployment's arena. */
static mera_status keep(state *s)
{
    dna_deployment *d = s->d;
    d->value_count = (int32_t)s->values.count;
    d->step_count = (int32_t)s->steps.count;
    d->types = arena_array(&d->memory, s->types.count + 1, sizeof *d->types);
    d->values = arena_array(&d->memory, s->values.count + 1, sizeof *d->values);
    d->steps = arena_array(&d->memory, s->steps.count + 1, sizeof *d->steps);
    if (!d->types || !d->values || !d->steps) return out_of_memory(s->ctx);
    if (s->types.count) memcpy(d->types, s->types.at, s->types.count * sizeof *d->types);
    if (s->values.count) memcpy(d->values, s->values.at, s->values.count * sizeof *d->values);
    if (s->steps.count) memcpy(d->steps, s->steps.at, s->steps.count * sizeof *d->steps);
    return MERA_OK;
}

mera_status steps_read(dna_deployment *d, const json_value *json, int32_t constant_count, const stored_tensor *constants)
{
    state s = {.d = d, .ctx = d->ctx};
    mera_status status = read_all(&s, json, constant_count, constants);
    if (status == MERA_OK) status = keep(&s);
    names_free(s.ctx, &s.names);
    vec_free(s.ctx, &s.types);
    vec_free(s.ctx, &s.values);
    vec_free(s.ctx, &s.steps);
    return status;
}
