/* manifest.c: deployment.json, but for the host's steps: see deployment.h. */
#include "deployment.h"

/* ---- pieces ---- */

static mera_status malformed(dna_deployment *d, const char *what)
{
    return fail(d->ctx, MERA_CORRUPT, "deployment.json is malformed: %s", what);
}

static const char *string_of(const json_value *json) { return json && json->kind == JSON_STRING ? json->as.text : NULL; }

static bool integer_of(const json_value *json, int64_t low, int64_t high, int64_t *out)
{
    if (!json || json->kind != JSON_INTEGER || json->as.integer < low || json->as.integer > high) return false;
    *out = json->as.integer;
    return true;
}

static bool int32_of(const json_value *json, int32_t *out)
{
    int64_t wide;
    if (!integer_of(json, INT32_MIN, INT32_MAX, &wide)) return false;
    *out = (int32_t)wide;
    return true;
}

static bool real_of(const json_value *json, double *out)
{
    if (!json || (json->kind != JSON_REAL && json->kind != JSON_INTEGER)) return false;
    *out = json->kind == JSON_REAL ? json->as.real : (double)json->as.integer;
    return true;
}

static const json_value *array_of(const json_value *json, uint32_t most)
{
    return json && json->kind == JSON_ARRAY && json->count <= most ? json : NULL;
}

/* ---- platform and target ---- */

static mera_status read_platform(dna_deployment *d, const json_value *json)
{
    mera_platform *p = &d->platform;
    const char *name = string_of(json_get(json, "name"));
    const json_value *bf16 = json_get(json, "bf16");
    if (!name || strlen(name) >= sizeof p->name) return malformed(d, "its platform has no name");
    strcpy(p->name, name);
    if (!int32_of(json_get(json, "units"), &p->units) || !int32_of(json_get(json, "array"), &p->array) ||
        !real_of(json_get(json, "clock_mhz"), &p->clock_mhz) || !real_of(json_get(json, "dram_gbps"), &p->dram_gbps) ||
        !integer_of(json_get(json, "sram_bytes"), 0, INT64_MAX, &p->sram_bytes) ||
        !int32_of(json_get(json, "sram_banks"), &p->sram_banks) ||
        !int32_of(json_get(json, "dram_latency_cycles"), &p->dram_latency_cycles) || !bf16 || bf16->kind != JSON_BOOL)
        return malformed(d, "a value of its platform is missing or no number");
    p->bf16 = bf16->as.boolean;
    return mera_platform_check(d->ctx, p) == MERA_OK ? MERA_OK : malformed(d, "its platform is not valid");
}

static mera_status read_target(dna_deployment *d, const json_value *json)
{
    const char *name = string_of(json);
    for (int target = DNA_TARGET_INTERPRETER_HW; name && target <= DNA_TARGET_IP; target++)
        if (strcmp(name, dna_target_name((dna_target)target)) == 0) d->target = (dna_target)target;
    return d->target != DNA_TARGET_DEFAULT ? MERA_OK : malformed(d, "its target is unknown");
}

/* ---- inputs ---- */

static bool read_tensor_type(dna_deployment *d, const json_value *row, const char *dtype_name, host_tensor *type)
{
    const json_value *shape = array_of(json_get(row, "shape"), HOST_MAX_RANK);
    int64_t sizes[HOST_MAX_RANK];
    host_dtype dtype;
    if (!shape || !dtype_name || !host_dtype_find(dtype_name, &dtype)) return false;
    for (uint32_t k = 0; k < shape->count; k++)
        if (!integer_of(&shape->as.items[k], 0, INT64_MAX, &sizes[k])) return false;
    return host_tensor_init(d->ctx, type, dtype, (int32_t)shape->count, sizes) == MERA_OK;
}

static host_arg constant_of(const json_value *json)
{
    if (json && json->kind == JSON_BOOL) return (host_arg){.kind = MERA_HOST_FLAG, .integer = json->as.boolean};
    if (json && json->kind == JSON_INTEGER) return (host_arg){.kind = MERA_HOST_INT, .integer = json->as.integer};
    if (json && json->kind == JSON_REAL) return (host_arg){.kind = MERA_HOST_REAL, .real = json->as.real};
    if (json && json->kind == JSON_STRING) return (host_arg){.kind = MERA_HOST_STRING, .text = json->as.text};
    return (host_arg){.kind = MERA_HOST_NONE};
}

