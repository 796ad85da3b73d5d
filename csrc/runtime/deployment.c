/* deployment.c: a deployment's folder: its files, their checksums, its regions; what can be asked of it. See deployment.h.
 */
#include "deployment.h"
#include "error.h"
#include "folder.h"
#include "inner.h"
#include "sha256.h"

#define MANIFEST "deployment.json"
#define CONSTANTS "host.safetensors"
static const char seal_begin[] = "{\"sha256\": \"", seal_middle[] = "\", \"deployment\": ";

/* ---- files ---- */

/* {"sha256": "<digest of the text>", "deployment": <text>}, as files.py writes it. */
static mera_status unseal(mera_context *ctx, const blob *file, blob *text)
{
    const size_t begin = sizeof seal_begin - 1, middle = sizeof seal_middle - 1, head = begin + SHA256_HEX + middle;
    size_t end = file->bytes;
    while (end > 0 && (file->at[end - 1] == '\n' || file->at[end - 1] == ' ')) end--;
    if (end < head + 2 || memcmp(file->at, seal_begin, begin) != 0 ||
        memcmp(file->at + begin + SHA256_HEX, seal_middle, middle) != 0 || file->at[end - 1] != '}')
        return fail(ctx, MERA_CORRUPT, MANIFEST " does not begin and end as a deployment's does");
    *text = (blob){file->at + head, end - 1 - head};
    char digest[SHA256_HEX + 1];
    sha256_hex(text->at, text->bytes, digest);
    if (memcmp(digest, file->at + begin, SHA256_HEX) != 0)
        return fail(ctx, MERA_CORRUPT, MANIFEST " was altered: its checksum does not match");
    return MERA_OK;
}

static mera_status read_manifest(dna_deployment *d, int folder, const json_value **json)
{
    blob file, text = {NULL, 0};
    if (!folder_has(folder, MANIFEST))
        return fail(d->ctx, MERA_INVALID_ARGUMENT, "it is no deployment: it has no " MANIFEST);
    mera_status status = folder_read(d->ctx, folder, MANIFEST, &file);
    if (status == MERA_OK) status = unseal(d->ctx, &file, &text);
    if (status == MERA_OK) status = json_parse(d->ctx, &d->memory, MANIFEST, text.at, text.bytes, json);
    ctx_free(d->ctx, file.at);
    return status;
}

static mera_status check_digest(mera_context *ctx, const char *name, const blob *file, const json_value *digest)
{
    char found[SHA256_HEX + 1];
    sha256_hex(file->at, file->bytes, found);
    if (digest->kind != JSON_STRING || strcmp(found, digest->as.text) != 0)
        return fail(ctx, MERA_CORRUPT, "%.100s was truncated or altered: its checksum does not match", name);
    return MERA_OK;
}

/* A file that the manifest lists. The caller frees out->at, whatever is returned. */
static mera_status read_listed(dna_deployment *d, int folder, const json_member *entry, blob *out)
{
    const char *name = entry->key;
    *out = (blob){NULL, 0};
    if (!name[0] || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return fail(d->ctx, MERA_CORRUPT, MANIFEST " is malformed: file name '%.100s' leaves the folder", name);
    TRY(folder_read(d->ctx, folder, name, out));
    return check_digest(d->ctx, name, out, entry->value);
}

static const json_member *find_file(const json_value *files, const char *stem, const char *ending)
{
    const size_t n = strlen(stem);
    for (uint32_t k = 0; files && files->kind == JSON_OBJECT && k < files->count; k++) {
        const char *name = files->as.members[k].key;
        if (strncmp(name, stem, n) == 0 && strcmp(name + n, ending) == 0) return &files->as.members[k];
    }
    return NULL;
}

/* ---- regions ---- */

static mera_status check_graph(dna_deployment *d, region *r)
{
    mera_graph *g = r->graph;
    if (mera_graph_input_count(g) != r->input_count)
        return fail(d->ctx, MERA_CORRUPT, "%.64s: its inputs are not those of its graph", r->name);
    for (int32_t k = 0; k < r->input_count; k++)
        if (memcmp(g->tensors.at[g->inputs.at[k]].shape, r->inputs[k].dna, sizeof r->inputs[k].dna) != 0)
            return fail(d->ctx, MERA_CORRUPT, "%.64s: its inputs are not those of its graph", r->name);
    r->result_count = mera_graph_output_count(g);
    r->result_bytes = arena_array(&d->memory, (size_t)r->result_count + 1, sizeof *r->result_bytes);
    if (!r->result_bytes) return out_of_memory(d->ctx);
    for (int32_t k = 0; k < r->result_count; k++)
        r->result_bytes[k] = mera_graph_tensor_bytes(g, mera_graph_output_tensor(g, k));
    for (int32_t k = 0; k < r->output_count; k++)
        if (r->output_index[k] < 0 || r->output_index[k] >= r->result_count ||
            r->outputs[k].elements != r->result_bytes[r->output_index[k]])
            return fail(d->ctx, MERA_CORRUPT, "%.64s: its outputs are not those of its graph", r->name);
    return MERA_OK;
}

static mera_status check_program(dna_deployment *d, const region *r, const mera_program *p)
{
    bool same = p->input_count == r->input_count && p->output_count == r->result_count;
    for (int32_t k = 0; same && k < r->input_count; k++) same = p->inputs[k].bytes == r->inputs[k].elements;
    for (int32_t k = 0; same && k < r->result_count; k++) same = p->outputs[k].bytes == r->result_bytes[k];
    return same ? MERA_OK : fail(d->ctx, MERA_CORRUPT, "%.64s: its program is not that of its graph", r->name);
}

static mera_status load_graph(dna_deployment *d, int folder, const json_value *files, region *r)
{
    const json_member *entry = find_file(files, r->name, ".graph");
    if (!entry) return fail(d->ctx, MERA_CORRUPT, MANIFEST " is malformed: it lists no graph of %.64s", r->name);
    blob file;
    mera_status status = read_listed(d, folder, entry, &file);
    if (status == MERA_OK) status = mera_graph_load(d->ctx, file.at, file.bytes, &r->graph);
    ctx_free(d->ctx, file.at);
    return status == MERA_OK ? check_graph(d, r) : status;
}

static mera_status load_program(dna_deployment *d, int folder, const json_value *files, region *r)
{
    const json_member *entry = find_file(files, r->name, ".dna");
    if (!entry) return MERA_OK;
    blob file;
    mera_program *program = NULL;
    mera_status status = read_listed(d, folder, entry, &file);
    const bool sealed = status == MERA_OK;
    if (sealed) status = mera_program_load(d->ctx, file.at, file.bytes, &program);
    ctx_free(d->ctx, file.at);
    if (status == MERA_CORRUPT && sealed && d->foreign_core) return MERA_OK; /* it is compiled anew when it is needed */
    if (status == MERA_OK) status = check_program(d, r, program);
    atomic_store(&r->program, program);
    return status;
}

/* Under the lock. */
static mera_status make_program(dna_deployment *d, region *r)
{
    if (atomic_load(&r->program)) return MERA_OK;
#ifdef DNA_WITHOUT_COMPILER
    return fail(d->ctx, MERA_UNSUPPORTED,
                "the deployment holds no program, and this library no compiler; export it with target=\"Simulator\"");
#else
    mera_program *made = NULL;
    TRY(mera_compile(r->graph, &d->platform, &r->options, NULL, NULL, &made));
    atomic_store(&r->program, made);
    return MERA_OK;
#endif
}

static mera_status make_timing(dna_deployment *d, region *r)
{
    if (atomic_load(&r->timing)) return MERA_OK;
    mera_simulator *made = NULL;
    TRY(make_program(d, r));
    TRY(simulator_timing(d->ctx, atomic_load(&r->program), &made));
    atomic_store(&r->timing, made);
    return MERA_OK;
}

static mera_status make(dna_deployment *d, mera_context *ctx, int32_t index,
                        mera_status (*make_one)(dna_deployment *d, region *r))
{
    region *r = &d->regions[index];
    pthread_mutex_lock(&d->lock);
    const mera_status status = make_one(d, r);
    if (status != MERA_OK) fail(ctx, status, "%.64s: %.900s", r->name, mera_last_error(d->ctx));
    pthread_mutex_unlock(&d->lock);
    return status;
}

mera_status deployment_program(dna_deployment *d, mera_context *ctx, int32_t index, mera_program **program)
{
    _Atomic(mera_program *) *held = &d->regions[index].program;
    if (!atomic_load(held)) TRY(make(d, ctx, index, make_program));
    *program = atomic_load(held);
    return MERA_OK;
}

mera_status deployment_timing(dna_deployment *d, mera_context *ctx, int32_t index, mera_simulator **timing)
{
    _Atomic(mera_simulator *) *held = &d->regions[index].timing;
    if (!atomic_load(held)) TRY(make(d, ctx, index, make_timing));
    *timing = atomic_load(held);
    return MERA_OK;
}

dna_status deployment_region(dna_deployment *d, int32_t index, mera_graph **graph, mera_program **program,
                             mera_simulator **timing, dna_error *error)
{
    if (!d || index < 0 || index >= d->region_count || !d->regions[index].graph)
        return error_set(error, DNA_INVALID_ARGUMENT, "there is no region %d", index);
    mera_context *ctx = mera_context_create(-1); /* for a message */
    if (!ctx) return error_set(error, DNA_OUT_OF_MEMORY, "out of memory");
    if (graph) *graph = d->regions[index].graph;
    mera_status status = program ? deployment_program(d, ctx, index, program) : MERA_OK;
    if (status == MERA_OK && timing) status = deployment_timing(d, ctx, index, timing);
    error_set(error, (dna_status)status, "%s", status == MERA_OK ? "" : mera_last_error(ctx));
    mera_context_destroy(ctx);
    return (dna_status)status;
}

/* ---- loading ---- */

static mera_status load_constants(dna_deployment *d, int folder, const json_value *files, int32_t *count,
                                  stored_tensor **constants)
{
    const json_member *entry = find_file(files, CONSTANTS, "");
    if (!entry) return fail(d->ctx, MERA_CORRUPT, MANIFEST " is malformed: it lists no " CONSTANTS);
    blob file;
    mera_status status = read_listed(d, folder, entry, &file);
    if (status == MERA_OK) status = safetensors_read(d->ctx, &d->memory, CONSTANTS, file.at, file.bytes, count, constants);
    ctx_free(d->ctx, file.at);
    return status;
}

static bool is_loaded_elsewhere(const dna_deployment *d, const json_value *files, const json_member *entry)
{
    if (strcmp(entry->key, CONSTANTS) == 0) return true;
    for (int32_t k = 0; k < d->region_count; k++)
        if (entry == find_file(files, d->regions[k].name, ".graph") || entry == find_file(files, d->regions[k].name, ".dna"))
            return true;
    return false;
}

static mera_status check_other_files(dna_deployment *d, int folder, const json_value *files)
{
    for (uint32_t k = 0; k < files->count; k++) {
        const json_member *entry = &files->as.members[k];
        if (is_loaded_elsewhere(d, files, entry)) continue;
        blob file;
        const mera_status status = read_listed(d, folder, entry, &file);
        ctx_free(d->ctx, file.at);
        TRY(status);
    }
    return MERA_OK;
}

static mera_status load(dna_deployment *d, int folder, bool host_only)
{
    const json_value *json;
    stored_tensor *constants;
    int32_t constant_count;
    TRY(read_manifest(d, folder, &json));
    TRY(manifest_read(d, json));
    const json_value *files = json_get(json, "files");
    if (!files || files->kind != JSON_OBJECT || files->count > 4 * MAX_REGIONS)
        return fail(d->ctx, MERA_CORRUPT, MANIFEST " is malformed: it has no list of files");
    TRY(load_constants(d, folder, files, &constant_count, &constants));
    TRY(steps_read(d, json, constant_count, constants));
    if (host_only) return MERA_OK;
    for (int32_t k = 0; k < d->region_count; k++) {
        TRY(load_graph(d, folder, files, &d->regions[k]));
        TRY(load_program(d, folder, files, &d->regions[k]));
    }
    TRY(check_other_files(d, folder, files));
    return d->needs_torch ? MERA_OK : memory_plan(d);
}

static void destroy(dna_deployment *d)
{
    mera_context *ctx = d->ctx;
    arena_free(&d->memory);
    pthread_mutex_destroy(&d->lock);
    ctx_free(ctx, d);
    mera_context_destroy(ctx); /* graphs and programs with it */
}

static mera_status create(mera_context *ctx, dna_deployment **out)
{
    dna_deployment *d = ctx_alloc_zeroed(ctx, sizeof *d);
    if (!d) return out_of_memory(ctx);
    d->ctx = ctx;
    atomic_init(&d->users, 1);
    pthread_mutex_init(&d->lock, NULL);
    arena_init(&d->memory, ctx);
    *out = d;
    return MERA_OK;
}

dna_status deployment_open(const char *path, int64_t fail_after, int32_t host_only, dna_deployment **out, dna_error *error)
{
    if (!path || !out) return error_set(error, DNA_INVALID_ARGUMENT, "the folder or the deployment to fill is NULL");
    *out = NULL;
    mera_context *ctx = mera_context_create(fail_after);
    if (!ctx) return error_set(error, DNA_OUT_OF_MEMORY, "deployment '%.300s': out of memory", path);
    dna_deployment *d = NULL;
    int folder = -1;
    mera_status status = folder_open(ctx, path, &folder);
    if (status == MERA_OK) status = create(ctx, &d);
    if (status == MERA_OK) status = load(d, folder, host_only != 0);
    if (folder >= 0) folder_close(folder);
    if (status == MERA_OK)
        error_set(error, DNA_OK, "%s", "");
    else
        error_set(error, (dna_status)status, "deployment '%.300s': %s", path, mera_last_error(ctx));
    if (status == MERA_OK)
        *out = d;
    else if (d)
        destroy(d);
    else
        mera_context_destroy(ctx);
    return (dna_status)status;
}

dna_status dna_deployment_load(const char *folder, dna_deployment **deployment, dna_error *error)
{
    return deployment_open(folder, -1, 0, deployment, error);
}

void deployment_keep(dna_deployment *d) { atomic_fetch_add(&d->users, 1); }

void dna_deployment_free(dna_deployment *d)
{
    if (d && atomic_fetch_sub(&d->users, 1) == 1) destroy(d);
}