static mera_status read_inputs(dna_deployment *d, const json_value *rows, const json_value *names)
{
    if (!array_of(rows, MAX_STEPS) || !array_of(names, MAX_STEPS) || rows->count != names->count)
        return malformed(d, "its inputs are missing, or not those of its steps");
    d->inputs = arena_array(&d->memory, (size_t)rows->count + 1, sizeof *d->inputs);
    d->tensor_inputs = arena_array(&d->memory, (size_t)rows->count + 1, sizeof *d->tensor_inputs);
    if (!d->inputs || !d->tensor_inputs) return out_of_memory(d->ctx);
    d->flat_input_count = (int32_t)rows->count;
    for (uint32_t k = 0; k < rows->count; k++) {
        const json_value *row = &rows->as.items[k], *dtype = json_get(row, "dtype");
        model_input *in = &d->inputs[k];
        in->node = string_of(&names->as.items[k]);
        in->name = string_of(json_get(row, "name"));
        in->source = string_of(json_get(row, "source_name"));
        if (!in->node || !in->name || !dtype) return malformed(d, "an input has no name or no dtype");
        in->is_tensor = dtype->kind != JSON_NULL;
        if (!in->is_tensor)
            in->constant = constant_of(json_get(row, "constant"));
        else if (!read_tensor_type(d, row, string_of(json_get(dtype, "torch")), &in->type))
            return fail(d->ctx, MERA_CORRUPT, "deployment.json is malformed: input '%.100s' has no valid shape and dtype",
                        in->name);
        else
            d->tensor_inputs[d->input_count++] = (int32_t)k;
    }
    return MERA_OK;
}

/* ---- regions ---- */

static mera_status read_ports(dna_deployment *d, const char *name, const json_value *json, port **ports, int32_t *count)
{
    if (!array_of(json, 65536)) return malformed(d, "a region has no list of inputs or outputs");
    *ports = arena_array(&d->memory, (size_t)json->count + 1, sizeof **ports);
    if (!*ports) return out_of_memory(d->ctx);
    *count = (int32_t)json->count;
    for (int32_t k = 0; k < *count; k++) TRY(port_read(d->ctx, name, &json->as.items[k], &(*ports)[k]));
    return MERA_OK;
}

static mera_status read_region(dna_deployment *d, const json_value *row, region *r)
{
    r->name = string_of(json_get(row, "name"));
    if (!r->name) return malformed(d, "a region has no name");
    TRY(read_ports(d, r->name, json_get(row, "inputs"), &r->inputs, &r->input_count));
    TRY(read_ports(d, r->name, json_get(row, "outputs"), &r->outputs, &r->output_count));
    const json_value *index = array_of(json_get(row, "output_index"), 65536), *options = json_get(row, "options");
    if (!index || index->count != (uint32_t)r->output_count) return malformed(d, "a region's output_index is missing");
    r->output_index = arena_array(&d->memory, (size_t)index->count + 1, sizeof *r->output_index);
    if (!r->output_index) return out_of_memory(d->ctx);
    for (int32_t k = 0; k < r->output_count; k++)
        if (!int32_of(&index->as.items[k], &r->output_index[k])) return malformed(d, "a region's output_index is malformed");
    mera_options *o = &r->options;
    if (!int32_of(json_get(options, "mode"), &o->mode) || !int32_of(json_get(options, "workers"), &o->workers) ||
        !int32_of(json_get(options, "max_tile_height"), &o->max_tile_height) ||
        !int32_of(json_get(options, "max_tile_width"), &o->max_tile_width) ||
        !int32_of(json_get(options, "max_acc_tile_height"), &o->max_acc_tile_height) ||
        !int32_of(json_get(options, "max_acc_tile_width"), &o->max_acc_tile_width))
        return malformed(d, "a region's options are missing");
    return MERA_OK;
}

static mera_status read_regions(dna_deployment *d, const json_value *json)
{
    if (!array_of(json, MAX_REGIONS)) return malformed(d, "it has no list of at most 4,096 regions");
    d->regions = arena_array(&d->memory, (size_t)json->count + 1, sizeof *d->regions);
    if (!d->regions) return out_of_memory(d->ctx);
    for (uint32_t k = 0; k < json->count; k++, d->region_count++) {
        TRY(read_region(d, &json->as.items[k], &d->regions[k]));
        for (uint32_t before = 0; before < k; before++)
            if (strcmp(d->regions[before].name, d->regions[k].name) == 0) return malformed(d, "two regions have one name");
    }
    return MERA_OK;
}

/* ---- all ---- */

mera_status manifest_read(dna_deployment *d, const json_value *json)
{
    const char *format = string_of(json_get(json, "format"));
    if (!format || strcmp(format, "mera_torch deployment") != 0) return malformed(d, "it is no deployment of mera_torch");
    int64_t version = 0;
    if (!integer_of(json_get(json, "version"), 1, INT32_MAX, &version)) return malformed(d, "it has no version");
    if (version > DEPLOYMENT_VERSION)
        return fail(d->ctx, MERA_CORRUPT,
                    "deployment.json is of version %lld, this runtime reads versions up to %d: install a newer mera_torch",
                    (long long)version, DEPLOYMENT_VERSION);
    d->version = (int32_t)version;
    const json_value *versions = json_get(json, "versions");
    const char *core = string_of(json_get(versions ? versions : json, "core"));
    const char *build = string_of(json_get(versions, "core_build")), *explanation = string_of(json_get(json, "explanation"));
    d->core = core ? core : "";
    d->foreign_core = build && strcmp(build, mera_core_build()) != 0;
    d->explanation = explanation ? explanation : "";
    TRY(read_platform(d, json_get(json, "platform")));
    TRY(read_target(d, json_get(json, "target")));
    TRY(read_inputs(d, json_get(json, "inputs"), json_get(json_get(json, "host"), "inputs")));
    return read_regions(d, json_get(json, "regions"));
}
